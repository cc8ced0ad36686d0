"""Recipes: what they take, what they refuse and how they say so, and how they are written."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ellzero as ez
from cases import GATES_CASES
from ellzero.errors import InputError
from ellzero.recipe import Finetune, Reference
from small import recipe

PRUNE = {"prune": {"sparsity": 0.9}}


def read(tmp_path: Path, text: str, *overrides: str) -> ez.Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return ez.Recipe.read(path, overrides)


@pytest.mark.parametrize(
    ("table", "where", "suggestion"),
    [
        ({"sead": 1, **PRUNE}, "'sead'", "seed"),
        ({"train": {"epocs": 1}, **PRUNE}, "'epocs'", "epochs"),
        ({"reference": {"lerning_rate": 1}, **PRUNE}, "'lerning_rate'", "learning_rate"),
        ({"finetune": {"batchsize": 1}, **PRUNE}, "'batchsize'", "batch_size"),
        ({"prune": {"sparcity": 0.9}}, "'sparcity'", "sparsity"),
        ({"prune": {"budget": {"max_acuracy_drop": 1}}}, "'max_acuracy_drop'", "max_accuracy_drop"),
        ({"prune": {"sparsity": 0.9, "gradual": {"untill": 0.1}}}, "'untill'", "until"),
        ({"train": {"ramp": {"shap": "linear"}}, **PRUNE}, "'shap'", "shape"),
        ({"train": {"penalty": {"l00": {"strength": 1}}}, **PRUNE}, "'l00'", "l0"),
        ({"train": {"penalty": {"l0": {"strenght": 1}}}, **PRUNE}, "'strenght'", "strength"),
        ({"train": {"gates": {"pmpp": {"strength": 1}}}, **PRUNE}, "'pmpp'", "pmmp"),
        ({"train": {"gates": {"pmmp": {"strength": 1, "keep": 1}}}, **PRUNE}, "'keep'", None),
        (
            {"train": {"gates": {"hard_concrete": {"strength": 1, "kep": 1}}}, **PRUNE},
            "'kep'",
            "keep",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_one(table, where, suggestion):
    said = "known: .*" if suggestion is None else f"did you mean .*{suggestion}"
    with pytest.raises(InputError, match=f"unknown key {where}; {said}"):
        ez.Recipe.parse(table)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"train": {"epochs": "five"}, **PRUNE}, "train.epochs is 'five'"),
        ({"train": {"epochs": 1.5}, **PRUNE}, "train.epochs is 1.5"),
        ({"train": {"epochs": -1}, **PRUNE}, "train.epochs is -1"),
        ({"train": {"batch_size": 0}, **PRUNE}, "train.batch_size"),
        ({"train": {"learning_rate": 0}, **PRUNE}, "train.learning_rate"),
        ({"train": {"learning_rate": float("inf")}, **PRUNE}, "train.learning_rate"),
        ({"train": {"weight_decay": 0.1}, **PRUNE}, "weight_decay.*adamw"),
        ({"train": {"distillation": 2}, **PRUNE}, "train.distillation.weight.*2"),
        ({"train": {"distillation": "x"}, **PRUNE}, "train.distillation.*'x'"),
        (
            {"train": {"distillation": {"weight": 1, "temprature": 1}}, **PRUNE},
            "'temprature'; did you mean temperature",
        ),
        ({"finetune": {"distillation": {"weight": 1, "temperature": 0}}, **PRUNE}, "temperature"),
        ({"reference": {"distillation": 1}, **PRUNE}, "reference: unknown key 'distillation'"),
        ({"train": {"ema_decay": 1.0}, **PRUNE}, "train.ema_decay.*1.0"),
        ({"train": {"steps": 0}, **PRUNE}, "train.steps.*0"),
        ({"train": {"steps": 5, "epochs": 1}, **PRUNE}, "train: got epochs and steps; expected ep"),
        ({"reference": {"epochs": None}, **PRUNE}, "reference: got no length; expected epochs or"),
        ({"train": {"gradient_accumulation_steps": 0}, **PRUNE}, "gradient_accumulation_steps.*0"),
        ({"train": {"clip_grad_norm": -1}, **PRUNE}, "clip_grad_norm.*-1"),
        (
            {"train": {"clip_grad_norm": 1, "clip_grad_value": 1}, **PRUNE},
            "got clip_grad_norm and clip_grad_value; expected one",
        ),
        (
            {"train": {"no_decay": ["biases"]}, **PRUNE},
            "no_decay.*'biases'; expected 'bias' or 'norm'",
        ),
        ({"train": {"ramp": {"after": 0.5, "until": 0.2}}, **PRUNE}, "after 0.5 until 0.2"),
        ({"train": {"layer_scale": "papr"}, **PRUNE}, "train.layer_scale.*'papr'"),
        ({"train": {"penalty": {"l0": 3}}, **PRUNE}, "l0 is 3"),
        ({"train": {"penalty": {"l0": {"beta": 3}}}, **PRUNE}, "l0 has no strength"),
        ({"train": {"penalty": {"l0": {"strength": -1e-5}}}, **PRUNE}, "strength is -1e-05"),
        ({"train": {"penalty": {"l0": {"strength": "x"}}}, **PRUNE}, "strength is 'x'"),
        ({"train": {"penalty": {"l2": {"strength": 1, "form": "decoupled"}}}, **PRUNE}, "form"),
        ({"train": {"gates": 3}, **PRUNE}, "train.gates: got 3; .*hard_concrete"),
        ({"train": {"gates": "pmmp"}, **PRUNE}, "train.gates: got 'pmmp'; expected tables"),
        ({"train": {"gates": {"pmmp": 3}}, **PRUNE}, "train.gates: pmmp is 3; expected a table"),
        ({"train": {"gates": {"pmmp": {}}}, **PRUNE}, "train.gates: pmmp has no strength"),
        ({"train": {"gates": {"pmmp": {"strength": "x"}}}, **PRUNE}, "PMMP: strength is 'x'"),
        ({"train": {"gates": {"pmmp": {"strength": True}}}, **PRUNE}, "PMMP: strength is True"),
        ({"train": {"gates": {"pmmp": {"strength": -1}}}, **PRUNE}, "PMMP: strength is -1"),
        (
            {"train": {"gates": {"hard_concrete": {"strength": 1, "keep": 1}}}, **PRUNE},
            "train.gates: HardConcrete: keep is 1",
        ),
        (
            {"train": {"gates": {k: {"strength": 1} for k in ("pmmp", "hard_concrete")}}, **PRUNE},
            "train.gates: got 2 methods",
        ),
        (
            {"train": {"gates": {"pmmp": [{"strength": 1}, {"strength": 2}]}}, **PRUNE},
            "train.gates: got 2 methods",
        ),
        *(
            (
                {stage: {"gates": {"pmmp": {"strength": 1}}}, **PRUNE},
                f"{stage}.*unknown key 'gates'",
            )
            for stage in ("reference", "finetune")
        ),
        (
            {
                "train": {"gates": {"pmmp": {"strength": 1}}},
                "prune": {"sparsity": 0.9, "gradual": {}},
            },
            "train.gates: .*prune.gradual does not go with them",
        ),
        (
            {"train": {"file": "a.safetensors"}, "prune": {"sparsity": 0.9, "gradual": {}}},
            "train.file: .*prune.gradual.*does not go with it",
        ),
        ({"train": {"start": "begin"}, **PRUNE}, "train.start is 'begin'"),
        ({"train": {"file": 3}, **PRUNE}, "train.file is 3"),
        ({"finetune": {"file": "a.safetensors"}, **PRUNE}, "unknown key 'file'"),
        ({"train": 5, **PRUNE}, "train is 5"),
        ({"reference": "dense", **PRUNE}, "reference is 'dense'"),
        ({"reference": {"epochs": 0}, **PRUNE}, "reference.epochs"),
        ({"seed": -1, **PRUNE}, "seed is -1"),
        ({"threads": 0, **PRUNE}, "threads"),
        ({"checkpoint_seconds": -1, **PRUNE}, "checkpoint_seconds"),
        ({"on_divergence": "again", **PRUNE}, "on_divergence is 'again'; .*retry"),
        ({"precision": "float16", **PRUNE}, "precision.*'float16'"),
        ({"prune": {"sparsity": 1.0}}, "prune.sparsity is 1.0"),
        ({"prune": {"sparsity": -0.1}}, "prune.sparsity is -0.1"),
        ({"prune": {"sparsity": float("nan")}}, "prune.sparsity"),
        ({"prune": {"nonzeros": 0}}, "prune.nonzeros"),
        ({"prune": {"sparsity": 0.9, "include": "fc*"}}, "prune.include"),
        ({"prune": {"sparsity": 0.9, "scope": "local"}}, "prune.scope.*'local'"),
        ({"prune": {"nonzeros": 9, "scope": "layer"}}, "scope = 'layer' goes with a sparsity"),
        ({"prune": {"sparsity": 0.9, "gradual": {}, "rounds": 2}}, "gradual"),
        ({"prune": {"budget": {"max_accuracy_drop": -1}}}, "max_accuracy_drop=-1"),
        ({"prune": {"budget": {}}}, "exactly one"),
        ({"prune": {"budget": {"max_accuracy_drop": 1, "max_loss_increase": 1}}}, "exactly one"),
        ({}, "prune is missing"),
        ({"name": "a/b", **PRUNE}, "name"),
        ({"name": "..", **PRUNE}, "name"),
        ({"name": "", **PRUNE}, "name"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(table, expected):
    with pytest.raises(InputError, match=expected) as caught:
        ez.Recipe.parse(table)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_tables_given_by_keyword_are_read_as_those_of_parse():
    tables = {
        "train": {"epochs": 3, "penalty": {"l1": {"strength": 0.1}}},
        "prune": {"nonzeros": 9},
    }
    assert ez.Recipe(**tables) == ez.Recipe.parse(tables)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, "prune is missing"),
        (
            {"prune": {"sparsity": 2}},
            "prune.sparsity is 2; expected a number in [0, 1)",
        ),
        ({"prune": {}, "prunee": {}}, "unknown key 'prunee'; did you mean prune?"),
        (
            {"prune": {"sparsity": 0.5}, "seed": -1},
            "seed is -1; expected a number >= 0",
        ),
    ],
)
def test_what_does_not_fit_is_an_input_error_by_keyword_too(tables, expected):
    with pytest.raises(ez.InputError, match=f"^{re.escape(expected)}"):
        ez.Recipe(**tables)


@pytest.mark.parametrize("kind", [ez.Recipe, ez.Study])
def test_tables_by_position_point_to_parse(kind):
    with pytest.raises(ez.InputError, match=rf"{kind.__name__}\.parse takes a mapping"):
        kind({"prune": {"sparsity": 0.5}})


@pytest.mark.parametrize("odd", [5, None, "prune", [("prune", {})], {1: 2}], ids=str)
def test_what_are_no_tables_is_refused(odd):
    with pytest.raises(ez.InputError, match=r"expected tables under their names"):
        ez.Recipe.parse(odd)


def test_all_mistakes_are_named_at_once():
    with pytest.raises(InputError, match=r"seed.*prune\.sparsity"):
        ez.Recipe.parse({"seed": "x", "prune": {"sparsity": 2}})


@pytest.mark.parametrize(
    "targets",
    [
        {},
        {"sparsity": 0.5, "nonzeros": 3},
        {"sparsity": 0.5, "budget": {"max_accuracy_drop": 1}},
        {"nonzeros": 3, "budget": {"max_accuracy_drop": 1}},
    ],
)
def test_exactly_one_of_sparsity_nonzeros_and_budget(targets):
    with pytest.raises(InputError, match="expected exactly one of sparsity, nonzeros, budget"):
        ez.Recipe.parse({"prune": targets})


@pytest.mark.parametrize(
    ("prune", "kept"),
    [
        ({"sparsity": 0.985}, 15),
        ({"sparsity": 0.0}, 1000),
        ({"sparsity": 0.9999}, 1),
        ({"nonzeros": 7}, 7),
        ({"budget": {"max_loss_increase": 0.1}}, None),
    ],
)
def test_how_many_of_a_thousand_weights_stay(prune, kept):
    assert ez.Recipe.parse({"prune": prune}).prune.target(1000) == kept


def test_a_penalty_that_is_no_table_says_where():
    with pytest.raises(InputError, match=r"train\.penalty: got 3; expected tables such as"):
        ez.Recipe.parse({"train": {"penalty": 3}, **PRUNE})
    with pytest.raises(InputError, match=r"train\.penalty: L0: strength is -1"):
        ez.Recipe.parse({"train": {"penalty": {"l0": {"strength": -1}}}, **PRUNE})


def test_a_budget_has_several_rounds_unless_it_is_told_otherwise():
    budget = {"max_accuracy_drop": 1}
    assert ez.Recipe.parse({"prune": {"budget": budget}}).prune.rounds == 5
    assert ez.Recipe.parse({"prune": {"budget": budget, "rounds": 2}}).prune.rounds == 2
    assert ez.Recipe.parse(PRUNE).prune.rounds == 1


def test_more_nonzeros_than_weights_is_an_error():
    with pytest.raises(InputError, match=r"1001.*only 1000"):
        ez.Recipe.parse({"prune": {"nonzeros": 1001}}).prune.target(1000)


def test_reference_and_finetune_take_over_what_train_says_but_not_how_long():
    told = recipe(
        train={
            "epochs": 50,
            "optimizer": "sgd",
            "learning_rate": 0.3,
            "momentum": 0.5,
            "batch_size": 7,
            "warmup": 0.2,
            "decay": "linear",
        },
        finetune={"epochs": 2, "learning_rate": 0.1},
    )
    for stage in (told.reference, told.finetune):
        assert (stage.optimizer, stage.momentum, stage.batch_size) == ("sgd", 0.5, 7)
        assert (stage.warmup, stage.decay) == (0.2, "linear")
    assert (told.reference.learning_rate, told.finetune.learning_rate) == (0.3, 0.1)
    assert (told.reference.epochs, told.finetune.epochs) == (3, 2)


def test_stages_take_over_what_a_train_object_says_as_they_do_of_a_table():
    train = {"optimizer": "sgd", "learning_rate": 0.3, "penalty": {"l1": {"strength": 1e-4}}}
    finetune = {"learning_rate": 0.1}
    tables = recipe(train=train, finetune=finetune)
    given = ez.Recipe(
        device="cpu",
        train=tables.train,
        reference=Reference(epochs=3),
        finetune=Finetune(epochs=3, learning_rate=0.1),
        prune=tables.prune,
    )
    assert given == tables
    assert (given.finetune.optimizer, given.reference.learning_rate) == ("sgd", 0.3)


def test_of_the_penalty_only_l2_is_taken_over():
    l0, l1, l2 = ({"strength": s} for s in (1e-3, 1e-4, 1e-5))
    told = recipe(train={"penalty": {"l0": l0, "l1": l1, "l2": l2}})
    assert told.train.penalty == ez.L0(1e-3) + ez.L1(1e-4) + ez.L2(1e-5)
    assert told.reference.penalty == told.finetune.penalty == ez.L2(1e-5)
    told = recipe(train={"penalty": {"l0": l0, "l1": l1}})
    assert told.reference.penalty is told.finetune.penalty is None


def test_a_stage_of_its_own_penalty_keeps_it():
    told = recipe(finetune={"penalty": {"l1": {"strength": 1e-4}}}, reference={"penalty": {}})
    assert told.finetune.penalty == ez.L1(1e-4)
    assert told.reference.penalty is None


ROUND_TRIPS: list[dict[str, Any]] = [
    {"prune": {"sparsity": 0.9}},
    {"prune": {"nonzeros": 50, "rounds": 3}},
    {"prune": {"budget": {"max_accuracy_drop": 0.5}, "rounds": 4}},
    {"prune": {"budget": {"max_loss_increase": 0.1}, "include": ["a.*", "b"], "exclude": ["c"]}},
    {"prune": {"sparsity": 0.9, "gradual": {"after": 0.1, "until": 0.6}}},
    {"prune": {"sparsity": 0.9, "gradual": {"shape": "linear"}, "scope": "global"}},
    {"prune": {"sparsity": 0.9, "scope": "layer"}},
    {"reference": {"file": "some/where.safetensors"}, **PRUNE},
    {"train": {"penalty": {"l0": {"strength": 1e-5, "beta": 3, "form": "decoupled"}}}, **PRUNE},
    {"train": {"penalty": {"l0": [{"strength": 1.0}, {"strength": 2.0, "beta": 9}]}}, **PRUNE},
    {
        "train": {
            "penalty": {
                "l0": {"strength": 1e-5, "beta": {"start": 1, "end": 10, "shape": "cosine"}}
            }
        },
        **PRUNE,
    },
    {"train": {"penalty": {"hoyer_square": {"strength": 1e-4, "form": "loss"}}}, **PRUNE},
    {"train": {"penalty": {"group_lasso": {"strength": 0.1, "form": "decoupled"}}}, **PRUNE},
    {
        "train": {
            "penalty": {"l0": {"strength": 1e-5}, "l1": {"strength": 1}, "l2": {"strength": 2}},
            "ramp": {"shape": "cosine", "after": 0.1, "until": 0.9},
            "layer_scale": "inverse",
        },
        "finetune": {"penalty": {"l2": {"strength": 7, "form": "loss"}}},
        **PRUNE,
    },
    {"train": {"penalty": {"l2": {"strength": 1}}}, "finetune": {"penalty": {}}, **PRUNE},
    *({"train": {"gates": {name: c.table}}, **PRUNE} for name, c in GATES_CASES.items()),
    {"train": {"gates": {}}, **PRUNE},
    {"train": {"file": "some/trained.safetensors", "start": "initial"}, **PRUNE},
    {"train": {"start": "reference"}, **PRUNE},
    {"train": {"steps": 500}, "finetune": {"epochs": 2}, "reference": {"steps": 9}, **PRUNE},
    {"train": {"optimizer": "RMSprop", "momentum": 0.5, "weight_decay": 0.1}, **PRUNE},
    {
        "train": {
            "optimizer": {"name": "AdamW", "betas": [0.9, 0.98], "eps": 1e-6},
            "weight_decay": 0.1,
            "no_decay": ["bias", "norm"],
            "gradient_accumulation_steps": 4,
            "clip_grad_norm": 1,
            "ema_decay": 0.99,
        },
        "finetune": {"clip_grad_norm": 0, "clip_grad_value": 0.5},
        **PRUNE,
    },
    {
        "name": "all of it",
        "model": {"name": "my.module:net", "width": 3, "deep": {"list": [1, 2.5, "x", True]}},
        "data": "mnist-5k",
        "seed": 7,
        "device": "cpu",
        "threads": 2,
        "precision": "bfloat16",
        "channels_last": True,
        "checkpoint_seconds": 0.5,
        "on_divergence": "retry",
        **PRUNE,
    },
]


@pytest.mark.parametrize("table", ROUND_TRIPS)
def test_a_recipe_that_is_written_and_read_again_is_the_same(table, tmp_path):
    told = ez.Recipe.parse(table)
    again = read(tmp_path, told.to_toml())
    assert again == told
    assert again.to_toml() == told.to_toml()
    assert ez.Recipe.parse(told.to_table()) == told


def test_the_order_of_a_sum_does_not_hang_on_how_it_was_written(tmp_path):
    # TOML's writer puts arrays before tables, and a sum in another order gives other bits
    l0, l1 = [{"strength": 1}, {"strength": 2}], {"strength": 3}
    told = ez.Recipe.parse({"train": {"penalty": {"l1": l1, "l0": l0}}, **PRUNE})
    assert read(tmp_path, told.to_toml()).train.penalty == told.train.penalty
    assert told == ez.Recipe.parse({"train": {"penalty": {"l0": l0, "l1": l1}}, **PRUNE})


def test_an_explicitly_empty_penalty_is_not_inherited_when_read_again(tmp_path):
    table = {"train": {"penalty": {"l2": {"strength": 1}}}, "finetune": {"penalty": {}}, **PRUNE}
    again = read(tmp_path, ez.Recipe.parse(table).to_toml())
    assert again.finetune.penalty is None
    assert again.reference.penalty == ez.L2(1)


@pytest.mark.parametrize("name", GATES_CASES)
def test_gates_are_those_of_their_table_and_the_training_s_alone(name, tmp_path):
    case = GATES_CASES[name]
    told = ez.Recipe.parse({"train": {"gates": {name: case.table}}, **PRUNE})
    assert told.train.gates == read(tmp_path, told.to_toml()).train.gates == case.gates
    assert told.train.penalty is told.finetune.penalty is told.reference.penalty is None
    again = read(tmp_path, f"train.gates.{name}.strength = 1\nprune.sparsity = 0.9")
    assert again.train.gates == type(case.gates)(1)
    changed = read(tmp_path, told.to_toml(), f"train.gates.{name}.strength=7")
    assert changed.train.gates is not None
    assert changed.train.gates.strength == 7
    assert ez.Recipe.parse(PRUNE).train.gates is None


strengths = st.floats(0, 1e6, allow_subnormal=False)
terms = st.fixed_dictionaries({"strength": strengths})
stages = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(1, 1000),
        "batch_size": st.integers(1, 1 << 20),
        "learning_rate": st.floats(1e-12, 1e3),
        "warmup": st.floats(0, 1, exclude_max=True),
        "decay": st.sampled_from(["constant", "linear", "cosine", "cubic"]),
        "penalty": st.fixed_dictionaries(
            {}, optional={"l0": st.lists(terms, min_size=1, max_size=3), "l1": terms, "l2": terms}
        ),
    },
)
optimizers = st.one_of(
    st.fixed_dictionaries({}),
    st.fixed_dictionaries({"optimizer": st.sampled_from(["adam", "adamw", "RMSprop"])}),
    st.fixed_dictionaries(
        {"optimizer": st.just("sgd")}, optional={"momentum": st.floats(0, 1, exclude_max=True)}
    ),
)
stages = st.builds(lambda table, optimizer: {**table, **optimizer}, stages, optimizers)


@settings(max_examples=25)
@given(
    st.fixed_dictionaries(
        {"prune": st.fixed_dictionaries({"sparsity": st.floats(0, 1, exclude_max=True)})},
        optional={
            "name": st.from_regex("[a-z0-9_][a-z0-9_ .-]{0,9}", fullmatch=True),
            "reference": stages,
            "train": stages,
            "finetune": stages,
            "seed": st.integers(0, 2**31 - 1),
        },
    )
)
def test_any_recipe_survives_writing_and_reading(table):
    told = ez.Recipe.parse(table)
    assert ez.Recipe.parse(tomllib.loads(told.to_toml())) == told


def test_a_recipe_is_frozen():
    told = recipe()
    for table, key in ((told, "seed"), (told.prune, "sparsity"), (told.train, "epochs")):
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(table, key, 0)


def test_the_name_is_that_of_the_file_unless_it_has_one(tmp_path):
    assert read(tmp_path, "prune.sparsity = 0.9").name == "mine"
    assert read(tmp_path, "name = 'other'\nprune.sparsity = 0.9").name == "other"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("prune.sparsity=0.98", "prune.sparsity", 0.98),
        (" train.epochs = 5 ", "train.epochs", 5),
        ("train.optimizer=sgd", "train.optimizer", "sgd"),
        ("train.optimizer =  sgd ", "train.optimizer", "sgd"),
        ("train.optimizer='sgd'", "train.optimizer", "sgd"),
        ("train.penalty.l0.strength=2e-3", "train.penalty.strength", 2e-3),
        ("seed=3", "seed", 3),
        ("model=lenet-5-caffe", "model.name", "lenet-5-caffe"),
        ("model=my.own:net", "model.name", "my.own:net"),
        ("channels_last=true", "channels_last", True),
        ("train.steps=9", "train.steps", 9),
        ("train.steps=9", "train.epochs", None),
        ("reference.epochs=9", "reference.epochs", 9),
        ("reference.epochs=9", "reference.steps", None),
        ("finetune.learning_rate=0.5", "finetune.learning_rate", 0.5),
        ("prune.exclude=['a', 'b']", "prune.exclude", ("a", "b")),
    ],
)
def test_an_override_sets_one_value(tmp_path, override, path, value):
    text = """
    model = "lenet-300-100"
    reference.steps = 8
    train.epochs = 7
    [train.penalty.l0]
    strength = 1e-5
    [prune]
    sparsity = 0.9
    """
    found: Any = read(tmp_path, text, override)
    for key in path.split("."):
        found = getattr(found, key)
    assert found == value


def test_an_option_can_be_set_where_the_model_is_a_plain_name(tmp_path):
    told = read(tmp_path, "model = 'lenet-300-100'\nprune.sparsity = 0.9", "model.dropout=0.2")
    assert told.model is not None
    assert (told.model.name, told.model.options) == ("lenet-300-100", {"dropout": 0.2})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.nonzeros=9", (None, 9, None)),
        ("prune.budget={max_accuracy_drop=1}", (None, None, ez.Budget(max_accuracy_drop=1))),
        ("prune.budget.max_accuracy_drop=1", (None, None, ez.Budget(max_accuracy_drop=1))),
    ],
)
def test_a_target_set_takes_the_place_of_the_recipes(tmp_path, override, expected):
    prune = read(tmp_path, "prune.sparsity = 0.9", override).prune
    assert (prune.sparsity, prune.nonzeros, prune.budget) == expected


def test_the_last_of_two_overrides_counts(tmp_path):
    assert read(tmp_path, "prune.sparsity = 0.9", "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("prune.sparsity", "not of the form table.key=value"),
        ("=3", "not of the form"),
        ("prune..sparsity=3", "not of the form"),
        ("seed.deep=3", "seed is not a table"),
        ("prune.sparsity=2", r"prune\.sparsity"),
        ("prune.sparsity=", r"prune\.sparsity"),
        ("prune.sparsiti=0.5", "did you mean sparsity"),
        ("train.epochs=many", r"train\.epochs.*'many'"),
    ],
)
def test_a_bad_override_is_an_error(tmp_path, override, expected):
    with pytest.raises(InputError, match=expected):
        read(tmp_path, "seed = 1\nprune.sparsity = 0.9", override)


def test_what_is_not_toml_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"mine\.toml is not TOML: .*line 1"):
        read(tmp_path, "prune = sparsity")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.toml is not TOML"):
        ez.Recipe.read(path)


def test_a_missing_recipe_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match=r"cannot read recipe .*none\.toml: No such file"):
        ez.Recipe.read(tmp_path / "none.toml")
    with pytest.raises(InputError, match="Is a directory"):
        ez.Recipe.read(tmp_path)


def test_a_mistake_in_a_file_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"recipe .*mine\.toml: .*did you mean seed"):
        read(tmp_path, "sed = 1\nprune.sparsity = 0.9")
