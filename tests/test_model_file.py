"""Model files: the user's keys, the zeros as masks, and files that are not what they seem."""

import json
import os
import pickle
import random
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import ellzero as ez
from ellzero.errors import InputError
from ellzero.files import digest, read_tensors, write_tensors
from ellzero.model_file import read_metadata, to_bytes
from small import classification, convnet, mlp, recipe, tensors_equal


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight
        self.register_buffer("steps", torch.tensor(3))


@pytest.mark.parametrize("make", [mlp, convnet, Tied])
def test_a_round_trip_with_exactly_the_users_keys(make, tmp_path):
    model, file = make(), tmp_path / "model.safetensors"
    ez.save(model, file)
    assert set(load_file(file)) == set(model.state_dict())
    other = make()
    for parameter in other.parameters():
        nn.init.constant_(parameter, 7.0)
    assert ez.load(file, other) is other
    assert tensors_equal(other, model)


def test_tied_weights_stay_tied(tmp_path):
    model = Tied()
    masks = ez.prune(model, nonzeros=5)
    ez.save(model, tmp_path / "tied", masks=masks)
    other = Tied()
    ez.load(tmp_path / "tied", other)
    assert other.encode.weight is other.decode.weight
    assert torch.equal(other.encode.weight, model.encode.weight)
    assert ez.Masks.read(tmp_path / "tied", other).nonzeros == 5


def test_a_file_of_another_program_can_be_loaded(tmp_path):
    save_file(mlp().state_dict(), tmp_path / "plain.safetensors")
    model = ez.load(tmp_path / "plain.safetensors", mlp(seed=1))
    assert tensors_equal(model, mlp())
    assert ez.Masks.read(tmp_path / "plain.safetensors", model).nonzeros == 144


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_types_keep_their_bits(dtype, tmp_path):
    ez.save(mlp().to(dtype), tmp_path / "file")
    assert load_file(tmp_path / "file")["0.weight"].dtype is dtype
    assert tensors_equal(ez.load(tmp_path / "file", mlp(seed=1).to(dtype)), mlp().to(dtype))


def test_zeros_are_the_masks_and_kept_zeros_come_back(tmp_path):
    model = mlp()
    masks = ez.prune(model, nonzeros=30)
    kept = masks["0.weight"].nonzero()[0].tolist()
    with torch.no_grad():
        model.get_parameter("0.weight")[*kept] = 0.0  # a kept weight that happens to be zero
    ez.save(model, tmp_path / "file", masks=masks)
    other = ez.load(tmp_path / "file", mlp(seed=1))
    again = ez.Masks.read(tmp_path / "file", other)
    assert again.nonzeros == 30
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    # without the note it is lost, so the note is what brought it back
    ez.save(model, tmp_path / "file")
    assert ez.Masks.read(tmp_path / "file", other).nonzeros == 29


@pytest.mark.parametrize("noted", [True, False])
def test_masks_are_the_files_whatever_the_networks_weights_are(noted, tmp_path):
    model, other = Tied(), Tied()
    masks = ez.prune(model, nonzeros=5)
    ez.save(model, tmp_path / "file", masks=masks if noted else None)
    again = ez.Masks.read(tmp_path / "file", other)
    assert again.nonzeros == 5
    assert all(torch.equal(again[name], masks[name]) for name in masks)
    again.apply()
    assert int(other.encode.weight.count_nonzero()) == 5


def test_a_tied_weight_is_found_under_any_of_its_names(tmp_path):
    model = Tied()
    masks = ez.prune(model, nonzeros=5)
    save_file({"decode.weight": model.decode.weight.detach()}, tmp_path / "file")
    assert ez.Masks.read(tmp_path / "file", Tied())["encode.weight"].equal(masks["encode.weight"])


def test_masks_of_another_network_are_refused(tmp_path):
    ez.save(nn.Linear(3, 2), tmp_path / "file")
    with pytest.raises(InputError, match=r"has weight \(3, 3\), .*file has one of \(2, 3\)"):
        ez.Masks.read(tmp_path / "file", nn.Linear(3, 3))
    with pytest.raises(InputError, match=r"has 0\.weight .*file has none of that name"):
        ez.Masks.read(tmp_path / "file", mlp())
    for use in (lambda: ez.Masks.read(tmp_path / "file", None), lambda: ez.select(None)):  # pyright: ignore[reportArgumentType]
        with pytest.raises(InputError, match=r"the network is NoneType; expected torch\.nn"):
            use()
    with pytest.raises(InputError, match=r"the network is NoneType"):
        ez.prune(mlp(), sparsity=0.5).apply_to(None)  # pyright: ignore[reportArgumentType]


def test_masks_of_a_packed_file_are_refused(tmp_path):
    ez.pack(ez.trace(mlp(), torch.zeros(1, 6)), tmp_path / "file")
    with pytest.raises(InputError, match=r"file is a packed file, expected safetensors; ez\.load"):
        ez.Masks.read(tmp_path / "file", mlp())


def test_masks_cover_what_was_selected(tmp_path):
    model = mlp()
    masks = ez.prune(model, sparsity=0.5, weights=ez.select(model, exclude=["2.*"]))
    ez.save(model, tmp_path / "file", masks=masks)
    assert list(ez.Masks.read(tmp_path / "file", mlp())) == ["0.weight"]


@given(st.integers(1, 144), st.integers(0, 100))
def test_any_pruning_comes_back_from_its_bytes(tmp_path_factory, nonzeros, seed):
    model = mlp(seed=seed)
    masks = ez.prune(model, nonzeros=nonzeros)
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    ez.save(model, file, masks=masks)
    again = ez.Masks.read(file, ez.load(file, mlp()))
    assert all(torch.equal(again[name], masks[name]) for name in masks)


def test_negative_zeros_are_written_as_zeros(tmp_path):
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(-0.0)
    ez.save(model, tmp_path / "file")
    assert not torch.signbit(load_file(tmp_path / "file")["0.weight"]).any()
    assert torch.signbit(model.get_parameter("0.weight")).all()  # the network itself stays as it is


def test_metadata_comes_back(tmp_path):
    about = {"classes": ["a", "b"], "preprocess": {"scale": 0.5}, "none": None}
    ez.save(mlp(), tmp_path / "file", metadata=about)
    assert about.items() <= read_metadata(tmp_path / "file").items()


def test_equal_networks_give_equal_bytes():
    assert to_bytes(mlp()) == to_bytes(mlp())


# files that are not what they seem


def test_a_truncated_file_is_an_error_at_any_length(tmp_path):
    model, file = mlp(), tmp_path / "model.safetensors"
    content = to_bytes(model, masks=ez.prune(model, sparsity=0.5))
    for length in [*range(0, 40), *range(40, len(content), 97), len(content) - 1]:
        file.write_bytes(content[:length])
        for read in (ez.load, ez.Masks.read):
            with pytest.raises(InputError, match=r"model\.safetensors is truncated or not"):
                read(file, mlp())
    file.write_bytes(content)
    assert tensors_equal(ez.load(file, mlp()), model)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 64, b"\xff" * 64, b"{}", os.urandom(0)])
def test_what_is_no_model_file(content, tmp_path):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match="truncated or not a safetensors file"):
        ez.load(tmp_path / "file", mlp())


def test_what_is_not_there(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="no model file at"):
            ez.load(path, mlp())


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", [0, 2, 5, "torch", "legacy torch"])
def test_a_pickle_is_never_unpickled(protocol, tmp_path):
    file, sprung = tmp_path / "model.safetensors", tmp_path / "sprung"
    trap = {"0.weight": Trap(sprung)}
    if isinstance(protocol, int):
        file.write_bytes(pickle.dumps(trap, protocol))
    else:
        torch.save(trap, file, _use_new_zipfile_serialization=protocol == "torch")
    for read in (ez.load, ez.Masks.read):
        with pytest.raises(InputError, match=r"pickle|not a safetensors") as caught:
            read(file, mlp())
        assert protocol == 0 or "never unpickles" in str(caught.value)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(trap))  # the trap does work
    assert sprung.exists()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Linear(6, 16), r"0\.weight is missing.*"),
        (lambda: nn.Sequential(nn.Linear(6, 16)), r"2\.weight is missing"),
        (
            lambda: nn.Sequential(*mlp(), nn.Linear(3, 3)),
            r"3\.weight is unknown \(did you mean .*\.weight",
        ),
        (lambda: mlp(outputs=4), r"2\.weight is \(4, 16\), expected \(3, 16\)"),
    ],
)
def test_a_file_of_another_network(make, expected, tmp_path):
    ez.save(make(), tmp_path / "file")
    model = mlp()
    with pytest.raises(InputError, match=f"is of another network than Sequential: .*{expected}"):
        ez.load(tmp_path / "file", model)
    assert tensors_equal(model, mlp()), "nothing was loaded in part"


def test_a_file_of_a_newer_version(tmp_path):
    tensors = {name: t.contiguous() for name, t in mlp().state_dict().items()}
    save_file(tensors, tmp_path / "file", {"ellzero": json.dumps({"format": 3})})
    for read in (ez.load, ez.Masks.read):
        with pytest.raises(InputError, match="format 3; this ellzero reads up to 2: install"):
            read(tmp_path / "file", mlp())


@pytest.mark.parametrize(
    "metadata",
    [
        [1, 2],
        {"format": "new"},
        {"masks": 3},
        {"masks": {"weights": ["9.weight"], "kept_zeros": {}}},
        {"masks": {"weights": ["0.weight"]}},
        {"masks": {"weights": ["0.weight"], "kept_zeros": {"0.weight": [9999]}}},
        {"masks": {"weights": ["0.weight"], "kept_zeros": {"5.weight": [1]}}},
        {"masks": {"weights": ["0.weight"], "kept_zeros": {"0.weight": "all"}}},
    ],
)
def test_metadata_that_makes_no_sense(metadata, tmp_path):
    tensors = {name: t.contiguous() for name, t in mlp().state_dict().items()}
    save_file(tensors, tmp_path / "file", {"ellzero": json.dumps(metadata)})
    with pytest.raises(InputError):
        ez.Masks.read(tmp_path / "file", mlp())


def test_metadata_that_is_nested_without_end(tmp_path):
    tensors = {name: t.contiguous() for name, t in mlp().state_dict().items()}
    save_file(tensors, tmp_path / "file", {"ellzero": "[" * 100_000})
    with pytest.raises(InputError, match="maximum recursion depth"):
        ez.load(tmp_path / "file", mlp())


def test_a_header_that_promises_more_than_there_is(tmp_path):
    header = {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
    with pytest.raises(InputError, match="truncated or not"):
        ez.load(tmp_path / "file", mlp())
    (tmp_path / "file").write_bytes(struct.pack("<Q", 1 << 62) + text)
    with pytest.raises(InputError, match="truncated or not"):
        ez.load(tmp_path / "file", mlp())


def test_a_state_that_is_no_tensor_cannot_be_saved(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return [1]

    with pytest.raises(InputError, match="_extra_state is list; only tensors"):
        ez.save(Extra(2, 2), tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        ez.save(mlp(), tmp_path / "nowhere" / "model.safetensors")


def test_a_file_with_a_digest_that_has_changed_is_refused_at_any_bit_of_its_tensors(tmp_path):
    path = tmp_path / "model.safetensors"
    model = mlp()
    ez.save(model, path, metadata={"seed": 3, "sizes": (1, 2)}, digest=True)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    assert ez.load(path, mlp(seed=1)).state_dict().keys() == model.state_dict().keys()
    for bit in random.Random(0).sample(range(8 * begin, 8 * len(content)), 50):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for read in (lambda: ez.load(path, mlp()), lambda: read_metadata(path)):
            with pytest.raises(ez.InputError, match=f"{path} is damaged: it has changed since it"):
                read()


def test_a_flipped_bit_in_the_header_does_not_hide_the_digest(tmp_path):
    path = tmp_path / "model.safetensors"
    ez.save(mlp(), path, metadata={"seed": 3}, digest=True)
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    chosen = random.Random(0)
    bits = [8 * byte + chosen.randrange(8) for byte in range(begin)]
    for name in (b"ellzero", b"content_sha256", b"format"):  # the names that make it one of ours
        first = 8 * content.index(name)
        bits += range(first, first + 8 * len(name))
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ez.InputError):
            read_metadata(path)


def test_a_file_of_before_formats_told_of_digests_is_checked_and_read(tmp_path):
    path = tmp_path / "model.safetensors"
    ez.save(mlp(), path, digest=True)
    tensors, metadata = read_tensors(path)
    del metadata["content_sha256"]
    metadata["format"] = 1
    metadata["content_sha256"] = digest(tensors, metadata)
    write_tensors(path, tensors, metadata)
    assert read_metadata(path) == metadata
    write_tensors(path, tensors, {**metadata, "content_sha256": "0" * 64})
    with pytest.raises(ez.InputError, match="is damaged"):
        ez.load(path, mlp())


@pytest.mark.parametrize("seed", [b"400", b"NaN"])
def test_a_file_with_a_digest_whose_metadata_have_changed_is_refused(seed, tmp_path):
    path = tmp_path / "model.safetensors"
    ez.save(mlp(), path, metadata={"seed": 333}, digest=True)
    content = path.read_bytes()
    assert b"333" in content
    path.write_bytes(content.replace(b"333", seed))
    with pytest.raises(ez.InputError, match="is damaged"):
        ez.load(path, mlp())


def test_the_digest_is_of_what_other_runs_start_from_and_of_nothing_else(tmp_path):
    """The compressed network's file is one whose bytes are counted."""
    ez.compress(mlp(), classification(), recipe(), folder=tmp_path / "run")
    with_digest = {
        path.name
        for path in (tmp_path / "run").glob("*.safetensors")
        if "content_sha256" in read_metadata(path)
    }
    assert with_digest == {"reference.safetensors", "trained.safetensors"}
