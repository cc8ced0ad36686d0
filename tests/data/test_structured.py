"""Structured examples: inputs, targets and outputs that are tuples, dictionaries or objects."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import ellzero as ez
from ellzero.errors import InputError
from small import blobs, mlp, recipe, tensors_equal

CPU = torch.device("cpu")


def tokens(count: int, seed: int) -> dict[str, Tensor]:
    """Words, a mask of those that are there, and as the label which word comes first."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 6, (count, 5), generator=generator)
    lengths = torch.randint(2, 6, (count, 1), generator=generator)
    mask = (torch.arange(5) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids[:, 0] % 3}


@dataclass
class Output:
    """What libraries give: an object with names."""

    logits: Tensor
    loss: Tensor | None = None


class Encoder(nn.Module):
    """The first word counts twice in a masked mean, from which a layer makes three logits."""

    def __init__(self, gives: str = "tensor") -> None:
        super().__init__()
        self.gives = gives
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(6, 8)
            self.last = nn.Linear(8, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        states = self.words(input_ids) * attention_mask.unsqueeze(-1)
        logits = self.last((states.sum(1) + states[:, 0]) / attention_mask.sum(1, keepdim=True))
        if self.gives == "tensor":
            return logits
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        if self.gives == "dictionary":
            return {"logits": logits} if loss is None else {"logits": logits, "loss": loss}
        return Output(logits, loss)


TRAIN, VALIDATION = tokens(120, 1), tokens(100, 2)


class Examples(Dataset[Any]):
    """A dictionary each, as libraries have them."""

    def __init__(self, whole: dict[str, Tensor]) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole["labels"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: x[index] for name, x in self.whole.items()}


def pair(whole: dict[str, Tensor]) -> Any:
    return {n: x for n, x in whole.items() if n != "labels"}, whole["labels"]


def positional(whole: dict[str, Tensor]) -> Any:
    return (whole["input_ids"], whole["attention_mask"]), whole["labels"]


KINDS = {
    "tuple": positional,
    "pair": pair,
    "dictionary": dict,
    "arrays": lambda whole: {name: x.numpy() for name, x in whole.items()},
    "dataset": Examples,
    "loader": lambda whole: DataLoader(Examples(whole), 16),
    "batches": lambda whole: [
        {name: x[k : k + 16] for name, x in whole.items()}
        for k in range(0, len(whole["labels"]), 16)
    ],
}


@pytest.mark.parametrize("gives", ["tensor", "dictionary", "object"])
@pytest.mark.parametrize("kind", KINDS)
def test_figures_by_hand(kind, gives):
    model = Encoder(gives)
    data = ez.Data(KINDS[kind](TRAIN), KINDS[kind](VALIDATION))
    data.check_fit(model)
    with torch.no_grad():
        logits = Encoder()(VALIDATION["input_ids"], VALIDATION["attention_mask"])
        loss = nn.functional.cross_entropy(logits, VALIDATION["labels"])
    found = ez.evaluate(model, data)
    assert found.loss == pytest.approx(float(loss), rel=1e-5)
    right = sum(int(row.argmax() == y) for row, y in zip(logits, VALIDATION["labels"], strict=True))
    assert found.score == right / 100


def told(**tables: Any) -> ez.Recipe:
    prune = {"sparsity": 0.5, "include": ["default", "words.weight"]}
    return recipe(prune=prune, **tables)


def test_named_inputs_train_the_same_weights_as_positional_ones(tmp_path):
    runs = [
        ez.compress(Encoder(gives), ez.Data(kind(TRAIN), kind(VALIDATION)), told())
        for kind, gives in ((positional, "tensor"), (pair, "tensor"), (dict, "dictionary"))
    ]
    for other in runs[1:]:
        assert tensors_equal(other.model, runs[0].model)
        assert other.record.validation_score == runs[0].record.validation_score
        assert other.record.living_nonzeros == runs[0].record.living_nonzeros is not None


def test_named_inputs_go_through_a_run_and_all_that_comes_after(tmp_path):
    data = ez.Data(TRAIN, VALIDATION, tokens(100, 3))
    result = ez.compress(Encoder(), data, told(), folder=tmp_path / "run")
    network = result.trace()
    inputs, _ = pair(VALIDATION)
    with torch.no_grad():
        expected = result.model(**inputs)
        assert torch.allclose(network(**inputs), expected, atol=1e-6)
    assert list(network.graph.inputs) == ["input_ids", "attention_mask"]
    assert ez.evaluate(network, data) == pytest.approx(ez.evaluate(result.model, data))
    small = ez.compact(network).model
    chosen = ez.select(small, include=["default", "words.weight"])
    quantized = ez.quantize(small, bits=4, weights=chosen)
    before = ez.evaluate(small, data)
    quantized.finetune(data, epochs=1, progress=False)
    assert not before.better_than(ez.evaluate(small, data))
    ez.pack(small, tmp_path / "net.ellz")
    again = ez.load(tmp_path / "net.ellz")
    assert torch.equal(again(**inputs), small(**inputs))
    with pytest.raises(InputError, match="2 inputs"):
        ez.quantize(network, activations=8, data=data)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_networks_own_loss(precision):
    one, other = (
        ez.compress(
            Encoder("dictionary"), ez.Data(TRAIN, VALIDATION, task="classification", loss=loss),
            told(precision=precision),
        )
        for loss in ("model", None)
    )  # fmt: skip
    if precision == "float32":
        assert tensors_equal(one.model, other.model)
        assert one.record.compressed == other.record.compressed
    assert one.record.validation_score > 0.6


def test_the_networks_own_loss_needs_to_be_there_and_to_be_that_of_the_task():
    with pytest.raises(InputError, match="there is no score by default"):
        ez.Data(TRAIN, VALIDATION, loss="model")
    data = ez.Data(TRAIN, VALIDATION, loss="model", score="loss")
    with pytest.raises(InputError, match="without a loss"):
        ez.evaluate(Encoder(), data)
    found = ez.evaluate(Encoder("object"), data)
    assert found.score == -found.loss

    class Shifted(nn.Module):
        """Predicts the next token, as a causal language model that shifts its labels itself."""

        def forward(self, x: Tensor, labels: Tensor) -> Output:
            logits = nn.functional.one_hot(x, 6).float() * 3
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
            return Output(logits, loss)

    x = TRAIN["input_ids"]
    data = ez.Data((x, x), (x, x), loss="model", task="tokens")
    with pytest.raises(InputError, match="compares the targets in another way"):
        data.check_fit(Shifted())
    ez.Data((x, x), (x, x), loss="model", score="loss").check_fit(Shifted())


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(4)

    def forward(self, x: Tensor) -> Any:
        both = self.body(x)
        return SimpleNamespace(kind=both[:, :3], size=both[:, 3])


def test_several_targets_by_name():
    x, kind = blobs(60, 1)
    examples = {"x": x, "kind": kind, "size": x[:, 0]}

    def loss(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
        of_kind = nn.functional.cross_entropy(outputs.kind, targets["kind"])
        return of_kind + nn.functional.mse_loss(outputs.size, targets["size"])

    def score(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
        return (outputs.kind.argmax(1) == targets["kind"]).float().mean()

    keys = ("kind", "size")
    data = ez.Data(examples, examples, targets=keys, loss=loss, score=score)
    result = ez.compress(TwoHeads(), data, recipe())
    model = result.model
    with torch.no_grad():
        outputs = model(x)
    by_hand = {"kind": kind, "size": x[:, 0]}
    found = result.record.compressed.validation
    assert found.loss == pytest.approx(float(loss(outputs, by_hand)), rel=1e-5)
    assert found.score == pytest.approx(float(score(outputs, by_hand)))
    refused: list[dict[str, Any]] = [{}, {"loss": loss}, {"score": score}, {"task": "regression"}]
    for options in refused:
        with pytest.raises(InputError, match="targets of an example are several tensors"):
            ez.Data(examples, examples, targets=keys, **options)


def test_several_targets_in_a_tuple():
    x, kind = blobs(12, 1)

    def loss(outputs: Any, targets: tuple[Tensor, Tensor]) -> Tensor:
        return (outputs.size - targets[1]).abs().mean() + 0 * targets[0].sum()

    examples = (x, (kind, x[:, 0]))
    found = ez.evaluate(TwoHeads(), ez.Data(examples, examples, loss=loss, score="loss"))
    with torch.no_grad():
        assert found.loss == pytest.approx(float((TwoHeads()(x).size - x[:, 0]).abs().mean()))


def test_outputs_without_logits_are_refused():
    x, y = blobs(12, 1)
    with pytest.raises(InputError, match="gives SimpleNamespace without logits"):
        ez.Data((x, y), (x, y)).check_fit(TwoHeads())


# what a loss and a score of one's own see


class Weighed:
    """A loss that is a module in all but name; it weighs examples by an input."""

    def __call__(self, outputs: Tensor, targets: Tensor, inputs: Tensor) -> Tensor:
        each = nn.functional.cross_entropy(outputs, targets, reduction="none")
        return (each * inputs[:, 0]).mean()


class AsModule(nn.Module):
    def forward(self, outputs: Tensor, targets: Tensor, *, inputs: Tensor) -> Tensor:
        return Weighed()(outputs, targets, inputs)


@pytest.mark.parametrize(
    "loss", [Weighed(), AsModule(), lambda o, t, inputs: Weighed()(o, t, inputs)]
)
def test_a_loss_and_a_score_may_see_the_inputs(loss):
    x, y = blobs(30, 1)
    data = ez.Data((x, y), (x, y), loss=loss, score=lambda o, t, inputs: inputs.sum())
    with torch.no_grad():
        each = [-mlp()(x)[i].log_softmax(0)[y[i]] * x[i, 0] for i in range(30)]
    found = ez.evaluate(mlp(), data)
    assert found.loss == pytest.approx(float(sum(each)) / 30, rel=1e-5)
    assert found.score == pytest.approx(float(x.sum()))
    assert ez.compress(mlp(), data, recipe()).record.status == "done"


def test_a_first_parameter_called_inputs_is_no_third_one():
    # torch's own losses call the outputs "input"
    def loss(inputs: Tensor, weights: Tensor) -> Tensor:
        return nn.functional.cross_entropy(inputs, weights)

    x, y = blobs(30, 1)
    found = ez.evaluate(mlp(), ez.Data((x, y), (x, y), loss=loss, score="loss"))
    assert found.loss == pytest.approx(nn.functional.cross_entropy(mlp()(x), y).item())


# what is refused


@pytest.mark.parametrize(
    ("examples", "options", "expected"),
    [
        (TRAIN, {"targets": "label"}, "train data has no 'label'; it has input_ids, .*: targets="),
        (TRAIN, {"weights": "w"}, r"weights is 'w', which no part of the data has"),
        (Examples({"x": torch.zeros(3, 2), "labels": torch.arange(3)}), {"targets": "y"}, "no 'y'"),
        ({**TRAIN, "labels": TRAIN["labels"][1:]}, {}, "has 120 inputs and 119 targets"),
        ({**TRAIN, "text": ["a"] * 120}, {}, "train inputs 'text' are <U1; expected numbers"),
        (pair(TRAIN), {"weights": "w"}, "train examples are no dictionaries"),
        (
            {**TRAIN, "y": TRAIN["labels"]},
            {},
            "validation inputs are .*; expected .*, y, as the first",
        ),
        (dict(reversed(TRAIN.items())), {}, "validation inputs are .*; expected attention_mask, "),
        ((torch.zeros(3, 2), torch.arange(3)), {}, "expected one tensor, as the first ones are"),
    ],
)
def test_dictionaries_that_are_refused(examples, options, expected):
    with pytest.raises(InputError, match=expected):
        ez.Data(examples, VALIDATION, **options)


def test_a_network_that_does_not_take_these_names_is_refused():
    with pytest.raises(InputError, match=r"Sequential cannot take the data, .*'input_ids'"):
        ez.Data(TRAIN, VALIDATION).check_fit(mlp())
