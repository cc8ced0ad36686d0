"""Studies as tables: what is read, what comes of it, and what is refused."""

import copy
import math
import tomllib
from typing import Any

import pytest

import ellzero as ez
from ellzero.penalties import PENALTIES
from ellzero.recipe import Recipe
from ellzero.study.study import Cell, Study, Target, Training, built_in, merged

TWO = [1e-5, 1e-4]


def told(**changes: Any) -> dict[str, Any]:
    """A study of one method, with these keys instead of its own."""
    table = {"name": "mine", "sparsities": [0.9], "methods": {"l1": {"strengths": TWO}}}
    return {**table, **changes}


def method(name: str, **table: Any) -> dict[str, Any]:
    return told(methods={name: table})


def cell(study: Study, name: str) -> Cell:
    (found,) = [c for c in study.cells() if c.name == name]
    return found


def test_a_study_is_all_combinations_in_order():
    study = Study.parse(
        told(
            seeds=[3, 0],
            sparsities=[0.9, 0.975],
            methods={"magnitude": {}, "l1": {"strengths": [3e-5, 1e-4]}},
        )
    )
    assert [training.name for training in study.tuning()] == [
        "magnitude-seed3",
        "l1-3e-05-seed3",
        "l1-0.0001-seed3",
    ]
    assert [training.seed for training in study.trainings(0)] == [0, 0, 0]
    assert [c.name for c in study.cells()] == [
        "magnitude-seed3-sparsity-0.9",
        "magnitude-seed3-sparsity-0.975",
        "l1-3e-05-seed3-sparsity-0.9",
        "l1-3e-05-seed3-sparsity-0.975",
        "l1-0.0001-seed3-sparsity-0.9",
        "l1-0.0001-seed3-sparsity-0.975",
        "magnitude-seed0-sparsity-0.9",
        "magnitude-seed0-sparsity-0.975",
        "l1-3e-05-seed0-sparsity-0.9",
        "l1-3e-05-seed0-sparsity-0.975",
        "l1-0.0001-seed0-sparsity-0.9",
        "l1-0.0001-seed0-sparsity-0.975",
    ]
    assert (study.label("magnitude"), study.label("l1")) == ("no penalty", "l1")


def test_the_limit_for_cells_without_progress():
    assert Study.parse(told()).stalled_minutes == 60
    assert "stalled_minutes" not in Study.parse(told()).to_toml()
    study = Study.parse(told(stalled_minutes=0.5))
    assert Study.parse(tomllib.loads(study.to_toml())) == study
    assert Study.parse(told(stalled_minutes=0)).stalled_minutes == 0
    for wrong in (-1, math.inf, "long"):
        with pytest.raises(ez.InputError, match="stalled_minutes"):
            Study.parse(told(stalled_minutes=wrong))


def test_targets_of_every_kind():
    found = Study.parse(told(sparsities=[0.98])).targets
    assert found == (Target("sparsity-0.98", "98 % zeros", {"sparsity": 0.98}),)
    found = Study.parse(told(sparsities=[], nonzeros=[5000, 12])).targets
    assert found == (
        Target("nonzeros-5000", "5,000 nonzeros", {"nonzeros": 5000}),
        Target("nonzeros-12", "12 nonzeros", {"nonzeros": 12}),
    )
    budgets = [{"max_accuracy_drop": 0.5}, {"max_loss_increase": 0.1}]
    found = Study.parse(told(sparsities=[], budgets=budgets)).targets
    assert [(t.name, t.prune) for t in found] == [
        ("drop-0.5", {"budget": {"max_accuracy_drop": 0.5}}),
        ("loss-0.1", {"budget": {"max_loss_increase": 0.1}}),
    ]
    assert [t.label for t in found] == ["at most 0.5 points below", "loss at most 10 % above"]


RECIPE = {
    "model": "lenet-300-100",
    "data": {"name": "mnist-5k"},
    "threads": 1,
    "reference": {"epochs": 3},
    "train": {"epochs": 7, "learning_rate": 2e-3, "batch_size": 32},
    "finetune": {"epochs": 2, "learning_rate": 1e-3},
    "prune": {"exclude": ["*.bias"]},
}


def by_hand(name: str, seed: int, train: dict[str, Any], prune: dict[str, Any]) -> Recipe:
    """What a cell's recipe should be: `RECIPE` with these keys."""
    return Recipe.parse(
        {
            **RECIPE,
            "name": name,
            "seed": seed,
            "train": {
                "epochs": 7,
                "learning_rate": 2e-3,
                "batch_size": 32,
                "start": "initial",
                **train,
            },
            "prune": {"exclude": ["*.bias"], **prune},
        }
    )


def test_a_cells_recipe_is_the_studys_with_the_methods_fragment():
    study = Study.parse(
        told(
            seeds=[4, 9],
            recipe=RECIPE,
            methods={
                "gradual": {},
                "l0+l2-decoupled": {"strengths": [0.01, 0.05]},
                "hard-concrete": {"strengths": [1e-6, 1e-5]},
            },
        )
    )
    name = "gradual-seed9-sparsity-0.9"
    assert study.cell_recipe(cell(study, name)) == by_hand(
        name, 9, {}, {"sparsity": 0.9, "gradual": {"after": 0.1, "until": 0.8}}
    )
    name = "l0+l2-decoupled-0.05-seed4-sparsity-0.9"
    penalty = {"l0": {"strength": 0.05, "form": "decoupled"}, "l2": {"strength": 1e-5}}
    expected = by_hand(name, 4, {"penalty": penalty}, {"sparsity": 0.9})
    found = study.cell_recipe(cell(study, name))
    assert found == expected
    # l2 goes on while the network is fine-tuned, l0 does not
    assert found.finetune.penalty == ez.L2(1e-5)
    name = "hard-concrete-1e-06-seed4-sparsity-0.9"
    gates = {"hard_concrete": {"strength": 1e-6}}
    expected = by_hand(name, 4, {"gates": gates}, {"sparsity": 0.9})
    assert study.cell_recipe(cell(study, name)) == expected


def test_the_references_recipe_trains_the_reference_and_nothing_else():
    study = Study.parse(told(recipe=RECIPE))
    recipe = study.reference_recipe(7)
    assert (recipe.name, recipe.seed) == ("reference-seed7", 7)
    assert recipe.reference.epochs == 3
    assert recipe.reference.learning_rate == 2e-3
    assert (recipe.train.epochs, recipe.finetune.epochs, recipe.prune.sparsity) == (0, 0, 0.0)
    assert recipe.train.start == "reference"
    one = study.cell_recipe(next(study.cells()))
    assert recipe.reference == one.reference
    assert recipe.model == one.model


STRENGTH = 0.5
METHODS: dict[str, tuple[set[Any], Any, bool]] = {
    # penalty's terms, gates, whether gradual
    "magnitude": (set(), None, False),
    "gradual": (set(), None, True),
    "l2": ({ez.L2(STRENGTH)}, None, False),
    "l1": ({ez.L1(STRENGTH)}, None, False),
    "l1+l2": ({ez.L1(STRENGTH), ez.L2(1e-5)}, None, False),
    "l0": ({ez.L0(STRENGTH, form="gradient")}, None, False),
    "l0+l2": ({ez.L0(STRENGTH, form="gradient"), ez.L2(1e-5)}, None, False),
    "l0+l2-decoupled": ({ez.L0(STRENGTH, form="decoupled"), ez.L2(1e-5)}, None, False),
    "hoyer-square": ({ez.HoyerSquare(STRENGTH)}, None, False),
    "group-lasso": ({ez.GroupLasso(STRENGTH)}, None, False),
    "hard-concrete": (set(), ez.HardConcrete(STRENGTH), False),
    "pmmp": (set(), ez.PMMP(STRENGTH), False),
}


def test_a_study_by_steps_and_a_method_by_epochs():
    study = ez.Study.parse(
        {
            "sparsities": [0.9],
            "recipe": {"train": {"steps": 500}, "finetune": {"steps": 50}},
            "methods": {"magnitude": {}, "l1": {"strengths": [1e-4], "train": {"epochs": 3}}},
        }
    )
    by_steps, by_epochs = (study.cell_recipe(Cell(t, study.targets[0])) for t in study.tuning())
    assert (by_steps.train.steps, by_steps.train.epochs) == (500, None)
    assert (by_epochs.train.steps, by_epochs.train.epochs) == (None, 3)
    assert by_epochs.finetune.steps == 50
    reference = study.reference_recipe(0)
    assert (reference.train.epochs, reference.train.steps) == (0, None)


def test_these_are_all_the_built_in_methods():
    assert built_in().keys() == METHODS.keys()
    assert all(table["label"] for table in built_in().values())


@pytest.mark.parametrize("name", METHODS)
def test_every_built_in_method_is_what_it_says(name):
    terms, gates, gradual = METHODS[name]
    own = {"strengths": [STRENGTH]} if terms or gates else {}
    study = Study.parse(method(name, **own))
    recipe = study.cell_recipe(next(study.cells()))
    found = recipe.train.penalty
    assert set(() if found is None else found.terms) == terms
    assert recipe.train.gates == gates
    schedule = recipe.prune.gradual
    assert (schedule is not None) == gradual
    if schedule is not None:
        assert (schedule.after, schedule.until, schedule.shape) == (0.1, 0.8, "cubic")
    assert recipe.prune.sparsity == 0.9
    assert recipe.prune.rounds == 1
    # whatever the method: the same start for all, and a reference without sparsifying terms
    assert recipe.train.start == "initial"
    assert recipe.reference.penalty in (None, ez.L2(1e-5), ez.L2(STRENGTH))


def test_what_the_user_says_goes_on_top_of_a_built_in_method():
    study = Study.parse(
        method(
            "l0+l2",
            label="steep l0",
            strengths=TWO,
            train={"penalty": {"l0": {"beta": 10}}, "ramp": {"until": 0.3}},
            finetune={"epochs": 4},
        )
    )
    assert study.label("l0+l2") == "steep l0"
    recipe = study.cell_recipe(next(study.cells()))
    assert recipe.train.penalty is not None
    assert set(recipe.train.penalty.terms) == {ez.L0(1e-5, beta=10), ez.L2(1e-5)}
    assert recipe.train.ramp is not None
    assert recipe.train.ramp.until == 0.3
    assert recipe.finetune.epochs == 4
    # the built-in method itself is as it was
    again = Study.parse(method("l0+l2", strengths=TWO))
    penalty = again.cell_recipe(next(again.cells())).train.penalty
    assert penalty is not None
    assert set(penalty.terms) == {ez.L0(1e-5), ez.L2(1e-5)}


def test_a_method_of_ones_own_gets_its_strength_where_there_is_none():
    train = {"penalty": {"l0": {"beta": 20}, "l1": {"strength": 2.0}}}
    study = Study.parse(method("mine", strengths=[0.0, 3], train=train))
    found = [study.cell_recipe(c).train.penalty for c in study.cells()][:2]
    for penalty, strength in zip(found, (0.0, 3.0), strict=True):
        assert penalty is not None
        assert set(penalty.terms) == {ez.L0(strength, beta=20), ez.L1(2.0)}


def test_a_study_may_start_from_the_reference():
    study = Study.parse(told(recipe={"train": {"start": "reference"}}))
    assert study.cell_recipe(next(study.cells())).train.start == "reference"


@pytest.mark.parametrize(
    "targets",
    [
        {"sparsities": [0.9, 0.99]},
        {"sparsities": [], "nonzeros": [30]},
        {"sparsities": [], "budgets": [{"max_accuracy_drop": 0.5}, {"max_loss_increase": 0.1}]},
    ],
)
def test_toml_says_the_same_study(targets, tmp_path):
    methods = {
        "magnitude": {},
        "l0+l2": {"strengths": TWO, "train": {"ramp": {"until": 0.3}}},
        "my own": {"label": "mine", "strengths": TWO, "train": {"gates": {"pmmp": {}}}},
    }
    study = Study.parse(told(seeds=[5], recipe=RECIPE, methods=methods, **targets))
    path = tmp_path / "other.toml"
    path.write_text(study.to_toml())
    again = Study.read(path)
    assert again == study
    assert list(again.methods) == list(methods)
    assert again.to_toml() == study.to_toml()
    # in words that mean the same whatever a later version's built-in methods are
    assert "decoupled" not in path.read_text()
    assert "l2" in path.read_text()


def test_a_study_read_from_a_file_has_its_name_and_three_seeds(tmp_path):
    path = tmp_path / "faces.toml"
    path.write_text("sparsities = [0.5]\nmethods.magnitude = {}\n")
    study = Study.read(path)
    assert (study.name, study.seeds) == ("faces", (0, 1, 2))
    path.write_text("name = 'else'\nsparsities = [0.5]\nmethods.magnitude = {}\n")
    assert Study.read(str(path)).name == "else"
    # the defaults are spelled out where a later version may have others
    assert "seeds = [\n    0,\n    1,\n    2,\n]" in study.to_toml()


MISTAKES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown method": (method("l7"), ("'l7'", "did you mean", "l1")),
    "unknown method, mistyped": (method("gradul"), ("'gradul'", "did you mean gradual?")),
    "unknown penalty": (
        method("mine", strengths=TWO, train={"penalty": {"l11": {}}}),
        ("methods.mine", "train.penalty", "'l11'", "did you mean l1"),
    ),
    "unknown penalty with a strength": (
        method("mine", train={"penalty": {"l11": {"strength": 1}}}),
        ("methods.mine", "train.penalty", "'l11'", "did you mean l1"),
    ),
    "unknown gates": (
        method("mine", strengths=TWO, train={"gates": {"pmp": {}}}),
        ("methods.mine", "train.gates", "'pmp'", "did you mean pmmp"),
    ),
    "two kinds of gates": (
        method("pmmp", strengths=TWO, train={"gates": {"hard_concrete": {"strength": 1}}}),
        ("methods.pmmp", "train.gates", "2 methods"),
    ),
    "unknown key": (told(seedz=[1]), ("'seedz'", "did you mean seeds?")),
    "unknown key of a method": (method("l1", strenths=TWO), ("methods.l1", "'strenths'")),
    "unknown key of a fragment": (
        method("mine", train={"epoch": 3}),
        ("methods.mine", "train", "'epoch'", "did you mean epochs?"),
    ),
    "unknown key of fine-tuning": (
        method("mine", finetune={"epoch": 3}),
        ("methods.mine", "finetune", "'epoch'"),
    ),
    "unknown key of pruning": (
        method("mine", prune={"round": 3}),
        ("methods.mine", "prune", "'round'"),
    ),
    "unknown key of a penalty": (
        method("l0+l2", strengths=TWO, train={"penalty": {"l0": {"bet": 1}}}),
        ("methods.l0+l2", "train.penalty", "'bet'", "beta"),
    ),
    "unknown key of the recipe": (told(recipe={"trian": {}}), ("recipe", "'trian'", "train")),
    "unknown key in the recipe": (
        told(recipe={"train": {"epoch": 1}}),
        ("recipe", "train", "'epoch'", "did you mean epochs?"),
    ),
    "unknown key of a budget": (
        told(sparsities=[], budgets=[{"max_drop": 1}]),
        ("budgets.0", "'max_drop'", "max_accuracy_drop"),
    ),
    "impossible budget": (
        told(sparsities=[], budgets=[{"max_accuracy_drop": -1}]),
        ("budgets.0", "max_accuracy_drop=-1"),
    ),
    "no budget": (told(sparsities=[], budgets=[None]), ("budgets", "None")),
    "no seeds": (told(seeds=[]), ("seeds is empty",)),
    "no methods": (told(methods={}), ("methods is empty",)),
    "no targets": (told(sparsities=[]), ("nothing to prune to", "sparsities, nonzeros, budgets")),
    "no strengths": (method("l1", strengths=[]), ("methods.l1", "strengths is []")),
    "methods as a list": (told(methods=["l1"]), ("methods", "['l1']")),
    "a method as a number": (told(methods={"l1": 3}), ("methods.l1 is 3", "table")),
    "a fragment as a number": (method("l1", strengths=TWO, train=3), ("methods.l1.train", "3")),
    "a penalty as text": (
        method("l1", strengths=TWO, train={"penalty": "l1"}),
        ("methods.l1", "0 places"),
    ),
    "gates as a number": (method("mine", train={"gates": 3}), ("methods.mine", "train.gates", "3")),
    "the recipe as text": (told(recipe="mine.toml"), ("recipe", "'mine.toml'")),
    "train as a number": (told(recipe={"train": 3}), ("recipe.train is 3", "table")),
    "finetune as a number": (told(recipe={"finetune": 3}), ("recipe.finetune is 3", "table")),
    "prune as a number": (told(recipe={"prune": 0.9}), ("recipe.prune is 0.9", "table")),
    "two kinds of targets": (
        told(nonzeros=[30]),
        ("got sparsities and nonzeros", "exactly one"),
    ),
    "equal strengths written differently": (
        method("l1", strengths=[1e-5, 0.00001]),
        ("l1-1e-05-seed0-sparsity-0.9", "twice"),
    ),
    "strengths that a name does not tell apart": (
        method("l1", strengths=[1e-5, 1.0000001e-5]),
        ("l1-1e-05-seed0-sparsity-0.9", "twice"),
    ),
    "equal seeds": (told(seeds=[1, 1]), ("l1-1e-05-seed1-sparsity-0.9", "seed", "twice")),
    "equal sparsities": (told(sparsities=[0.9, 0.90]), ("sparsity-0.9", "target", "twice")),
    "a method with another's strength in its name": (
        told(methods={"l1": {"strengths": TWO}, "l1-1e-05": {"train": {}}}),
        ("l1-1e-05-seed0-sparsity-0.9", "twice"),
    ),
    "a strength as text": (method("l1", strengths=["1e-5"]), ("methods.l1", "'1e-5'")),
    "a strength as a bool": (method("l1", strengths=[True]), ("methods.l1", "True")),
    "a negative strength": (method("l1", strengths=[1e-5, -1.0]), ("methods.l1", "-1.0", ">= 0")),
    "a strength nan": (method("l1", strengths=[math.nan]), ("methods.l1", "nan", "finite")),
    "a strength inf": (method("l1", strengths=[math.inf]), ("methods.l1", "inf", "finite")),
    "a nested list": (method("l1", strengths=[[1e-5]]), ("methods.l1", "[1e-05]")),
    "a single number": (method("l1", strengths=1e-5), ("methods.l1", "1e-05", "[1e-5, 1e-4]")),
    "strengths as text": (method("l1", strengths="1e-5"), ("methods.l1", "'1e-5'")),
    "unequal numbers of strengths": (
        told(methods={"l1": {"strengths": TWO}, "magnitude": {}, "l2": {"strengths": [1.0]}}),
        ("methods.l2 has 1 strengths", "methods.l1 has 2"),
    ),
    "strengths without a place": (
        method("magnitude", strengths=TWO),
        ("methods.magnitude has strengths", "0 places"),
    ),
    "strengths with two places": (
        method("l1", strengths=TWO, train={"penalty": {"l0": {}}}),
        ("methods.l1 has strengths", "2 places"),
    ),
    "a place without strengths": (method("l1"), ("methods.l1 has no strengths",)),
    "a method that is no folder": (method("a/b", train={}), ("'a/b'", "folder")),
    "a method of controls": (method("a\x1b[31m", train={}), (r"'a\x1b[31m'", "folder")),
    "a method without end": (method("a" * 101, train={}), ("has 101 characters",)),
    "a method that is a hidden folder": (method(".a", train={}), ("'.a'", "folder")),
    "a method without a name": (method("", train={}), ("methods.",)),
    "gradual under a budget": (
        told(sparsities=[], budgets=[{"max_accuracy_drop": 1}], methods={"gradual": {}}),
        ("methods.gradual", "prune", "gradual schedule"),
    ),
    "gradual with gates": (
        method("pmmp", strengths=TWO, prune={"gradual": {}}),
        ("methods.pmmp", "gradual"),
    ),
    "a sparsity of 150 %": (told(sparsities=[1.5]), ("prune.sparsity", "in [0, 1)", "1.5")),
    "a negative seed": (told(seeds=[-1]), ("seed", "-1")),
    "a seed of one half": (told(seeds=[0.5]), ("seeds.0", "0.5")),
    "a name that is no folder": (told(name="a/b"), ("name", "'a/b'")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error(mistake):
    table, expected = MISTAKES[mistake]
    before = copy.deepcopy(table)
    with pytest.raises(ez.InputError) as caught:
        Study.parse(table)
    message = str(caught.value)
    for part in expected:
        assert part in message
    assert "\n" not in message
    assert len(message) < 400
    assert repr(table) == repr(before)


class Own(ez.L1):
    """A penalty of the user's."""


def test_penalties_of_ones_own_are_named_so_that_workers_find_them(monkeypatch):
    monkeypatch.setitem(PENALTIES, "own", Own)
    name, table = f"{__name__}:Own", {"strength": 1.0}
    recipe = {"reference": {"penalty": {"own": table}}, "finetune": {"penalty": {"own": table}}}
    methods = {"mine": {"train": {"penalty": {"own": {}}}, "strengths": TWO}}
    study = Study.parse(told(recipe=recipe, methods=methods))
    for table in (study.recipe["reference"], study.recipe["finetune"], study.methods["mine"].train):
        assert list(table["penalty"]) == [name]
    monkeypatch.delitem(PENALTIES, "own")
    assert Study.parse(tomllib.loads(study.to_toml())) == study
    (first, _) = study.tuning()
    assert study.cell_recipe(Cell(first, study.targets[0])).train.penalty == Own(1e-5)


def test_a_penalty_that_no_worker_can_import_is_refused(monkeypatch):
    class Within(ez.L1):
        pass

    monkeypatch.setitem(PENALTIES, "within", Within)
    with pytest.raises(ez.InputError, match=r"recipe: finetune\.penalty: .*Within cannot be impo"):
        Study.parse(told(recipe={"finetune": {"penalty": {"within": {"strength": 1}}}}))
    # as if it stood in the program itself
    mine = type("Mine", (ez.L1,), {"__module__": "__main__"})
    monkeypatch.setattr("__main__.Mine", mine, raising=False)
    monkeypatch.setitem(PENALTIES, "mine", mine)
    for name in ("mine", "__main__:Mine"):
        table = {"train": {"penalty": {name: {"strength": 1.0}}}}
        ez.Recipe.parse({**table, "prune": {"sparsity": 0.5}})  # here it is known
        with pytest.raises(ez.InputError) as refused:
            ez.Study.parse({"sparsities": [0.5], "methods": {"m": table}})
        assert str(refused.value) == (
            "methods.m: train.penalty: __main__:Mine cannot be imported by another process; put "
            "Mine into a module of its own, such as my_module.py, and name it my_module:Mine"
        )


def test_a_penalty_under_two_names_is_refused(monkeypatch):
    monkeypatch.setitem(PENALTIES, "own", Own)
    tables = {"own": {"strength": 1}, f"{__name__}:Own": {"strength": 2}}
    with pytest.raises(ez.InputError, match="Own stands there under two names"):
        Study.parse(method("mine", train={"penalty": tables}))


def test_a_file_that_is_no_study_is_named(tmp_path):
    path = tmp_path / "mine.toml"
    with pytest.raises(ez.InputError, match=r"cannot read study .*mine\.toml: No such file"):
        Study.read(path)
    path.write_text("seeds = [0\nmethods")
    with pytest.raises(ez.InputError, match=r"study .*mine\.toml is not TOML: "):
        Study.read(path)
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(ez.InputError, match=r"study .*mine\.toml is not TOML: "):
        Study.read(path)
    path.write_text("sparsities = [0.9]\nmethods.l7 = {}\n")
    with pytest.raises(ez.InputError, match=r"study .*mine\.toml: unknown method 'l7'"):
        Study.read(path)


def test_merged_takes_the_seconds_values_and_changes_neither():
    under = {"a": {"b": 1, "c": {"d": 2}}, "e": 3, "f": {"g": 4}}
    over = {"a": {"c": {"d": 5, "h": 6}}, "e": {"i": 7}, "f": 8}
    before = copy.deepcopy((under, over))
    found = merged(under, over)
    assert found == {"a": {"b": 1, "c": {"d": 5, "h": 6}}, "e": {"i": 7}, "f": 8}
    assert (under, over) == before
    # nor do they when the result is changed
    found["a"]["c"]["d"] = found["a"]["b"] = found["e"]["i"] = 0
    merged(under, {})["f"]["g"] = 0
    assert (under, over) == before


def test_strengths_are_put_into_copies():
    study = Study.parse(told())
    found = [study.methods["l1"].fragment(s)["train"]["penalty"]["l1"] for s in (1.0, 2.0)]
    assert found == [{"strength": 1.0}, {"strength": 2.0}]
    assert study.methods["l1"].train == {"penalty": {"l1": {}}}
    assert Training("l1", None, 3).name == "l1-seed3"
