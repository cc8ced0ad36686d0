"""A callback sees every epoch, may end a stage, and may stop the run."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

import ellzero as ez
from ellzero.record import EpochMetrics
from ellzero.run_folder import read_record
from ellzero.training import checkpoint
from small import classification, dropout_mlp, metrics_of, mlp, recipe, tensors_equal

NEXT = "next stage"


def ends(*epochs: tuple[str, int, int]) -> Callable[[EpochMetrics], Any]:
    """Ends the stages in these epochs: (stage, round, epoch)."""
    return lambda metrics: NEXT if key(metrics) in epochs else None


def key(metrics: EpochMetrics) -> tuple[str, int, int]:
    return metrics.stage, metrics.round, metrics.epoch


def seen(callback: Callable[[EpochMetrics], Any], **tables: Any) -> tuple[ez.Result, list[Any]]:
    """The result of a run of 3 epochs for the reference, 4 of training, 3 of each fine-tuning."""
    epochs = []

    def noted(metrics: EpochMetrics) -> Any:
        epochs.append(key(metrics))
        return callback(metrics)

    data = classification()
    return ez.compress(mlp(), data, recipe(**tables), callback=noted), epochs


def epochs_of(stage: str, last: int, round_: int = 0) -> list[tuple[str, int, int]]:
    return [(stage, round_, e) for e in range(0 if stage == "finetune" else 1, last + 1)]


def test_it_is_called_after_each_epoch_and_changes_nothing(tmp_path):
    lines = []
    result = ez.compress(
        mlp(), classification(), recipe(), folder=tmp_path / "run", callback=lines.append
    )
    assert [metrics.to_table() for metrics in lines] == metrics_of(tmp_path / "run")
    assert [key(m) for m in lines] == [
        *epochs_of("reference", 3), *epochs_of("train", 4), *epochs_of("finetune", 3, 1)
    ]  # fmt: skip
    silent = ez.compress(mlp(), classification(), recipe())
    assert tensors_equal(result.model, silent.model)


def test_each_stage_ends_where_it_says_so():
    ended = ("reference", 0, 2), ("train", 0, 1), ("finetune", 1, 0), ("finetune", 2, 2)
    result, epochs = seen(ends(*ended), prune={"nonzeros": 20, "rounds": 3})
    assert epochs == [
        *epochs_of("reference", 2),
        *epochs_of("train", 1),
        *epochs_of("finetune", 0, 1),
        *epochs_of("finetune", 2, 2),
        *epochs_of("finetune", 3, 3),
    ]
    assert result.masks.nonzeros == 20
    assert [o.epochs for o in result.record.outcomes] == [2, 1, 0, 2, 3]
    assert [o.nonzeros for o in result.record.outcomes[2:]] == [75, 39, 20]  # 144 * (20/144)^(i/3)


def test_an_ended_stage_is_one_of_as_many_epochs():
    # at a constant rate, so that the number of epochs planned does not matter
    table = {"warmup": 0.0, "decay": "constant"}
    ended, _ = seen(ends(("train", 0, 2), ("finetune", 1, 1)), train=table)
    tables = {"train": {**table, "epochs": 2}, "finetune": {"epochs": 1}}
    assert tensors_equal(ended.model, seen(lambda _: None, **tables)[0].model)


@pytest.mark.parametrize(("epoch", "finetune"), [(1, 0), (1, 3), (3, 3)])
def test_a_gradual_pruning_comes_to_its_end_all_the_same(epoch, finetune):
    prune = {"nonzeros": 20, "gradual": {"after": 0.0, "until": 1.0}}
    result, _ = seen(ends(("train", 0, epoch)), prune=prune, finetune={"epochs": finetune})
    assert result.masks.nonzeros == result.record.nonzeros == 20


def test_a_budget_is_kept_by_stages_that_end_early():
    prune = {"budget": {"max_accuracy_drop": 10.0}, "rounds": 3}
    rounds = tuple(("finetune", r, 1) for r in (1, 2, 3))
    result, _ = seen(ends(("reference", 0, 2), *rounds), prune=prune)
    within = [outcome for outcome in result.record.outcomes if outcome.within]
    assert result.record.nonzeros == within[-1].nonzeros < 144


def test_gates_that_end_early_become_weights():
    train = {"penalty": {}, "gates": {"hard_concrete": {"strength": 0.01}}}
    result, epochs = seen(ends(("train", 0, 2)), train=train)
    assert ("train", 0, 3) not in epochs
    assert result.masks.nonzeros == recipe().prune.target(144)


@pytest.mark.parametrize("answer", [True, False, "stop", 0, "next"])
def test_an_answer_that_means_nothing_is_refused(answer):
    with pytest.raises(
        ez.InputError, match=rf"returned {answer!r} after epoch 1 of reference; exp"
    ):
        ez.compress(mlp(), classification(), recipe(), callback=lambda _: answer)


def test_what_cannot_be_called_is_refused_before_anything_is_trained(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(ez.InputError, match=r"^callback is 'print'; expected a function"):
        ez.compress(mlp(), classification(), recipe(), folder=folder, callback="print")  # pyright: ignore[reportArgumentType]
    assert not folder.exists()


EARLY = ends(("train", 0, 3), ("finetune", 1, 2))


def with_early_ends(callback: Callable[[EpochMetrics], Any] = EARLY, **options: Any) -> ez.Result:
    return ez.compress(dropout_mlp(), classification(), recipe(), callback=callback, **options)


@pytest.fixture(scope="module")
def whole() -> ez.Result:
    """A run with stages that end early, which nothing has stopped."""
    return with_early_ends()


@pytest.mark.parametrize(
    ("where", "error", "status"),
    [
        (("reference", 0, 3), KeyboardInterrupt, "interrupted"),  # the stage's last
        (("train", 0, 2), RuntimeError, "failed"),
        (("finetune", 1, 0), KeyboardInterrupt, "interrupted"),
        (("finetune", 1, 1), RuntimeError, "failed"),
        (("train", 0, 1), SystemExit, "interrupted"),
    ],
)
def test_what_it_raises_stops_the_run_which_goes_on_to_the_same_bits(
    where, error, status, whole, tmp_path
):
    folder = tmp_path / "run"
    resumed = []

    def stops(metrics: EpochMetrics) -> Any:
        if key(metrics) == where:
            raise error("no space left")
        return EARLY(metrics)

    def goes_on(metrics: EpochMetrics) -> Any:
        resumed.append(key(metrics))
        return EARLY(metrics)

    with pytest.raises(error, match="no space left"):
        with_early_ends(stops, folder=folder)
    assert read_record(folder).status == status
    again = with_early_ends(goes_on, folder=folder, resume=True)
    assert tensors_equal(again.model, whole.model)
    written = [(line["stage"], line["round"], line["epoch"]) for line in metrics_of(folder)]
    assert written == [
        *epochs_of("reference", 3), *epochs_of("train", 3), *epochs_of("finetune", 2, 1)
    ]  # fmt: skip
    last = written.index(where)  # an epoch 0 is measured anew
    assert resumed == written[last + (where[2] > 0) :]


@pytest.mark.parametrize("how", ["killed", "Ctrl-C"])
def test_a_run_that_stops_right_after_an_ended_stage(how, whole, tmp_path, monkeypatch):
    written = checkpoint.write

    def write(taken, folder, recipe) -> None:
        if taken.document["step"]["stage"] == "finetune" and not stopped:
            stopped.append(True)
            if how == "killed":
                shutil.copytree(folder, tmp_path / "run")
            else:
                raise KeyboardInterrupt
        written(taken, folder, recipe)

    stopped: list[bool] = []
    folder = tmp_path / ("goes on" if how == "killed" else "run")
    monkeypatch.setattr(checkpoint, "write", write)
    with nullcontext() if how == "killed" else pytest.raises(KeyboardInterrupt):
        with_early_ends(folder=folder)
    again = with_early_ends(folder=tmp_path / "run", resume=True)
    assert tensors_equal(again.model, whole.model)


def test_an_ended_stage_stays_ended_where_what_comes_after_it_is_stopped(
    whole, tmp_path, monkeypatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ellzero.training.run.magnitudes", interrupt)  # at the end of the training
    with pytest.raises(KeyboardInterrupt):
        with_early_ends(folder=tmp_path / "run")
    monkeypatch.undo()
    again = with_early_ends(folder=tmp_path / "run", resume=True)
    assert tensors_equal(again.model, whole.model)
    assert [outcome.epochs for outcome in again.record.outcomes] == [3, 3, 2]
