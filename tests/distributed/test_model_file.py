"""Files of networks in several processes: what one process would write, read into any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ellzero as ez
from ellzero.model_file import to_bytes
from spread import Spread, network, spread, wholes

METADATA = {"classes": ["a", "b"]}

How = Literal["plain", "ddp", "fsdp", "compiled", "compiled within"]


def _pruned(dtype: torch.dtype) -> tuple[nn.Sequential, dict[str, Tensor]]:
    """A network with zeros, of which two are kept, and its masks."""
    model = network(dtype)
    masks = {name: w.detach().abs() > 0.1 for name, w in ez.select(model).items()}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
        kept = model.get_parameter("3.weight")
        kept[0, 0] = kept[6, 3] = 0  # on the first rank and the last
        kept[1, 1] = -0.0
    masks["3.weight"][0, 0] = masks["3.weight"][6, 3] = True
    masks["3.weight"][1, 1] = False
    return model, masks


def _wrapped(model: nn.Sequential, how: How) -> nn.Module:
    if how == "compiled":
        return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]
    if how == "compiled within":
        model[3] = torch.compile(model[3], backend="eager")  # pyright: ignore[reportArgumentType]
        return model
    return spread(model, how)


def _saved(folder: Path, how: How, digest: bool, dtype: torch.dtype) -> Any:
    """What the file holds as soon as a process is told that it is there, and `to_bytes`."""
    model, tensors = _pruned(dtype)
    called = _wrapped(model, how)
    masks = ez.Masks(ez.select(called), tensors)
    path = folder / f"{how}.safetensors"
    ez.save(called, path, masks=masks, metadata=METADATA, digest=digest)
    if how == "ddp":
        dist.barrier()
    return path.read_bytes(), to_bytes(called, masks=masks, metadata=METADATA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("digest", [False, True])
def test_a_file_is_that_of_one_process(run_in, tmp_path, digest, dtype):
    content, as_bytes = _saved(tmp_path, "plain", digest, dtype)
    assert b'kept_zeros\\":{\\"3.weight\\":[0,483]' in content.replace(b" ", b"")
    for how in ("compiled", "compiled within"):
        assert _saved(tmp_path, how, digest, dtype) == (content, as_bytes)
    for size in (2, 3):
        for how in ("ddp", "fsdp"):
            for theirs in run_in(size, _saved, tmp_path, how, digest, dtype):
                assert theirs == (content, as_bytes)


def _unwritable(folder: Path, how: Spread) -> str:
    with pytest.raises(ez.InputError) as error:
        ez.save(spread(network(), how), folder / "none" / "model.safetensors")
    return str(error.value)


def test_an_error_of_rank_0_is_raised_by_all(run_in, tmp_path):
    message = f"cannot write {tmp_path / 'none' / 'model.safetensors'}: there is no folder"
    first, second, third = run_in(3, _unwritable, tmp_path, "fsdp")
    assert first.startswith(message)
    assert second.startswith(f"rank 0 failed: {message}")
    assert third == second


def _unserializable(folder: Path) -> str:
    with pytest.raises((TypeError, ez.WriteError)) as error:
        ez.save(spread(network(), "fsdp"), folder / "a", metadata={"no JSON": {1, 2}})
    return str(error.value)


def test_any_error_of_rank_0_is_raised_by_all(run_in, tmp_path):
    first, second = run_in(2, _unserializable, tmp_path)
    assert "set is not JSON serializable" in first
    assert second == f"rank 0 failed: {first}"


def _alone(folder: Path) -> list[str]:
    """Rank 0 alone saves what DDP has replicated, as loops of the user's own do."""
    model = spread(network(), "ddp")
    if dist.get_rank() == 0:
        ez.save(model, folder / "rank-0")
    ez.save(model, folder / "all")
    dist.barrier()
    return sorted(path.name for path in folder.iterdir())


def test_rank_0_may_save_a_replicated_network_alone(run_in, tmp_path):
    assert run_in(2, _alone, tmp_path) == [["all", "rank-0"]] * 2
    assert (tmp_path / "all").read_bytes() == to_bytes(network())


def _loaded(path: Path, how: How) -> Any:
    model = network(seed=1)
    called = _wrapped(model, how)
    assert ez.load(path, called) is called
    masks = ez.Masks.read(path, called)
    other = network(seed=2)
    again = _wrapped(other, how)
    masks_of_other = ez.Masks.read(path, again)
    masks_of_other.apply()
    return wholes(model), masks.nonzeros, masks.kept_zeros, wholes(other)


def _compiled_replicas(folder: Path) -> None:
    """Each rank saves to a file of its own."""
    model: Any = torch.compile(spread(network(), "ddp"), backend="eager")
    ez.save(model, folder / f"rank-{dist.get_rank()}")
    dist.barrier()


def test_rank_0_alone_writes_compiled_replicas(run_in, tmp_path):
    run_in(2, _compiled_replicas, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rank-0"]


@pytest.mark.parametrize("how", ["ddp", "fsdp", "compiled", "compiled within"])
def test_a_file_is_read_into_any_network(run_in, tmp_path, how):
    path = tmp_path / "plain.safetensors"
    _saved(tmp_path, "plain", True, torch.float32)
    expected, kept = wholes(_pruned(torch.float32)[0]), _pruned(torch.float32)[1]
    nonzeros = sum(int(mask.sum()) for mask in kept.values())
    pruned = network(seed=2)
    with torch.no_grad():
        for name, mask in kept.items():
            pruned.get_parameter(name).mul_(mask)
    sizes = (2, 3) if how in ("ddp", "fsdp") else (None,)
    for size in sizes:
        results = [_loaded(path, how)] if size is None else run_in(size, _loaded, path, how)
        for weights, count, kept_zeros, others in results:
            assert all(w.equal(x) for w, x in zip(weights, expected, strict=True))
            assert count == nonzeros
            assert kept_zeros == {"3.weight": [0, 483]}
            assert all(w.equal(x) for w, x in zip(others, wholes(pruned), strict=True))


def _refused(path: Path) -> str:
    with pytest.raises(ez.InputError) as error:
        ez.load(path, spread(network(), "fsdp"))
    return str(error.value)


def test_a_file_of_another_network_is_refused_in_each_process(run_in, tmp_path):
    path = tmp_path / "model.safetensors"
    ez.save(nn.Sequential(nn.Conv2d(1, 5, 3)), path)
    for text in run_in(2, _refused, path):
        assert "3.weight is missing" in text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_a_file_of_an_earlier_version_has_the_keys_of_wrappers(tmp_path, prefix):
    from safetensors.torch import save_file

    path, old = tmp_path / "model.safetensors", network(seed=3)
    save_file({prefix + name: w.detach() for name, w in old.state_dict().items()}, path)
    model = network()
    wrapped = (
        nn.DataParallel(model) if prefix == "module." else torch.compile(model, backend="eager")
    )
    ez.load(path, wrapped)  # pyright: ignore[reportArgumentType]
    assert model.get_parameter("3.weight").equal(old.get_parameter("3.weight"))
