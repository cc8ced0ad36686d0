"""Tasks: the loss and the score of each by hand, over a whole set; which task data are of."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.data.tasks import TASKS
from ellzero.errors import InputError
from ellzero.training import evaluation
from ellzero.training.evaluation import evaluate_each
from judged import IGNORED, LABEL_LOGITS, LABELS, TOKENS, WORDS, Given, judged
from small import blobs, classification, mlp, recipe


@pytest.fixture(params=[1, 2, 1000], ids="batches of {}".format)
def batch_size(request: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The figures of a set are the same in whatever batches it is read."""
    monkeypatch.setattr(evaluation, "BATCH", request.param)
    return request.param


def nll(*logits: float) -> float:
    """The cross-entropy where the first class is the right one."""
    return math.log(sum(map(math.exp, logits))) - logits[0]


TOKEN_LOSSES = [nll(2, 0, 0), nll(1, 0, 0), nll(0, 0, 3), nll(1, 0, 0), nll(2, 0, 0)]


@pytest.mark.parametrize("task", ["tokens", None])
def test_tokens(task, batch_size):
    found = judged(TOKENS, WORDS, task=task, score=None)
    assert found.score == 4 / 5
    assert found.loss == pytest.approx(sum(TOKEN_LOSSES) / 5, rel=1e-5)


def test_weights_of_tokens(batch_size):
    found = judged(TOKENS, WORDS, torch.tensor([1.0, 2.0, 4.0]), task="tokens")
    weights = [1, 1, 2, 2, 4]
    loss = sum(w * x for w, x in zip(weights, TOKEN_LOSSES, strict=True)) / 10
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert found.score == pytest.approx(8 / 10)


def test_segmentation(batch_size):
    pixels = TOKENS.movedim(-1, 1)[..., None]  # (3, 3 classes, 2 high, 1 wide)
    found = judged(pixels, WORDS[..., None])
    assert found.score == 4 / 5
    assert found.loss == pytest.approx(sum(TOKEN_LOSSES) / 5, rel=1e-5)


def test_a_batch_without_a_label_that_counts_has_no_loss_and_no_gradient():
    logits = TOKENS[:1].clone().requires_grad_()
    loss = TASKS["tokens"].loss(logits, torch.full((1, 2), IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_set_without_a_label_that_counts_is_refused():
    with pytest.raises(InputError, match="no example of the validation data counts"):
        judged(TOKENS, torch.full((3, 2), IGNORED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_multi_label(dtype, batch_size):
    found = judged(LABEL_LOGITS, LABELS.to(dtype), task="multi-label")
    # there are: both of 2 and 0.5; missed: -1 and 0; wrong: 1
    assert found.score == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, 1.0, 1.0, -3.0, -0.5, 0.0)]
    assert found.loss == pytest.approx(sum(softplus) / 6, rel=1e-5)


def test_weights_of_several_labels(batch_size):
    found = judged(LABEL_LOGITS, LABELS, torch.tensor([1.0, 3.0]), task="multi-label")
    assert found.score == pytest.approx(2 * 4 / (2 * 4 + 1 + 4))
    first, second = ([math.log1p(math.exp(x)) for x in row] for row in ((-2, 1, 1), (-3, -0.5, 0)))
    assert found.loss == pytest.approx((sum(first) / 3 + 3 * sum(second) / 3) / 4, rel=1e-5)


def test_no_label_at_all_scores_0():
    found = judged(torch.full((2, 3), -1.0), torch.zeros(2, 3), task="multi-label")
    assert found.score == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_regression(dtype, batch_size):
    truth = torch.tensor([[0, 4], [1, 1], [2, 0]]).to(dtype)
    guess = torch.tensor([[1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])  # squares 1 + 4, 0, 4
    found = judged(guess, truth, task="regression")
    assert found == pytest.approx((-9 / 6, 9 / 6))
    weighted = judged(guess, truth, torch.tensor([3.0, 0.0, 1.0]), task="regression")
    assert weighted.loss == pytest.approx((3 * 5 / 2 + 4 / 2) / 4)


def test_weights_of_classification(batch_size):
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = judged(logits, torch.tensor([0, 0, 0]), torch.tensor([0.5, 2.0, 0.0]))
    assert found.score == pytest.approx(0.5 / 2.5)
    assert found.loss == pytest.approx((0.5 * nll(2, 0) + 2 * nll(0, 1)) / 2.5, rel=1e-5)


# which task


@pytest.mark.parametrize(
    ("outputs", "targets", "task"),
    [
        ((4, 3), (4,), "classification"),
        ((4, 3, 7), (4, 7), "segmentation"),
        ((4, 7, 3), (4, 7), "tokens"),
        ((4, 3, 5, 6), (4, 5, 6), "segmentation"),
        ((4, 5, 6, 3), (4, 5, 6), "tokens"),
    ],
)
def test_the_task_of_labels_follows_from_the_outputs_shape(outputs, targets, task):
    examples = (torch.rand(outputs), torch.zeros(targets, dtype=torch.long))
    data = ez.Data(examples, examples)
    data.check_fit(Given())
    assert data.task is TASKS[task]
    assert data.scores_accuracy
    assert data.class_count == 3


def test_what_fits_two_tasks_has_to_be_told():
    examples = (torch.rand(4, 5, 5), torch.zeros(4, 5, dtype=torch.long))
    with pytest.raises(InputError, match="say task='segmentation' or task='tokens'"):
        ez.Data(examples, examples).check_fit(Given())
    ez.Data(examples, examples, task="tokens").check_fit(Given())
    with pytest.raises(InputError, match="say task='multi-label'"):
        ez.Data((LABEL_LOGITS, LABELS), (LABEL_LOGITS, LABELS)).check_fit(Given())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"task": "clasification"}, "did you mean classification"),
        ({"task": "classification", "y": torch.rand(12)}, "classification expects labels"),
        ({"task": "multi-label", "y": torch.tensor([[0, 2]] * 12)}, "other numbers than 0 and 1"),
        ({"task": "tokens", "y": torch.rand(12, 2)}, "tokens expects labels"),
        ({"loss": "mode"}, "loss is 'mode'; expected a function, or 'model'"),
        ({"score": "accuracy"}, "score is 'accuracy'; expected"),
    ],
)
def test_what_is_of_no_task_is_refused(options, expected):
    x, y = blobs(12, 1)
    y = options.pop("y", y)
    with pytest.raises(InputError, match=expected):
        ez.Data((x, y), (x, y), **options)


def test_targets_of_a_dataset_are_checked_batch_by_batch():
    y = torch.tensor([[0, 1]] * 5 + [[0, 3]])
    data = ez.Data(TensorDataset(torch.zeros(6, 2), y), (LABEL_LOGITS, LABELS), task="multi-label")
    batches = data.train.batches(3, torch.device("cpu"))
    next(batches)
    with pytest.raises(InputError, match="train targets hold other numbers than 0 and 1"):
        next(batches)


# beside a loss of one's own


def own(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets) / 2


@pytest.mark.parametrize("loss", [own, nn.MultiMarginLoss(), nn.CrossEntropyLoss(reduction="none")])
def test_without_a_task_there_is_no_score_by_default(loss):
    with pytest.raises(InputError, match=r"give score=\.\.\., a task=\.\.\., or score='loss'"):
        ez.Data(blobs(9, 1), blobs(9, 2), loss=loss)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (nn.CrossEntropyLoss, "the loss is the class CrossEntropyLoss; give an object of it"),
        (nn.CrossEntropyLoss(reduction="sum"), "CrossEntropyLoss sums over a batch"),
        (nn.CrossEntropyLoss(reduction="none"), r"the loss of a batch is \(20,\); expected a"),
        (lambda outputs, targets: 1.0, "the loss of a batch is float; expected a 0-d tensor"),
    ],
)
def test_a_loss_of_ones_own_is_a_mean(loss, expected):
    x, y = blobs(20, 1)
    with pytest.raises(InputError, match=expected):
        ez.evaluate(mlp(), ez.Data((x, y), (x, y), loss=loss, task="classification"))


def test_tokens_last_beside_a_loss_of_ones_own_do_not_score_by_chance():
    # the classes in dimension 1 would be the tokens: 2 of 3 labels would be "right"
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    logits = nn.functional.one_hot(torch.tensor([[0, 1, 2]]), 3).float()
    targets = torch.tensor([[0, 1, 2]])
    with pytest.raises(InputError, match="there is no score by default"):
        judged(logits, targets, loss=loss)
    assert judged(logits, targets, loss=loss, task="tokens").score == 1


def test_the_loss_as_score():
    x, y = blobs(9, 1)
    found = ez.evaluate(mlp(), ez.Data((x, y), (x, y), loss=own, score="loss"))
    assert found.loss == pytest.approx(nn.functional.cross_entropy(mlp()(x), y).item() / 2)
    assert found.score == -found.loss
    assert not ez.Data((x, y), (x, y), score="loss").scores_accuracy


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, nn.CrossEntropyLoss()])
def test_torchs_cross_entropy_has_the_accuracy_of_what_it_counts(loss, batch_size):
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    found = judged(logits, torch.tensor([0, 0, IGNORED]), loss=loss)
    assert found.score == 1 / 2
    assert found.loss == pytest.approx((nll(2, 0) + nll(0, 1)) / 2, rel=1e-5)


def test_torchs_cross_entropy_with_weights_of_the_classes(batch_size):
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0]), ignore_index=5)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 0.0], [3.0, 0.0]])
    found = judged(logits, torch.tensor([0, 1, 1, 5]), loss=loss)
    assert found.loss == pytest.approx((nll(2, 0) + 4 * nll(1, 0) + 4 * nll(0, 1)) / 9, rel=1e-5)
    assert found.score == 2 / 3


def test_probabilities_of_classes_have_no_accuracy():
    with pytest.raises(InputError, match="there is no score by default"):
        judged(torch.rand(3, 2), torch.rand(3, 2), loss=nn.functional.cross_entropy)


# what else goes by the accuracy


def test_each_label_that_counts_is_right_or_not():
    data = ez.Data((TOKENS, WORDS), (TOKENS, WORDS))
    evaluation, right = evaluate_each(Given(), data, "validation")
    assert right is not None
    assert right.tolist() == [True, True, False, True, True]
    assert evaluation.error_percent == pytest.approx(20)


class Tagger(nn.Module):
    """Logits of three tags at each of four places."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Embedding(6, 8), nn.Linear(8, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.network(tokens)


def tagged(count: int, seed: int) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(6, (count, 4), generator=torch.Generator().manual_seed(seed))
    tags = tokens % 3
    tags[::4, 0] = IGNORED
    return tokens, tags


def test_a_budget_of_the_accuracy_of_tokens(tmp_path):
    data = ez.Data(tagged(200, 1), tagged(120, 2), tagged(100, 3), classes=("a", "b", "c"))
    told = recipe(
        train={"learning_rate": 0.05}, reference={"epochs": 8},
        finetune={"learning_rate": 0.05, "epochs": 8},
        prune={
            "budget": {"max_accuracy_drop": 30.0}, "rounds": 4,
            "include": ["default", "network.0.weight"],
        },
    )  # fmt: skip
    result = ez.compress(Tagger(), data, told, folder=tmp_path)
    tokens, tags = tagged(100, 3)
    with torch.no_grad():
        right = (result.model(tokens).argmax(-1) == tags).sum() / (tags != IGNORED).sum()
    test = result.record.compressed.test
    assert test is not None
    assert test.score == pytest.approx(float(right))
    assert result.record.test_error_percent == pytest.approx(100 * (1 - float(right)))


def test_a_loader_counts_like_tensors():
    whole = ez.Data((TOKENS, WORDS), (TOKENS, WORDS))
    loader = DataLoader(TensorDataset(TOKENS, WORDS), 2)
    found = ez.evaluate(Given(), ez.Data(loader, loader))
    assert found == pytest.approx(ez.evaluate(Given(), whole))


def test_the_accuracy_is_exact_over_many_batches():
    # means of batches in float32 would differ in the last digits
    x, y = blobs(3000, 4)
    data = ez.Data((x, y), (x, y))
    with torch.no_grad():
        right = int((mlp()(x).argmax(1) == y).sum())
    assert ez.evaluate(mlp(), data).score == right / 3000
    assert data.task is classification().task
