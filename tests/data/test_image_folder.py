"""Images of the user's: folders and archives, their layout, decoding, and what is refused."""

import gzip
import io
import lzma
import random
import struct
import sys
import tarfile
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ellzero as ez
from ellzero.data import image_file
from ellzero.data import image_folder as module
from ellzero.data.image_folder import image_folder
from ellzero.errors import EllzeroWarning, InputError
from ellzero.factories import build_data
from small import recipe

Files = dict[str, bytes]


def encoded(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    """An image file of pixels (H, W, 3) or (H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def noise(seed: int, height: int = 4, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tree(*names: str) -> Files:
    """Image files of these names; the pixels of each are noise of its place in the list."""
    return {name: encoded(noise(seed)) for seed, name in enumerate(names)}


def classes(count: int, parts: tuple[str, ...] = ("",)) -> list[str]:
    """Names of `count` images of each of two classes, in each of the parts."""
    return [f"{part}{label}/{i}.png" for part in parts for label in "ab" for i in range(count)]


def unpack(files: Files, folder: Path) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def write(tmp_path) -> Callable[[Files], Path]:
    return lambda files: unpack(files, tmp_path / "images")


def whole(part) -> tuple[torch.Tensor, torch.Tensor]:
    """All raw images and labels of a part, in order."""
    assert part is not None
    inputs, targets = part._source.whole
    return inputs, targets


def as_archive(files: Files, kind: str, path: Path) -> Path:
    if kind == "folder":
        return unpack(files, path)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, content in files.items():
                file.writestr(name, content)
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    compress = {"tar": bytes, "tar.gz": gzip.compress, "tar.xz": lzma.compress}[kind]
    path.write_bytes(compress(buffer.getvalue()))
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "tar.xz"])
def test_a_folder_and_its_archives_are_the_same_data(kind, tmp_path):
    files = {f"flowers/{name}": content for name, content in tree(*classes(10)).items()}
    expected = image_folder(path=unpack(files, tmp_path / "images"))
    names = list(files)
    random.Random(0).shuffle(names)  # as an archive may have them
    path = as_archive({name: files[name] for name in names}, kind, tmp_path / "archive")
    data = image_folder(path=path)
    assert data.preprocess == expected.preprocess
    assert data.classes == expected.classes == ("a", "b")
    for part, other in zip(data.parts, expected.parts, strict=True):
        assert all(map(torch.equal, whole(part), whole(other)))


def test_every_image_keeps_its_label_and_is_in_one_part(write):
    names = classes(50)
    data = image_folder(path=write(tree(*names)), validation=0.2, test=0.1, augment={"crop": 0.2})
    assert [part._augment for part in data.parts] == [ez.Augment(crop=0.2), None, None]
    assert [part.examples for part in data.parts] == [70, 20, 10]
    seen = []
    for part in data.parts:
        images, labels = whole(part)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert labels.bincount().tolist() == [len(labels) // 2] * 2
        for image, label in zip(images, labels, strict=True):
            (seed,) = (
                seed for seed in range(100) if (noise(seed) == image.permute(1, 2, 0).numpy()).all()
            )
            assert names[seed].startswith("ab"[label])
            seen.append(seed)
    assert sorted(seen) == list(range(100))


def test_channels_are_standardized_by_the_training_images_alone(write):
    files = tree(*classes(5, ("train/", "test/")))
    bright = np.full((4, 5, 3), 255, np.uint8)
    data = image_folder(path=write({**files, "test/a/9.png": encoded(bright)}), validation=0.2)
    pixels = whole(data.train)[0].double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    assert data.preprocess is not None
    np.testing.assert_allclose(data.preprocess.scale, 1 / pixels.std(1), rtol=1e-9)
    np.testing.assert_allclose(data.preprocess.shift, -pixels.mean(1) / pixels.std(1), rtol=1e-9)


@pytest.mark.parametrize("above", ["", "images/", "one/two/"])
@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_folders_of_parts(above, validation, write):
    names = [f"{above}{name}" for name in classes(2, ("train/", "test/", f"{validation}/"))]
    data = image_folder(path=write(tree(*names)))
    # the seeds of `tree`, in the order of the names
    for part, seeds in zip(data.parts, (range(4), range(8, 12), range(4, 8)), strict=True):
        images, labels = whole(part)
        expected = np.stack([noise(seed).transpose(2, 0, 1) for seed in seeds])
        assert np.array_equal(images.numpy(), expected)
        assert labels.tolist() == [0, 0, 1, 1]


def test_only_the_parts_that_are_missing_are_taken_from_the_training_images(write):
    path = write(tree(*classes(10, ("train/",)), *classes(3, ("test/",))))
    data = image_folder(path=path, validation=0.4, test=0.9)
    assert [part.examples for part in data.parts] == [12, 8, 6]


def test_there_need_be_no_test_images(write):
    data = image_folder(path=write(tree(*classes(10))), test=0)
    assert data.test is None
    assert [part.examples for part in data.parts] == [18, 2]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((*classes(1), "3.png"), r"the image '3\.png' is in no folder of a class"),
        ((*classes(1), "c/deep/3.png"), r"the image 'c/deep/3\.png' is in no folder of a class"),
        (
            classes(1, ("train/", "tests/")),
            r"'tests/a/0\.png' is in no .* expected CLASS/IMAGE, or only",
        ),
        (("train/0.png", "test/0.png"), r"'test/0\.png' is in no .* expected test/CLASS/IMAGE$"),
        ((*classes(1, ("train/", "test/")), "test/c/0.png"), "class 'c' in its test part alone"),
        (("train/a/0.png", "test/a/0.png"), "has one class alone, 'a'"),
        (("a/0.png", "a/1.png"), r"'a/0\.png' is in no folder of a class"),
        (("a/.hidden.png", "a/1.txt"), r"has no images; expected files that end in \.jpg"),
    ],
)
def test_a_layout_that_is_none(names, expected, write):
    with warnings.catch_warnings(), pytest.raises(InputError, match=expected):
        image_folder(path=write(tree(*names)))


def test_other_files_are_left_out_and_said(write):
    files = tree(*classes(10), "a/deep/x.gif")
    others = ("README", "a/1.txt", "b/Thumbs.db", ".DS_Store", "a/._0.png")
    path = write({**files, **dict.fromkeys(others, b"")})
    expected = r"4 files are no images .*: 'README', 'a/1\.txt', 'a/deep/x\.gif', \.\.\.$"
    with pytest.warns(EllzeroWarning, match=expected) as caught:
        data = image_folder(path=path)
    assert caught[0].filename == __file__
    assert sum(part.examples or 0 for part in data.parts) == 20


def with_image(content: bytes, name: str = "a/0.png") -> Files:
    """A folder of ten black images of each class, and one of these contents."""
    black = encoded(np.zeros((4, 5, 3), np.uint8))
    return {**dict.fromkeys(classes(10), black), name: content}


def first(path: Path, **options) -> np.ndarray:
    """The pixels (H, W, C) of the image at a/0."""
    images, _ = whole(image_folder(path=path, validation=0.01, test=0, **options).train)
    return images[0].permute(1, 2, 0).numpy()


@pytest.fixture
def alone(tmp_path) -> Callable[..., np.ndarray]:
    """What a file becomes among others of the same size, as pixels (H, W, C)."""

    def alone(content: bytes, ending: str = "png", **options) -> np.ndarray:
        names = [f"{label}/{i}.{ending}" for label in "ab" for i in range(2)]
        return first(unpack(dict.fromkeys(names, content), tmp_path / "images"), **options)

    return alone


@pytest.mark.parametrize(
    ("format", "ending"),
    [("PNG", "png"), ("BMP", "BMP"), ("PPM", "ppm"), ("WEBP", "webp"), ("PNG", "jpg")],
)
def test_lossless_formats_are_read_to_the_bit_whatever_they_are_called(format, ending, alone):
    content = encoded(noise(0), format, **{"lossless": True} if format == "WEBP" else {})
    assert np.array_equal(alone(content, ending), noise(0))


def test_jpeg_files_are_read_to_within_their_loss(alone):
    smooth = np.indices((16, 24)).sum(0)[..., None] * np.array([1, 2, 3]) + 40
    pixels = alone(encoded(smooth.astype(np.uint8), "JPEG", quality=95), "jpeg")
    assert abs(pixels.astype(int) - smooth).max() < 12


def test_grey_images_are_weighed_as_the_eye_does(alone):
    pixels = alone(encoded(noise(0)), grey=True)
    assert pixels.shape == (4, 5, 1)
    # ITU-R 601-2
    expected = noise(0) @ np.array([0.299, 0.587, 0.114])
    assert abs(pixels[..., 0] - expected).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_images_of_other_kinds_become_rgb(mode, alone):
    red_and_white = np.zeros((4, 5, 3), np.uint8)
    red_and_white[:, :2], red_and_white[:, 2:, 0] = 255, 255
    buffer = io.BytesIO()
    image = Image.fromarray(red_and_white).convert(mode, dither=Image.Dither.NONE)
    image.save(buffer, "JPEG" if mode == "CMYK" else "PNG", quality=100)
    pixels = alone(buffer.getvalue())
    assert pixels.shape == (4, 5, 3)
    assert (pixels[0, 0] > 250).all()
    is_grey = mode in ("1", "L", "LA")
    assert (pixels[0, 4].max() - pixels[0, 4].min() < 5) == is_grey


def test_a_picture_is_turned_as_its_camera_says(alone):
    exif = Image.Exif()
    exif[0x0112] = 6  # "the 0th row is the right-hand side": turn by 90 degrees, clockwise
    pixels = alone(encoded(noise(0), exif=exif))
    assert np.array_equal(pixels, np.rot90(noise(0), -1))


def test_the_other_views_in_a_cameras_file_do_not_count(alone):
    buffer = io.BytesIO()
    views = [Image.fromarray(np.full((4, 5, 3), value, np.uint8)) for value in (200, 10)]
    views[0].save(buffer, "MPO", save_all=True, append_images=views[1:])
    assert (alone(buffer.getvalue(), "jpg") == 200).all()


def test_images_are_cut_to_one_size_around_their_middle(alone):
    pixels = noise(0, 6, 12)
    assert np.array_equal(alone(encoded(pixels), size=6), pixels[:, 3:9])
    assert np.array_equal(alone(encoded(pixels), size=[6, 10]), pixels[:, 1:11])


def test_images_are_scaled_to_cover_a_size(write):
    halves = np.zeros((20, 40, 3), np.uint8)
    halves[:, 20:] = 200
    tall = halves.transpose(1, 0, 2)
    path = write(
        with_image(encoded(halves), "a/00.png") | {"b/00.png": encoded(np.ascontiguousarray(tall))}
    )
    images, _ = whole(image_folder(path=path, size=10, validation=0.01, test=0).train)
    assert images.shape[1:] == (3, 10, 10)
    wide = next(image for image in images if image.max() and image[0, 0, 0] != image[0, 0, 9])
    tall = next(image for image in images if image.max() and image[0, 0, 0] != image[0, 9, 0])
    # the edge becomes one between two pixels, or is blurred over the next two
    assert (wide[..., :4] == 0).all()
    assert (wide[..., 6:] == 200).all()
    assert torch.equal(tall, wide.transpose(1, 2))


def test_images_of_two_sizes_are_named(write):
    path = write(with_image(encoded(noise(0, 4, 6)), "b/3.png"))
    expected = r"'a/0\.png' has 4 x 5 pixels and 'b/3\.png' has 4 x 6 .*; give size = \[4, 5\]"
    with pytest.raises(InputError, match=expected):
        image_folder(path=path)


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animated(format: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(noise(seed)) for seed in range(3)]
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


REFUSED = {
    "text": (b"a text that was named so", "is no image of JPEG, PNG, BMP, PPM, WEBP"),
    "nothing": (b"", "is no image of"),
    "another format": (encoded(noise(0), "GIF"), "is no image of"),
    "16 bits": (png(5, 4, 16, 0, (b"\0" + bytes(10)) * 4), "grey pixels of more than 8 bits"),
    "16 bits of PGM": (b"P5 5 4 65535\n" + bytes(40), "grey pixels of more than 8 bits"),
    "floating": (b"Pf 5 4 -1.0\n" + bytes(80), "grey pixels of more than 8 bits"),
    "animated PNG": (animated("PNG"), "is animated; expected one picture"),
    "animated WebP": (animated("WEBP"), "is animated; expected one picture"),
    "JPEG cut short": (encoded(noise(0, 40, 50), "JPEG")[:-200], "cannot be decoded: .*truncated"),
    "PNG cut short": (encoded(noise(0, 40, 50))[:-2000], "cannot be decoded: "),
    "bomb": (png(100_000, 100_000, 8, 2, b""), "cannot be decoded: .*10000000000 pixels"),
    "smaller bomb": (png(8_001, 10_000, 8, 2, b""), "10000 x 8001 pixels; .* most 80,000,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_is_named(case, write):
    content, expected = REFUSED[case]
    path = write(with_image(content))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"images: 'a/0\.png' (has )?(declares )?{expected}"):
        image_folder(path=path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "PPM"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_images_raise_no_other_error(format, tmp_path):
    decode = image_file.Decoder(tmp_path, 4, False)
    whole = encoded(noise(0, 16, 16), format, exif=Image.Exif())
    generator = random.Random(0)
    for _ in range(150):
        length = generator.choice((len(whole), generator.randrange(len(whole))))
        changed = bytearray(whole[:length])
        for _ in range(generator.randrange(4)):
            if changed:
                changed[generator.randrange(min(len(changed), 200))] = generator.randrange(256)
        with suppress(InputError):
            assert decode("x.jpg", bytes(changed)).shape == (3, 4, 4)


def test_more_than_the_memory_allowed_is_refused(write, monkeypatch):
    path = write(tree(*classes(10)))
    monkeypatch.setattr(module, "_MOST_DECODED", 20 * 60)
    image_folder(path=path)
    monkeypatch.setattr(module, "_MOST_DECODED", 20 * 60 - 1)
    with pytest.raises(InputError, match="take more than 0 GiB of memory; give a smaller size"):
        image_folder(path=path)


def test_files_and_pixels_are_not_all_kept(tmp_path):
    names = [f"{label}/{i}.bmp" for label in "ab" for i in range(200)]
    bitmaps = {name: encoded(noise(seed, 64, 64), "BMP") for seed, name in enumerate(names)}
    path = as_archive(bitmaps, "tar", tmp_path / "archive")
    pixels = len(bitmaps) * 64 * 64 * 3
    module.read_images(path)
    tracemalloc.start()
    module.read_images(path)
    # the bytes that grow, of which a quarter may be moved; tensors are torch's
    assert tracemalloc.get_traced_memory()[1] < 1.5 * pixels
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"path": 3}, "path is 3; expected the name of a folder or archive"),
        ({"path": "nowhere"}, "nowhere is no folder and no file"),
        ({"size": 0}, r"size is 0; expected \[height, width\] or one number"),
        ({"size": [4]}, r"size is \[4\]; expected"),
        ({"size": [4, 5.0]}, r"size is \[4, 5\.0\]; expected"),
        ({"size": "4"}, "size is '4'; expected"),
        ({"size": True}, "size is True; expected"),
        ({"grey": 1}, "grey is 1; expected true or false"),
        ({"validation": 1.0}, r"validation is 1\.0; expected a fraction"),
        ({"test": -0.1}, r"test is -0\.1; expected a fraction"),
        ({"validation": 0}, "validation data is empty"),
        ({"validation": 0.9}, r"validation = 0\.9 and test = 0\.1 leave none for training"),
        ({"augment": {"speed": 0.1}}, "augment has no 'speed' for this data"),
    ],
)
def test_options_of_the_wrong_kind(options, expected, write):
    path = write(tree(*classes(10)))
    with pytest.raises(InputError, match=expected):
        image_folder(**{"path": path, **options})


def test_without_pillow_the_message_says_what_to_install(write, monkeypatch):
    path = write(tree(*classes(10)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"pip install 'ellzero\[data\]'"):
        image_folder(path=path)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 2 * 3, 2))


def test_a_recipe_compresses_a_network_on_a_folder_of_images(write):
    dark_and_bright = {
        name: encoded(noise(seed) // 2 + np.uint8(128 * (name[0] == "b")))
        for seed, name in enumerate(classes(50))
    }
    changes = {"shift": 1, "flip": True, "noise": 5.0}
    half = recipe(
        data={"name": "image-folder", "path": str(write(dark_and_bright)), "augment": changes},
        prune={"sparsity": 0.5},
    )
    result = ez.compress(network(), build_data(half.data), half)
    assert result.record.test_error_percent == 0
