"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 grey pixels."""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ellzero.data.data import Data
from ellzero.data.folders import Published, find_files
from ellzero.data.idx import read_idx
from ellzero.data.split import require_validation, train_and_validation
from ellzero.errors import InputError
from ellzero.preprocess import Preprocess

DIGITS = tuple("0123456789")
"""Class names of MNIST."""

DIGITS_SCALING = Preprocess(scale=1 / (255 * 0.3081), shift=-0.1307 / 0.3081)
"""Pixels 0..255 to mean 0 and deviation 1, by the training images' mean and deviation."""

CLOTHES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
"""Class names of Fashion-MNIST."""

CLOTHES_SCALING = Preprocess(scale=1 / (255 * 0.3530), shift=-0.2860 / 0.3530)
"""As `DIGITS_SCALING`, for Fashion-MNIST."""

_TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
_TRAIN_LABELS = "train-labels-idx1-ubyte.gz"
_TEST_IMAGES = "t10k-images-idx3-ubyte.gz"
_TEST_LABELS = "t10k-labels-idx1-ubyte.gz"

MNIST = Published(
    name="mnist",
    url="https://ossci-datasets.s3.amazonaws.com/mnist/",
    sha256={
        _TRAIN_IMAGES: "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        _TRAIN_LABELS: "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        _TEST_IMAGES: "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        _TEST_LABELS: "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
)
"""MNIST's original files, on a mirror."""

FASHION_MNIST = Published(
    name="fashion-mnist",
    url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    sha256={
        _TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        _TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        _TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        _TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
)
"""Fashion-MNIST's original files, where their authors put them."""

_TRAIN, _TEST = 60_000, 10_000


def mnist(
    *, data_root: Path | str | None = None, validation: int = 5000, base_url: str | None = None
) -> Data:
    """MNIST: handwritten digits, 55,000 for training, 5,000 for validation, 10,000 for testing.

    Images are uint8 (N, 1, 28, 28), labels int64 (N,). The validation images are a stratified part
    of the 60,000 training images, the same in every run.

    Args:
        data_root: the folder that holds `mnist/`; see `ellzero.data.folders.find_files`.
        validation: number of validation images.
        base_url: the address to download from, in place of a public mirror.

    Raises:
        InputError: the files are not found or damaged, or `validation` leaves no image to one side.

    Source:
        LeCun, Cortes, Burges: http://yann.lecun.com/exdb/mnist. Mean 0.1307 and deviation 0.3081
        of the training pixels, as fractions of 255.
    """
    return _load(MNIST, DIGITS, DIGITS_SCALING, data_root, validation, base_url)


def fashion_mnist(
    *, data_root: Path | str | None = None, validation: int = 5000, base_url: str | None = None
) -> Data:
    """Fashion-MNIST: pictures of clothes in the format and numbers of `mnist`.

    Args:
        data_root: the folder that holds `fashion-mnist/`; see `ellzero.data.folders.find_files`.
        validation: number of validation images.
        base_url: the address to download from, in place of the authors'.

    Raises:
        InputError: the files are not found or damaged, or `validation` leaves no image to one side.

    Source:
        Xiao, Rasul, Vollgraf: Fashion-MNIST, 2017, https://arxiv.org/abs/1708.07747. Mean 0.2860
        and deviation 0.3530 of the training pixels, as fractions of 255.
    """
    return _load(FASHION_MNIST, CLOTHES, CLOTHES_SCALING, data_root, validation, base_url)


def _load(
    published: Published,
    classes: tuple[str, ...],
    scaling: Preprocess,
    data_root: Path | str | None,
    validation: int,
    base_url: str | None,
) -> Data:
    require_validation(validation, _TRAIN)
    if base_url is not None:
        published = dataclasses.replace(published, url=base_url)
    files = find_files(published, data_root)
    examples = as_tensors(*_read(files[_TRAIN_IMAGES], files[_TRAIN_LABELS], _TRAIN))
    return Data(
        *train_and_validation(*examples, validation),
        as_tensors(*_read(files[_TEST_IMAGES], files[_TEST_LABELS], _TEST)),
        preprocess=scaling,
        classes=classes,
    )


def _read(images_path: Path, labels_path: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 28, 28) and labels (count,), both uint8."""
    images, labels = read_idx(images_path, (count, 28, 28)), read_idx(labels_path, (count,))
    if labels.max() > 9:
        raise InputError(f"{labels_path} has the label {labels.max()}; expected labels 0 to 9")
    return images, labels


def as_tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """Images (N, 28, 28) and labels (N,) as a network takes them: uint8 (N, 1, 28, 28), int64."""
    return torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
