"""A callback sees every epoch, may end a stage, and may stop the run."""

from collections.abc import Callable
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


def test_a_checkpoint_before_the_end_of_a_stage_ends_it_again(whole, tmp_path, monkeypatch):
    # the process is gone right after the stage has ended, before anything more is written
    saved = checkpoint.save

    def save(state, path) -> None:
        if state.step.stage == "finetune":
            raise KeyboardInterrupt
        saved(state, path)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        with_early_ends(folder=tmp_path / "run")
    monkeypatch.undo()
    again = with_early_ends(folder=tmp_path / "run", resume=True)
    assert tensors_equal(again.model, whole.model)
