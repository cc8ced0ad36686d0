"""Recipes in several processes: what comes of them is what one process makes."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ellzero as ez
from ellzero.errors import EllzeroWarning
from ranks import RankError
from small import Counted, accuracy, blobs, classification, convnet, images, metrics_of, mlp, recipe

SGD = {"optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ALL_FORMS = {
    "l0": {"strength": 1e-4},
    "l1": {"strength": 1e-3, "form": "decoupled"},
    "l2": {"strength": 1e-2, "form": "loss"},
}


def _weighted() -> ez.Data:
    parts = []
    for count, seed in ((61, 1), (45, 2), (30, 3)):
        x, y = blobs(count, seed)
        parts.append((x, y, torch.linspace(0, 2, count).flip(0)))
    return ez.Data(*parts)


def _with_ignored_labels() -> ez.Data:
    """Tokens of which unlike many count in each example."""
    parts = []
    for count, seed in ((61, 1), (45, 2), (30, 3)):
        x, y = blobs(count * 4, seed)
        y = torch.where(torch.arange(len(y)) % 7 < 3, -100, y)
        parts.append((x.view(count, 4, 6), y.view(count, 4)))
    return ez.Data(*parts, task="tokens")


def _own_loss() -> ez.Data:
    return classification(loss=nn.functional.cross_entropy)


def _dataset() -> ez.Data:
    return ez.Data(Counted(blobs(61, 1)), Counted(blobs(45, 2)), Counted(blobs(30, 3)))


def _loader() -> ez.Data:
    train = DataLoader(Counted(blobs(61, 1)), batch_size=10, shuffle=True)
    return ez.Data(train, blobs(45, 2), blobs(30, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], ez.Data], dict[str, Any]]] = {
    "momentum": (mlp, classification, {"train": SGD}),
    "Adam": (mlp, classification, {}),
    "weights": (mlp, _weighted, {"train": SGD}),
    "ignored labels": (mlp, _with_ignored_labels, {"train": SGD}),
    "a loss of one's own": (mlp, _own_loss, {"train": SGD}),
    "Dataset": (mlp, _dataset, {"train": SGD}),
    "DataLoader": (mlp, _loader, {"train": SGD}),
    "accumulation": (mlp, _weighted, {"train": {**SGD, "gradient_accumulation_steps": 3}}),
    # of which a third process has none
    "batches of two": (
        mlp,
        classification,
        {"train": {**SGD, "batch_size": 2, "learning_rate": 0.01}},
    ),
    "all forms, clipping": (
        mlp,
        classification,
        {"train": {**SGD, "penalty": ALL_FORMS, "clip_grad_norm": 0.5, "ema_decay": 0.8}},
    ),
    "gradual, distillation": (
        mlp,
        classification,
        {
            "train": {**SGD, "distillation": 0.5},
            "prune": {"sparsity": 0.75, "gradual": {"until": 0.7}},
        },
    ),
    "budget": (
        mlp,
        classification,
        {"train": SGD, "prune": {"budget": {"max_accuracy_drop": 10.0}, "rounds": 3}},
    ),
}  # fmt: skip


DRAWN: dict[str, tuple[Callable[[], nn.Module], Callable[[], ez.Data], dict[str, Any]]] = {
    "hard concrete": (
        mlp,
        classification,
        {"train": {**SGD, "penalty": {}, "gates": {"hard_concrete": {"strength": 0.003}}}},
    ),
}  # fmt: skip
"""What draws other random numbers in several processes than in one."""


def _compress(*args: Any, **options: Any) -> ez.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EllzeroWarning)  # of little data
        return ez.compress(*args, **options)


def _run(
    case: str, folder: Path | None = None, *, parallel: str = "ddp", **options: Any
) -> tuple[dict[str, Tensor], Any]:
    """The compressed network and its record."""
    model, data, tables = {**CASES, **DRAWN}[case]
    settings = recipe(parallel=parallel, **tables)
    result = _compress(model(), data(), settings, folder=folder, **options)
    return result.model.state_dict(), result.record.to_table()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_processes_come_to_what_one_comes_to(run_in, case, size):
    alone, record = _run(case)
    for tensors, told in run_in(size, _run, case):
        assert tensors.keys() == alone.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=0)
        for key in ("nonzeros", "layers"):
            assert told[key] == record[key]
        for key in ("reference", "compressed"):
            assert told[key]["test"]["score"] == record[key]["test"]["score"]
            assert told[key]["test"]["loss"] == pytest.approx(record[key]["test"]["loss"], abs=1e-5)
        assert told["processes"] == size


def _run_with_batch_norm(folder: Path) -> tuple[dict[str, Tensor], Any, list[str]]:
    told: list[str] = []

    def callback(metrics: ez.EpochMetrics) -> None:
        told.append(metrics.stage)

    # of 40 examples two are left for the last batch, which rank 0 takes alone
    settings = recipe(train={"batch_size": 19, "mixup": 0.2}, prune={"sparsity": 0.5})
    result = _compress(convnet(), images(), settings, folder=folder, callback=callback)
    return result.model.state_dict(), result.record.to_table(), told


def test_batch_norm_and_mixup_end_alike_on_all_ranks_and_rank_0_calls_back(run_in, tmp_path):
    (tensors, record, told), (others, same, silent) = run_in(
        2, _run_with_batch_norm, tmp_path / "a"
    )
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)
    assert record == same
    assert told == ["reference"] * 3 + ["train"] * 4 + ["finetune"] * 4
    assert silent == []
    saved = ez.load(tmp_path / "a" / "model.safetensors", convnet())
    assert all(torch.equal(x, tensors[name]) for name, x in saved.state_dict().items())


@pytest.mark.parametrize(("first", "size"), [("ddp", 1), ("ddp", 3), ("fsdp", 1)])
def test_a_checkpoint_of_two_processes_goes_on_in_others(run_in, tmp_path, first, size):
    alone, _ = _run("Adam", tmp_path / "whole")
    with pytest.raises(RankError, match="rank 0 ended"):
        run_in(2, _stop_hard, first, 2, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    resumed = run_in(size, _resumed, tmp_path / "run") if size > 1 else [_resumed(tmp_path / "run")]
    for tensors in resumed:
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=0)
    assert [m["epoch"] for m in metrics_of(tmp_path / "run")] == [
        m["epoch"] for m in metrics_of(tmp_path / "whole")
    ]


def _stop_hard(parallel: str, epoch: int, folder: Path) -> None:
    def stop(metrics: ez.EpochMetrics) -> None:
        if metrics.stage == "train" and metrics.epoch == epoch:
            raise KeyError("stop")

    try:
        _run("Adam", folder, parallel=parallel, callback=stop)
    except (KeyError, RuntimeError):  # of rank 0, and of those that it leaves
        if dist.get_rank() == 0:
            os._exit(1)


def _resumed(folder: Path) -> dict[str, Tensor]:
    return _run("Adam", folder, resume=True)[0]


def _split_by_rank(how: str) -> str:
    """What is said of training data of which each rank has others."""
    rank = dist.get_rank()
    x, y = blobs(60, 1)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(rank))
    batches = [(x[i], y[i]) for i in order.split(10)]
    fewer = slice(60 - 20 * rank)
    train: Any = {
        "tensors": blobs(60, rank),
        "fewer tensors": (x[fewer], y[fewer]),
        "fewer of a Dataset": Counted((x[fewer], y[fewer])),
        "batches": batches,
        "fewer batches": [(x[i], y[i]) for i in torch.arange(60)[fewer].split(10)],
    }[how]
    try:
        _compress(mlp(), ez.Data(train, blobs(45, 2)), recipe())
    except ez.InputError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize(
    "how", ["tensors", "fewer tensors", "fewer of a Dataset", "batches", "fewer batches"]
)
def test_data_that_differ_between_ranks_are_refused(run_in, how):
    for message in run_in(2, _split_by_rank, how):
        assert message.startswith("train data gave other examples in one process than in another")


def _with_a_score() -> tuple[Any, Any]:
    data = classification(score=accuracy)
    result = _compress(mlp(), data, recipe())
    return result.record.to_table(), ez.evaluate(result.model, data, "test")


def test_figures_are_equal_on_all_ranks(run_in):
    first, second = run_in(2, _with_a_score)
    assert first == second


SHARDED = [name for name in CASES if "distillation" not in name]


def _sharded(case: str) -> tuple[dict[str, Tensor], Any]:
    return _run(case, parallel="fsdp")


@pytest.mark.parametrize("case", SHARDED)
def test_a_sharded_network_comes_to_what_one_process_comes_to(run_in, case):
    alone, record = _run(case)
    for tensors, told in run_in(2, _sharded, case):
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, alone[name], atol=1e-5, rtol=0)
        assert told["nonzeros"] == record["nonzeros"]
        assert told["trained"] == record["trained"]


def test_gates_draw_the_same_noise_on_all_ranks_replicated_and_sharded(run_in):
    runs = [run_in(2, function, "hard concrete") for function in (_run, _sharded)]
    expected = runs[0][0][0]
    for tensors, _ in [*runs[0], *runs[1]]:
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("key", "tables"),
    [
        ("compile", {"compile": True}),
        ("channels_last", {"channels_last": True}),
        ("distillation", {"train": {"distillation": 0.5}}),
    ],
)
def test_what_does_not_go_with_shards_is_refused_by_name(run_in, key, tables):
    for message in run_in(2, _refused, tables):
        assert message == f"{key} does not go with parallel = 'fsdp'; leave one of them out"


def _refused(tables: Any) -> str:
    with pytest.raises(ez.InputError) as told:
        ez.compress(mlp(), classification(), recipe(parallel="fsdp", **tables))
    return str(told.value)
