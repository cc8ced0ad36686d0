"""Tiny Shakespeare: windows, parts, vocabulary, and the score in bits."""

import math
import os
from pathlib import Path

import pytest
import torch

import ellzero as ez
from ellzero.data.shakespeare import negative_bits, shakespeare, text_data
from ellzero.errors import InputError
from ellzero.networks.gpt import gpt_small
from small import recipe

CPU = torch.device("cpu")


def whole(part) -> tuple[torch.Tensor, torch.Tensor]:
    ((inputs, targets),) = part.batches(100_000, CPU)
    return inputs, targets


def test_windows_follow_each_other_and_targets_are_one_on():
    data = text_data(bytes(range(200)), "bytes", context=4)
    # 180, 10 and 10 bytes; a window needs one byte more, its last target
    (inputs, targets), (validation, _), (test, last) = map(whole, data.parts)
    assert inputs.flatten().tolist() == list(range(176))
    assert targets.flatten().tolist() == list(range(1, 177))
    assert inputs.shape == (44, 4)
    assert validation.tolist() == [[180, 181, 182, 183], [184, 185, 186, 187]]
    assert test.tolist() == [[190, 191, 192, 193], [194, 195, 196, 197]]
    assert last[-1, -1] == 198
    assert inputs.dtype == targets.dtype == torch.int64
    assert data.classes is None


def test_characters_are_numbered_by_their_code_points():
    data = text_data("äöü bä".encode() * 20, "characters", context=3)
    assert data.classes == (" ", "b", "ä", "ö", "ü")
    inputs, targets = whole(data.train)
    assert inputs[0].tolist() == [2, 3, 4]
    assert targets[0].tolist() == [3, 4, 0]
    assert len(whole(data.test)[0]) == 1  # 5 % of 120 characters, not of 180 bytes


def test_the_score_is_in_bits():
    # a code that gives each of 4 symbols a quarter takes 2 bits; one that is sure takes none
    targets = torch.tensor([[0, 3, 2], [1, 1, 0]])
    uniform = torch.zeros(2, 3, 4)
    assert float(negative_bits(uniform, targets)) == pytest.approx(-2)
    data = text_data(b"abcd" * 500, "characters", context=3)
    assert float(data.loss(uniform, targets)) == pytest.approx(2 * math.log(2))
    sure = 50 * torch.nn.functional.one_hot(targets, 4).float()
    assert float(negative_bits(sure, targets)) == pytest.approx(0, abs=1e-6)
    # three symbols at 1/2, 1/4, 1/4, the first of which comes
    halves = torch.tensor([0.5, 0.25, 0.25]).log().view(1, 1, 3)
    assert float(negative_bits(halves, torch.tensor([[0]]))) == pytest.approx(-1)


def test_a_small_gpt_learns_what_repeats():
    data = text_data(b"abcd" * 500, "characters", context=8)
    torch.manual_seed(0)
    network = gpt_small(vocabulary=4, width=16, layers=1, heads=2, context=8)
    prune = {"sparsity": 0.5, "exclude": ["tokens.weight", "positions.weight"]}
    result = ez.compress(network, data, recipe(train={"learning_rate": 1e-2}, prune=prune))
    # after its first letter all of the text is known; knowing nothing takes 2 bits
    test = result.record.compressed.test
    assert test is not None
    assert -0.5 < test.score < 0


@pytest.mark.parametrize(
    ("text", "tokens", "context", "message"),
    [
        (b"a" * 99, "words", 2, "tokens is 'words'; expected 'characters' or 'bytes'"),
        (b"a" * 99, "bytes", 5, "context is 5; expected 1 to 4 tokens"),
        (b"a" * 99, "bytes", 0, "context is 0; expected 1 to 4"),
        (b"a" * 99, "bytes", 2.0, "context is 2.0"),
        (b"\xff" * 99, "characters", 2, "the text is not UTF-8: .*take tokens = 'bytes'"),
    ],
)
def test_wrong_input_is_explained(text, tokens, context, message):
    with pytest.raises(InputError, match=message):
        text_data(text, tokens, context)


def test_another_text_in_its_place_is_refused(tmp_path):
    path = tmp_path / "shakespeare" / "input.txt"
    path.parent.mkdir()
    for content in (b"", b"To be, or not to be", b"a" * 1_115_394, b"a" * 2_000_000):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"input\.txt is not the text that was published"):
            shakespeare(data_root=tmp_path)


@pytest.fixture
def real() -> Path:
    root = Path(os.environ.get("ELLZERO_DATA", ""))
    if not (root / "shakespeare" / "input.txt").is_file():
        pytest.skip("no shakespeare in ELLZERO_DATA")
    return root


def test_the_real_text(real):
    data = shakespeare(data_root=real)
    assert data.classes is not None
    assert len(data.classes) == 65
    first = "".join(data.classes[code] for code in whole(data.train)[0][0])
    assert first.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    # 1,003,854 characters, 55,770 and 55,770, in windows of 128
    assert [part.examples for part in data.parts] == [7842, 435, 435]
    again = shakespeare(data_root=real, tokens="bytes")
    names = torch.tensor([ord(name) for name in data.classes])
    for part, other in zip(data.parts, again.parts, strict=True):
        assert names[whole(part)[0]].equal(whole(other)[0])  # all of it is ASCII
