"""Weights of examples: in training, in evaluation, in what is said of a result; what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.data.constant import best_constant
from ellzero.errors import InputError
from small import blobs, mlp, recipe, regression, tensors_equal

X, Y = blobs(30, 1)
W = torch.arange(30.0) % 4
KEYED = {"input": X, "labels": Y, "w": W}
KINDS: dict[str, Any] = {
    "tensors": (X, Y, W),
    "list": [X, Y, W],
    "dataset": TensorDataset(X, Y, W),
    "loader": DataLoader(TensorDataset(X, Y, W), 7),
    "dictionary": KEYED,
}


def data(kind: str = "tensors", **options: Any) -> ez.Data:
    keyed = {"weights": "w"} if kind == "dictionary" else {}
    return ez.Data(KINDS[kind], KINDS[kind], **keyed, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_figures_by_hand(kind):
    with torch.no_grad():
        logits = mlp()(X)
    losses = [float(-logits[i].log_softmax(0)[Y[i]]) for i in range(30)]
    right = [float(logits[i].argmax() == Y[i]) for i in range(30)]
    found = ez.evaluate(mlp(), data(kind))
    for figure, each in ((found.loss, losses), (found.score, right)):
        weighted = sum(float(w) * x for w, x in zip(W, each, strict=True)) / float(W.sum())
        assert figure == pytest.approx(weighted, rel=1e-5)


def test_equal_weights_train_what_none_do():
    told = recipe(precision="float32", train={"mixup": 0.3})
    for weight in (1.0, 0.25):
        weighted = ez.Data((X, Y, torch.full((30,), weight)), (X, Y))
        one, other = (
            ez.compress(mlp(), d, told).model for d in (weighted, ez.Data((X, Y), (X, Y)))
        )
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(a, b, atol=2e-3)


def test_an_example_of_weight_0_is_not_trained_on():
    # in batches of all examples what has no weight does not matter, whatever it is
    told = recipe(
        train={"batch_size": 30}, reference={"batch_size": 30}, finetune={"batch_size": 30}
    )
    wrong = torch.where(W > 0, Y, (Y + 1) % 3)
    one, other = (ez.compress(mlp(), ez.Data((X, y, W), (X, Y)), told) for y in (Y, wrong))
    assert tensors_equal(one.model, other.model)
    assert not tensors_equal(one.model, ez.compress(mlp(), ez.Data((X, Y), (X, Y)), told).model)


def test_the_training_loss_is_the_weighted_mean():
    frozen = recipe(train={"epochs": 0}, finetune={"epochs": 0}, reference={
        "epochs": 1, "learning_rate": 1e-30, "batch_size": 7, "penalty": {}})  # fmt: skip
    losses = []

    def note(metrics: ez.EpochMetrics) -> None:
        losses.append(metrics.train_loss)

    ez.compress(mlp(), data(), frozen, callback=note)
    assert losses[0] == pytest.approx(ez.evaluate(mlp(), data()).loss, rel=1e-5)


def test_accumulated_batches_count_by_their_weights():
    tables = {"learning_rate": 0.01, "optimizer": "sgd", "momentum": 0.0, "penalty": {}}
    whole, parts = (
        ez.compress(
            mlp(), data(),
            recipe(
                reference={"epochs": 1},
                train={**tables, "batch_size": size, "gradient_accumulation_steps": steps},
                finetune={"epochs": 0},
            ),
        ).model
        for size, steps in ((30, 1), (10, 3))
    )  # fmt: skip
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_loss_of_ones_own_takes_them_or_they_are_refused():
    def loss(outputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return (each * weights).sum() / weights.sum()

    found = ez.evaluate(mlp(), data("loader", loss=loss, task="classification"))
    assert found == pytest.approx(ez.evaluate(mlp(), data()))
    with pytest.raises(InputError, match="weights, which the loss does not know: give it a third"):
        data(loss=nn.functional.cross_entropy)
    with pytest.raises(InputError, match="weights, which the loss does not know: leave them out"):
        data(loss="model", score="loss")


def test_a_score_of_ones_own_may_take_them():
    def score(outputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        assert weights is not None
        return (outputs[:, 0] * weights).sum() / weights.sum()

    with torch.no_grad():
        expected = float((mlp()(X)[:, 0] * W).sum() / W.sum())
    found = ez.evaluate(mlp(), data("loader", score=score))
    assert found.score == pytest.approx(expected, rel=1e-5)
    unweighted = ez.evaluate(mlp(), data("loader", score=lambda o, t: o[:, 0].mean()))
    assert unweighted.score == pytest.approx(mlp()(X)[:, 0].mean().item(), rel=1e-4)


def test_a_dictionary_may_lack_the_weights_of_another():
    plain, weighted = {"x": X, "labels": Y}, {"x": X, "labels": Y, "w": W}
    data = ez.Data(weighted, plain, plain, weights="w")
    assert data.train.first.weights == W[:1]
    assert data.validation.first.weights is None
    assert list(data.validation.first.inputs) == ["x"]


def test_the_best_constant_answer_is_weighted_too():
    shares = [float(W[k == Y].sum() / W.sum()) for k in range(3)]
    for kind in ("tensors", "loader"):
        assert best_constant(data(kind), 7) == (pytest.approx(max(shares)), round(float(W.sum())))
    x, y = torch.randn(30, 2), torch.randn(30, 2)
    mean = (W[:, None] * y).sum(0) / W.sum()
    variance = ((W[:, None] * (y - mean) ** 2).sum(0) / W.sum()).mean()
    numbers = ez.Data((x, y), (x, y, W))
    assert best_constant(numbers, 7) == (pytest.approx(-float(variance), rel=1e-5), 30)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (-W, "train weights are below 0 or NaN"),
        (W * torch.nan, "train weights are below 0 or NaN"),
        (W / 0, "train weights are below 0 or NaN"),
        (1 / W, "train weights hold NaN or inf"),
        (0 * W, "train weights are all 0"),
        (W[1:], "train data has 29 weights and 30 targets"),
        (W[:, None], r"weights are \(30, 1\); expected a number for each example"),
    ],
)
def test_weights_that_are_refused(weights, expected):
    with pytest.raises(InputError, match=expected):
        ez.Data((X, Y, weights), (X, Y))


def test_a_set_of_weight_0_is_refused():
    loader = DataLoader(TensorDataset(X, Y, 0 * W), 7)
    with pytest.raises(InputError, match="no example of the validation data counts"):
        ez.evaluate(mlp(), ez.Data((X, Y), loader))


def test_the_helpers_still_have_no_weights():
    assert regression().train.first.weights is None
