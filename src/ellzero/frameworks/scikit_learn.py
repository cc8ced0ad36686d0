"""Sparse networks on tables, as estimators of scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ellzero.errors import InputError, is_number
from ellzero.frameworks.scheme import Scheme
from ellzero.frameworks.sparsifier import Sparsifier
from ellzero.penalties import L0
from ellzero.schedules import Schedule, learning_rate

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"{error}; ellzero.frameworks.scikit_learn needs scikit-learn: "
        "pip install 'ellzero[scikit-learn]'"
    ) from error


class _SparseNetwork(BaseEstimator):
    """What classifier and regressor share: the settings, the training, what it tells of columns."""

    network_: nn.Sequential
    feature_importances_: np.ndarray
    n_iter_: int

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] | int = (100,),
        *,
        sparsity: float = 0.9,
        strength: float = 1e-4,
        prune_at: float = 0.6,
        max_iter: int = 100,
        batch_size: int = 32,
        learning_rate_init: float = 0.005,
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.sparsity = sparsity
        self.strength = strength
        self.prune_at = prune_at
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.random_state = random_state

    def _train(self, x: Any, targets: Tensor, outputs: int, loss: nn.Module) -> None:
        """Train, prune and fine-tune a new network on a table (examples, columns) of float32."""
        sizes = self._checked_sizes()
        scheme = Scheme(
            penalty=L0(self.strength),
            sparsity=self.sparsity,
            prune_at=self.prune_at,
            gradual=Schedule(0, 1, "cubic", after=0.2),
        )
        inputs = torch.tensor(x)
        batches = math.ceil(len(inputs) / self.batch_size)
        steps = self.max_iter * batches
        seed = check_random_state(self.random_state).randint(2**31)
        with torch.random.fork_rng(devices=[]):  # the user's own generator stays as it is
            torch.manual_seed(seed)
            network = _mlp(_standardization(x), [x.shape[1], *sizes, outputs]).eval()
            optimizer = torch.optim.Adam(network.parameters(), fused=True)
            sparsifier = Sparsifier(scheme, network, optimizer, steps)
            order: tuple[Tensor, ...] = ()
            for step in range(steps):
                if step % batches == 0:
                    order = torch.randperm(len(inputs)).split(self.batch_size)
                chosen = order[step % batches]
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(
                        step / steps, peak=self.learning_rate_init, warmup=0.0, decay="cosine"
                    )
                sparsifier.begin_step(step)
                optimizer.zero_grad()
                loss(network(inputs[chosen]), targets[chosen]).backward()
                sparsifier.add_gradient()
                optimizer.step()
            sparsifier.finish()
        self.network_ = network.requires_grad_(False)
        self.n_iter_ = self.max_iter
        self.feature_importances_ = _importances(network)

    def _outputs(self, X: Any) -> Tensor:
        """What the network gives for a table, in float64, so that no batch changes its last bits.

        Shape (examples, outputs).
        """
        check_is_fitted(self)
        x = torch.tensor(validate_data(self, X, dtype=np.float32, reset=False))
        wide = {name: tensor.double() for name, tensor in self.network_.state_dict().items()}
        with torch.no_grad():
            return torch.func.functional_call(self.network_, wide, x.double())

    def _checked_sizes(self) -> list[int]:
        """The hidden layers' sizes.

        Raises:
            InputError: one of the settings that the scheme does not check is out of range.
        """
        given = self.hidden_layer_sizes
        sizes = list(given) if isinstance(given, Sequence) else [given]
        counts = {"max_iter": self.max_iter, "batch_size": self.batch_size}
        counts |= {f"hidden_layer_sizes[{index}]": size for index, size in enumerate(sizes)}
        for name, count in counts.items():
            if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
                raise InputError(f"{name} is {count!r}; expected a whole number >= 1")
        rate = self.learning_rate_init
        if not is_number(rate) or not 0 < rate < math.inf:
            raise InputError(f"learning_rate_init is {rate!r}; expected a finite number > 0")
        return [int(size) for size in sizes]


class SparseClassifier(ClassifierMixin, _SparseNetwork):
    """A classifier of tables by a sparse network, which tells which columns matter.

    A multilayer perceptron with rectified linear units is trained with the l0 penalty and Adam on
    the cross-entropy, pruned to the asked sparsity, and trained on. Columns are standardized within
    the network.

    Args:
        hidden_layer_sizes: units of each hidden layer; none: logistic regression.
        sparsity: fraction of the weights that are zero at the end, in [0, 1).
        strength: of the l0 penalty, >= 0.
        prune_at: after which part of the training all pruning is done, in [0, 1).
        max_iter: epochs.
        batch_size: examples of a step.
        learning_rate_init: of Adam, > 0; it falls to 0 by a cosine.
        random_state: seeds the initial weights and the batches.

    Attributes:
        network_: a `torch.nn.Sequential` in evaluation mode, from raw columns, float32 (N,
            columns), to a logit of each class. It is traced, packed and exported as any other.
        feature_importances_: of each column the sum over all paths to the outputs of the product
            of the weights' magnitudes, for standardized columns, divided by the sum of all. A
            column that has no path has exactly 0; all are 0 where no column has one.
        classes_: the labels.
        n_features_in_, feature_names_in_, n_iter_: as everywhere in scikit-learn.

    Raises:
        InputError: (in `fit`) a setting out of range; scikit-learn's `ValueError` for tables and
            labels that it refuses.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 10))
        >>> y = np.where(X[:, 3] + X[:, 7] > 0, "yes", "no")
        >>> model = SparseClassifier((16,), max_iter=30, random_state=0).fit(X, y)
        >>> sorted(model.feature_importances_.argsort()[-2:].tolist())
        [3, 7]
    """

    classes_: np.ndarray

    def fit(self, X: Any, y: Any) -> Self:
        """Train on a table (examples, columns) and a label each."""
        x, y = validate_data(self, X, y, dtype=np.float32)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self._train(x, torch.tensor(labels), len(self.classes_), nn.CrossEntropyLoss())
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, (examples, classes), in the order of `classes_`."""
        return self._outputs(X).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example."""
        chosen = self._outputs(X).argmax(1).numpy()
        return self.classes_[chosen]


class SparseRegressor(RegressorMixin, _SparseNetwork):
    """A regression of tables by a sparse network, which tells which columns matter.

    As `SparseClassifier`, on the mean squared error of one number. Targets are standardized for the
    training, and the strength means what it does for targets of variance 1.

    Args:
        hidden_layer_sizes: units of each hidden layer; none: linear regression.
        sparsity: fraction of the weights that are zero at the end, in [0, 1).
        strength: of the l0 penalty, >= 0.
        prune_at: after which part of the training all pruning is done, in [0, 1).
        max_iter: epochs.
        batch_size: examples of a step.
        learning_rate_init: of Adam, > 0; it falls to 0 by a cosine.
        random_state: seeds the initial weights and the batches.

    Attributes:
        network_: as of `SparseClassifier`, to the number itself, (N, 1).
        feature_importances_: as of `SparseClassifier`.
        n_features_in_, feature_names_in_, n_iter_: as everywhere in scikit-learn.

    Raises:
        InputError: (in `fit`) as `SparseClassifier`.

    Example:
        >>> from sklearn.datasets import make_regression
        >>> X, y = make_regression(200, 10, n_informative=2, shuffle=False, random_state=0)
        >>> model = SparseRegressor((16,), max_iter=30, random_state=0).fit(X, y)
        >>> sorted(model.feature_importances_.argsort()[-2:].tolist())
        [0, 1]
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Train on a table (examples, columns) and a number each."""
        x, y = validate_data(self, X, y, dtype=np.float32, y_numeric=True)
        numbers = torch.tensor(y, dtype=torch.float64)
        mean, scale = numbers.mean(), numbers.std(correction=0)
        scale = scale if scale > 0 else torch.ones_like(scale)
        targets = ((numbers - mean) / scale).float()[:, None]
        self._train(x, targets, 1, nn.MSELoss())
        last = self.network_[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(scale)
        last.bias.mul_(scale).add_(mean)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The number of each example, (examples,)."""
        return self._outputs(X)[:, 0].numpy()


def _standardization(x: np.ndarray) -> nn.BatchNorm1d:
    """Columns less their mean, divided by their deviation; constant ones become 0."""
    mean = x.mean(0, dtype=np.float64)
    variance = x.var(0, dtype=np.float64)
    layer = nn.BatchNorm1d(x.shape[1], eps=0.0, affine=False)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(torch.tensor(mean))
    layer.running_var.copy_(torch.tensor(np.where(variance > 0, variance, 1.0)))
    return layer


def _mlp(first: nn.Module, sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes, rectified between them."""
    layers: list[nn.Module] = [first]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] * (index > 0) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


def _importances(network: nn.Sequential) -> np.ndarray:
    """Of each column the sum over paths of the product of magnitudes, and 1 in all."""
    paths = None
    for layer in reversed(network):
        if isinstance(layer, nn.Linear):
            magnitudes = layer.weight.double().abs()
            paths = magnitudes.sum(0) if paths is None else paths @ magnitudes
    assert paths is not None
    total = paths.sum()
    return (paths / total if total > 0 else paths).numpy()
