"""What a run comes to: its traced network, how much of it is left, and what it warns of."""

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import ellzero as ez
from c_programs import needs_gcc
from ellzero.data.constant import best_constant
from ellzero.run_folder import read_record
from small import (
    Counted,
    blobs,
    classification,
    convnet,
    images,
    metrics_of,
    mlp,
    recipe,
    regression,
    right_answers,
)

# the traced network


@needs_gcc
def test_c_made_from_a_result_takes_raw_inputs(tmp_path):
    data = images(classes=("left", "right"))
    result = ez.compress(convnet(), data, recipe())
    small = ez.compact(result.trace()).model
    ez.export_c(small, tmp_path, name="net")
    raw = torch.randint(0, 256, (9, 2, 6, 6), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = result.model(raw.float() / 128 - 1)  # as images() are preprocessed
    assert torch.allclose(ez.compile_c(tmp_path)(raw.float()), expected, atol=1e-4)
    assert small.graph.classes == ("left", "right")


def test_a_result_of_data_without_preprocessing_is_traced_too():
    result = ez.compress(mlp(), classification(), recipe())
    network = result.trace()
    x = torch.randn(5, 6)
    assert torch.equal(network(x), result.model(x))
    assert (network.graph.preprocess, network.graph.classes) == (None, None)


# all parameters


class Scaled(nn.Module):
    """A linear layer under two names, and a scale that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(6, 3)
        self.tied = self.last

    def forward(self, x):
        return self.last((x.view(-1, 3, 2) * self.scale).flatten(1))


def test_what_is_not_selected_counts_as_left():
    model = Scaled()
    model.last.bias.requires_grad_(False)
    result = ez.compress(model, classification(), recipe(prune={"nonzeros": 2}))
    # 18 weights, tied but counted once, 3 frozen biases and a scale of 2
    kept = sum(int((p != 0).sum()) for p in result.model.parameters())
    assert kept == 2 + 3 + 2
    record = result.record
    assert (record.weights, record.nonzeros) == (18, 2)
    assert (record.parameters, record.parameters_left) == (18 + 3 + 2, 7)
    assert record.parameter_ratio == pytest.approx(23 / 7)
    assert record.nonzero_ratio == 9


def test_a_zero_that_is_not_selected_counts_as_left():
    # a bias of zero is a bias; only selected weights can go
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.bias").zero_()
    told = recipe(train={"epochs": 0}, finetune={"epochs": 0}, prune={"nonzeros": 44})
    record = ez.compress(model, classification(), told, reference=model).record
    assert (record.parameters, record.parameters_left) == (144 + 19, 44 + 19)


# living nonzeros


def as_it_is(model: nn.Module, **tables) -> ez.Result:
    """The result of a run that trains nothing, so that the weights are those of the model."""
    told = recipe(
        train={"epochs": 0}, finetune={"epochs": 0}, **{"prune": {"sparsity": 0.0}, **tables}
    )
    return ez.compress(model, classification(), told, reference=model)


def with_dead_ends() -> nn.Sequential:
    """Inputs 1 and 4 are not read; unit 0 is not read either, though it reads four inputs."""
    model = mlp()
    with torch.no_grad():
        model.get_parameter("0.weight")[:, [1, 4]] = 0
        model.get_parameter("2.weight")[:, 0] = 0
    return model


def test_living_nonzeros_and_inputs_left(tmp_path):
    record = as_it_is(with_dead_ends()).record
    assert record.nonzeros == 4 * 16 + 3 * 15
    assert record.nonzero_ratio == 144 / (4 * 16 + 3 * 15)
    assert record.living_nonzeros == 4 * 15 + 3 * 15
    assert (record.inputs, record.inputs_left) == (6, (0, 2, 3, 5))
    assert record.living_note is None


def test_of_living_nonzeros_the_selected_ones_count():
    told = {"sparsity": 0.0, "include": ["2.weight", "2.bias"]}
    record = as_it_is(with_dead_ends(), prune=told).record
    assert record.living_nonzeros == 3 * 15 + 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel])
@pytest.mark.parametrize("within", [False, True])
def test_what_lives_of_a_wrapped_network(wrap, within):
    model: Any = with_dead_ends()
    if within:
        model[0] = wrap(model[0])
    record = as_it_is(model if within else wrap(model)).record
    assert record.living_nonzeros == 4 * 15 + 3 * 15
    assert record.inputs_left == (0, 2, 3, 5)


class WithHelp(nn.Module):
    """A network with a layer that only a training would use, and a vector of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.network = with_dead_ends()
        self.help = nn.Linear(16, 5)
        self.vector = nn.Parameter(torch.ones(7))

    def forward(self, x):
        return self.network(x)


def test_a_matrix_that_the_traced_network_does_not_have_is_dead():
    weights = {"sparsity": 0.0, "include": ["default", "vector"]}
    record = as_it_is(WithHelp(), prune=weights).record
    assert record.nonzeros == 4 * 16 + 3 * 15 + 16 * 5 + 7
    assert record.living_nonzeros == 4 * 15 + 3 * 15 + 7


class Undecided(nn.Module):
    """A network that no export can trace: which way it goes depends on its input's values."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x) if float(x.sum()) < 1e9 else x


def test_a_network_that_cannot_be_traced_says_so(tmp_path):
    result = ez.compress(Undecided(mlp()), classification(), recipe(), folder=tmp_path)
    record = result.record
    assert read_record(tmp_path) == record
    assert (record.status, record.nonzeros) == ("done", 36)
    assert (record.living_nonzeros, record.inputs, record.inputs_left) == (None, None, None)
    assert "Undecided cannot be traced" in str(record.living_note)
    assert not any("same for every" in text for text in record.warnings)
    with pytest.raises(ez.InputError, match="Undecided cannot be traced"):
        result.trace()


# what means nothing


def warned(*arguments, **options) -> tuple[ez.Result, list[str]]:
    """A result, and all that was warned of on the way, which must point at this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = ez.compress(*arguments, **options)
    own = [w for w in caught if issubclass(w.category, ez.EllzeroWarning)]
    assert {w.filename for w in own} <= {__file__}
    return result, [str(w.message) for w in own]


def about(texts: Iterable[str], *words: str) -> list[str]:
    return [text for text in texts if all(word in text for word in words)]


def test_all_warnings_are_in_the_record_once():
    result, texts = warned(mlp(), classification(), recipe(prune={"nonzeros": 1}))
    assert sorted(texts) == sorted(result.record.warnings)
    assert len(set(texts)) == len(texts)
    assert about(texts, "train data has 60 examples, fewer than 100")


def test_what_is_known_of_the_data_is_said_before_anything_is_done(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ez.EllzeroWarning, match="fewer than 100"):
            ez.compress(mlp(), classification(), recipe(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_known_of_the_data_later_is_said_at_the_end():
    class Unknown(Dataset):
        def __len__(self):
            return 300

        def __getitem__(self, index):
            return torch.eye(6)[index % 3], torch.tensor(index % 3)

    x, y = blobs(120, 2)
    data = ez.Data(Unknown(), (x, y), classes=("a", "b", "c", "d"))
    told = recipe(prune={"sparsity": 0.5})
    result, texts = warned(mlp(4), data, told)
    assert about(texts, "validation data has no example of class d")
    assert about(texts, "train data has no example of class d")
    assert sorted(texts) == sorted(result.record.warnings)


def test_a_layer_without_a_weight_and_outputs_that_are_constant():
    result, texts = warned(mlp(), classification(), recipe(prune={"nonzeros": 1}))
    empty = [n for n in ("0.weight", "2.weight") if not result.model.get_parameter(n).any()]
    count = {"0.weight": 96, "2.weight": 48}[empty[0]]
    (text,) = about(texts, f"{empty[0]} has 0 of {count} weights left")
    with torch.no_grad():
        outputs = result.model(100 * torch.randn(1000, 6))
    constant = [i for i in range(3) if (outputs[:, i] == outputs[0, i]).all()]
    if len(constant) == 3:
        assert text.endswith(", so the output is the same for every input")
    else:
        assert text.endswith("the same for every input: " + ", ".join(map(str, constant)))


def test_outputs_of_a_network_that_cannot_be_traced():
    model = mlp()
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    (text,) = about(as_it_is(Undecided(model)).record.warnings, "2.weight has 0 of 48 weights")
    assert text.endswith(", so the output is the same for every input")


def test_a_budget_that_is_met_against_a_worse_reference(tmp_path):
    budget = {"budget": {"max_accuracy_drop": 3.0}, "rounds": 3}
    told = recipe(train={"epochs": 8}, finetune={"epochs": 8}, prune=budget)
    result, texts = warned(mlp(), classification(), told, folder=tmp_path)
    reference = ez.load(tmp_path / "reference.safetensors", mlp())
    before, after = (right_answers(m, blobs(45, 2)) / 45 for m in (reference, result.model))
    assert after > before + (before * (1 - before) / 45) ** 0.5, "choose a shorter reference"
    assert about(texts, "worse than", f"accuracy {before:.3f} against {after:.3f}")
    # without a budget nothing was promised
    plain = recipe(train={"epochs": 8}, finetune={"epochs": 8})
    assert not about(warned(mlp(), classification(), plain)[1], "worse than")


def test_a_reference_that_knows_nothing():
    poor = mlp(seed=5)
    right = right_answers(poor, blobs(45, 2))
    assert right <= 15, "a third of the examples is of the largest class"
    _, texts = warned(mlp(), classification(), recipe(), reference=poor)
    assert about(texts, "hardly better", f"accuracy {right / 45:.3f}", "largest class 0.333")
    assert not about(warned(mlp(), classification(), recipe())[1], "hardly better")


def test_a_pruned_network_that_knows_nothing_any_more():
    gone = recipe(reference={"epochs": 20}, prune={"sparsity": 0.99}, finetune={"epochs": 0})
    result, texts = warned(mlp(), classification(), gone)
    right = right_answers(result.model, blobs(45, 2))
    assert right <= 21, "as test_flags has it"
    assert about(texts, "compressed network is hardly better", f"accuracy {right / 45:.3f}")


def test_labels_that_a_loss_ignores_are_no_class_and_do_not_count():
    x, y = blobs(100, 2)
    y = torch.tensor([-100] * 60 + [0] * 25 + [1] * 15)
    y[60:] = y[60:].flip(0)
    data = ez.Data(blobs(120, 1), (x, y), loss=nn.CrossEntropyLoss(ignore_index=-100))
    poor = mlp(seed=5)
    right = right_answers(poor, (x, y))
    assert right <= 25 + 2 * 40 * (0.625 * 0.375 / 40) ** 0.5
    _, texts = warned(mlp(), data, recipe(), reference=poor)
    assert about(texts, "hardly better", f"accuracy {right / 40:.3f}", "largest class 0.625")


class CountedCalls(ez.Preprocess):
    """Preprocessing that counts how often it is called."""

    calls: ClassVar[int] = 0

    def __call__(self, x):
        type(self).calls += 1
        return super().__call__(x)


def test_what_was_counted_is_not_read_again_for_the_best_constant_answer():
    counted = Counted(blobs(45, 2))
    data = ez.Data(blobs(60, 1), counted)
    ez.evaluate(mlp(), data)
    before = sum(counted.taken)
    assert best_constant(data, 1000) == (15 / 45, 45)
    assert sum(counted.taken) == before
    x, y = torch.randn(45, 6), torch.arange(90.0).view(45, 2)
    expected = (pytest.approx(-float(y.var(0, correction=0).mean())), 45)
    assert best_constant(ez.Data((x, y), (x, y), preprocess=CountedCalls(2.0)), 1000) == expected
    assert CountedCalls.calls == 0
    data = ez.Data((x, y), TensorDataset(x, y), preprocess=CountedCalls(2.0))
    assert best_constant(data, 1000) == expected


def test_a_reference_that_explains_nothing_of_a_regression():
    frozen = {"epochs": 1, "learning_rate": 1e-30}
    _, texts = warned(mlp(1), regression(), recipe(reference=frozen))
    _, y = next(regression().validation.batches(45, torch.device("cpu")))
    assert about(texts, "hardly better", f"variance of the targets {y.var(correction=0):.3g}")
    good = recipe(reference={"epochs": 60})
    assert not about(warned(mlp(1), regression(), good)[1], "reference is hardly better")
    own = regression(score=lambda outputs, y: -(outputs - y).abs().mean())
    assert not about(warned(mlp(1), own, recipe(reference=frozen))[1], "hardly better")


def test_a_reference_of_one_epoch_under_a_budget():
    budget = {"budget": {"max_loss_increase": 0.5}, "rounds": 2}
    told = recipe(reference={"epochs": 1}, prune=budget)
    assert about(warned(mlp(), classification(), told)[1], "trained for one epoch only")
    told = recipe(reference={"epochs": 1})
    assert not about(warned(mlp(), classification(), told)[1], "one epoch")


def test_a_reference_whose_loss_still_fell(tmp_path):
    budget = {"budget": {"max_loss_increase": 0.5}, "rounds": 2}
    told = recipe(reference={"epochs": 3, "decay": "constant"}, prune=budget)
    _, texts = warned(mlp(), classification(), told, folder=tmp_path)
    losses = [m["validation_loss"] for m in metrics_of(tmp_path) if m["stage"] == "reference"]
    assert losses[2] < 0.95 * losses[1], "choose a rate at which it still falls"
    assert about(texts, "still fell", f"from {losses[1]:.3g} to {losses[2]:.3g}")


def test_a_failed_run_keeps_what_was_known(tmp_path):
    data = classification(loss=lambda outputs, y: outputs.sum() * torch.nan)
    with pytest.raises(ez.DivergenceError):
        ez.compress(mlp(), data, recipe(), folder=tmp_path)
    assert about(read_record(tmp_path).warnings, "train data has 60 examples")
