"""The exponential average of the weights: by hand, against torch's own, and wherever it counts."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ellzero as ez
from ellzero.training.average import Average
from ellzero.training.seeds import seed_epoch
from small import (
    blobs,
    classification,
    convnet,
    dropout_mlp,
    images,
    metrics_of,
    mlp,
    nonzero_weights,
    recipe,
    tensors_equal,
)

DECAY, RATE = 0.8, 0.05
TRAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": RATE,
    "warmup": 0.0,
    "decay": "constant",
    "penalty": {},
    "ema_decay": DECAY,
}


# by itself


def test_the_average_by_hand():
    w, b = torch.tensor([2.0, 0.0]), torch.tensor(4.0)
    average = Average(0.5, {"w": w, "b": b})
    average.update()  # nothing has moved
    w.copy_(torch.tensor([4.0, 8.0]))
    b.zero_()
    average.update()  # (2 + 4) / 2, (0 + 8) / 2, (4 + 0) / 2
    average.update()  # (3 + 4) / 2, (4 + 8) / 2, (2 + 0) / 2
    assert average.tensors["w"].tolist() == [3.5, 6.0]
    assert average.tensors["b"].item() == 1.0
    with average.in_place():
        assert w.tolist() == [3.5, 6.0]
    assert w.tolist() == [4.0, 8.0]
    average.put()
    assert (w.tolist(), b.item()) == ([3.5, 6.0], 1.0)


def test_weights_are_put_back_after_an_error():
    w = torch.zeros(2)
    average = Average(0.5, {"w": w.add_(2)})
    w.zero_()
    with pytest.raises(KeyboardInterrupt), average.in_place():
        raise KeyboardInterrupt
    assert w.tolist() == [0.0, 0.0]


def test_steps_too_small_for_half_precision_are_not_lost():
    w = torch.ones(1, dtype=torch.bfloat16)
    average = Average(0.999, {"w": w})
    w.fill_(2)
    for _ in range(100):
        average.update()
    # 2 - 0.999^100; each step is a tenth of what bfloat16 can show
    assert average.tensors["w"].item() == pytest.approx(2 - 0.999**100, rel=1e-5)
    average.put()
    assert w.item() == pytest.approx(2 - 0.999**100, rel=1e-2)


# in a run


def by_hand(model: nn.Module, epochs: int) -> list[nn.Module]:
    """The averaged network after each epoch of the training, by torch's AveragedModel."""
    x, y = blobs(60, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, fused=True)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    average.update_parameters(model)  # the first one copies
    networks = []
    for epoch in range(epochs):
        seed_epoch(0, "train", 0, epoch)
        for batch in torch.randperm(60).split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            average.update_parameters(model)
        networks.append(mlp())
        networks[-1].load_state_dict(average.module.state_dict())
    return networks


def test_the_average_is_what_is_validated_written_and_pruned(tmp_path):
    told = recipe(train={**TRAIN, "epochs": 3}, prune={"nonzeros": 30}, finetune={"epochs": 0})
    result = ez.compress(mlp(), classification(), told, reference=mlp(), folder=tmp_path)
    expected = by_hand(mlp(), 3)
    data = classification()
    lines = [line for line in metrics_of(tmp_path) if line["stage"] == "train"]
    for line, network in zip(lines, expected, strict=True):
        evaluation = ez.evaluate(network, data)
        assert (line["validation_score"], line["validation_loss"]) == tuple(evaluation)
    trained = ez.load(tmp_path / "trained.safetensors", mlp())
    assert tensors_equal(trained, expected[-1])
    ez.prune(expected[-1], nonzeros=30)
    assert tensors_equal(result.model, expected[-1])


def test_the_reference_is_the_best_average(tmp_path):
    keys = {**TRAIN, "epochs": 4}
    told = recipe(reference=keys, finetune={"epochs": 0})
    ez.compress(mlp(), classification(), told, folder=tmp_path)
    reference = ez.load(tmp_path / "reference.safetensors", mlp())
    lines = [line for line in metrics_of(tmp_path) if line["stage"] == "reference"]
    best = max(lines, key=lambda line: (line["validation_score"], -line["validation_loss"]))
    assert tuple(ez.evaluate(reference, classification())) == (
        best["validation_score"],
        best["validation_loss"],
    )


@pytest.mark.parametrize(
    "prune",
    [
        {"nonzeros": 20},
        {"nonzeros": 20, "rounds": 3},
        {"nonzeros": 20, "gradual": {"after": 0.0, "until": 0.6}},
        {"sparsity": 0.75, "scope": "layer", "gradual": {}},
    ],
)
def test_pruned_weights_are_exactly_zero_in_the_average(prune, tmp_path):
    told = recipe(train={"ema_decay": 0.9}, prune=prune)
    result = ez.compress(dropout_mlp(), classification(), told, folder=tmp_path)
    count = prune.get("nonzeros", 36)
    assert nonzero_weights(result.model) == result.masks.nonzeros == count
    rounds = [line for line in metrics_of(tmp_path) if line["round"] == prune.get("rounds", 1)]
    assert {line["nonzeros"] for line in rounds} == {count}


def test_gradual_pruning_goes_by_the_average(tmp_path):
    # all is pruned in the last of two epochs: the average of the first one says which
    prune = {"nonzeros": 30, "gradual": {"after": 0.4, "until": 0.5}}
    keys = {**TRAIN, "epochs": 2}
    told = recipe(train=keys, prune=prune, finetune={"epochs": 0})
    result = ez.compress(mlp(), classification(), told, reference=mlp())
    (average,) = by_hand(mlp(), 1)
    expected = ez.prune(average, nonzeros=30)
    assert all(mask.equal(expected[name]) for name, mask in result.masks.items())


@pytest.mark.parametrize("gates", ["hard_concrete", "pmmp"])
def test_of_gates_their_own_parameters_are_averaged_too(gates, tmp_path):
    table = {"penalty": {}, "gates": {gates: {"strength": 0.01}}, "learning_rate": 0.05}
    folders = []
    for decay in (0.0, 1e-9, 0.9):
        told = recipe(train={**table, "ema_decay": decay}, finetune={"ema_decay": 0})
        folders.append(tmp_path / str(decay))
        ez.compress(mlp(), classification(), told, reference=mlp(), folder=folders[-1])
    none, tiny, some = (
        [line for line in metrics_of(folder, "seconds") if line["stage"] == "train"]
        for folder in folders
    )
    # a decay of next to nothing averages next to nothing: float32 says the same
    for line, other in zip(none, tiny, strict=True):
        assert {k: pytest.approx(v, rel=1e-5) for k, v in line.items() if k != "stage"} == {
            k: v for k, v in other.items() if k != "stage"
        }
    assert [line["penalty"] for line in some] != [line["penalty"] for line in none]
    assert [line["validation_loss"] for line in some] != [line["validation_loss"] for line in none]


def test_a_budget_is_met_by_the_average():
    prune = {"budget": {"max_accuracy_drop": 10.0}, "rounds": 4}
    told = recipe(train={"ema_decay": 0.5}, prune=prune)
    data = classification()
    result = ez.compress(mlp(), data, told)
    reached = ez.evaluate(result.model, data)
    assert reached == result.record.compressed.validation
    assert result.record.reference.validation.score - reached.score <= 0.1


def test_buffers_are_those_of_the_network_that_trains():
    keys = {"epochs": 2, "batch_size": 8}
    told = {"prune": {"sparsity": 0.0}, "finetune": {"epochs": 0}}
    plain, averaged = (
        ez.compress(
            convnet(), images(), recipe(train={**keys, "ema_decay": d}, **told), reference=convnet()
        ).model
        for d in (0.0, 0.9)
    )
    plain_buffers, buffers = dict(plain.named_buffers()), dict(averaged.named_buffers())
    assert all(buffer.equal(plain_buffers[name]) for name, buffer in buffers.items())
    assert not tensors_equal(plain, averaged)


def test_frozen_weights_are_pruned_and_not_averaged():
    model = mlp()
    frozen = dict(model.named_parameters())["0.weight"].requires_grad_(False)
    prune = {"nonzeros": 40, "gradual": {}}
    result = ez.compress(model, classification(), recipe(train={"ema_decay": 0.9}, prune=prune))
    left = dict(result.model.named_parameters())["0.weight"]
    assert result.masks.nonzeros == 40
    assert torch.equal(left, torch.where(left == 0, left, frozen))
