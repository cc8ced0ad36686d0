"""Sources: built-in names, the user's own functions, and what can go wrong with either."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import ellzero as ez
from ellzero.errors import InputError, UserCodeError
from ellzero.factories import build_data, build_model, with_data_root
from ellzero.recipe import Factory


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a module into the current folder, which is a fresh one for each test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    before = set(sys.modules)

    def write(text: str, name: str = "own_module.py") -> None:
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


OWN = """
    import torch, ellzero as ez
    from torch import nn

    def network(width=4, *, bias=True):
        return nn.Linear(6, width, bias=bias)

    def data(count=9, data_root=None):
        x, y = torch.randn(count, 6), torch.arange(count) % 3
        made = ez.Data((x, y), (x, y))
        made.data_root = data_root
        return made

    def anything(**options):
        return nn.Linear(len(options), 1)

    def number():
        return 7

    def fails():
        return {}["no such key"]

    def refuses():
        raise ez.EllzeroError("my own words")
"""


def source(name, **options):
    return Factory.model_validate({"name": name, **options})


def test_ones_own_function_in_the_current_folder(write):
    write(OWN)
    model = build_model(source("own_module:network", width=5, bias=False), 0)
    assert isinstance(model, nn.Linear)
    assert (tuple(model.weight.shape), model.bias) == ((5, 6), None)
    assert isinstance(build_model(source("own_module:anything", a=1, b=2), 0), nn.Linear)
    assert build_data(source("own_module:data", count=12)).train.batch_count(1) == 12


def test_ones_own_function_in_a_package(write):
    write("", "own_package/__init__.py")
    write(OWN, "own_package/inner.py")
    assert isinstance(build_model(source("own_package.inner:network"), 0), nn.Linear)


def test_a_class_is_a_function_too():
    model = build_model(source("torch.nn:Linear", in_features=2, out_features=3), 0)
    assert isinstance(model, nn.Linear)


def test_initial_weights_come_from_the_seed_and_not_from_the_caller():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = build_model(source("lenet-5-caffe"), 3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = (build_model(source("lenet-5-caffe"), seed).state_dict() for seed in (3, 4))
    assert torch.equal(first["fc1.weight"], again["fc1.weight"])
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_the_data_root_goes_to_functions_that_take_one(write):
    write(OWN)
    root = Path("somewhere").absolute()  # as the run's recipe keeps it, for a later evaluation

    def found(asked, data_root=None):
        return build_data(with_data_root(asked, data_root)).data_root  # pyright: ignore

    assert found(source("own_module:data"), Path("somewhere")) == str(root)
    # the command line's comes before the recipe's
    assert found(source("own_module:data", data_root="x"), Path("somewhere")) == str(root)
    assert found(source("own_module:data", data_root="x")) == "x"
    assert with_data_root(source("mnist-5k"), root) == source("mnist-5k")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lenet-300", {}, r"model 'lenet-300' is not built in \(did you mean lenet-300-100"),
        ("zzz", {}, r"known: audio-conv, .*lenet-300-100, .*package\.module:function"),
        ("lenet-5-caffe", {"dropuot": 0.1}, "has no option 'dropuot'; did you mean .*dropout"),
        ("own_module:network", {"witdh": 1}, r"has no option 'witdh'; did you mean width"),
        ("own_module:netwrok", {}, r"own_module has no function 'netwrok'; did you mean network"),
        ("own_module:", {}, "has no function ''"),
        ("own_module:torch", {}, "has no function 'torch'"),
        ("no_such_module:f", {}, "there is no module 'no_such_module' in this folder"),
        ("own_module.deep:f", {}, "there is no module 'own_module.deep'"),
        ("torch.nosuch:f", {}, "there is no module 'torch.nosuch'"),
        ("own_module:number", {}, r"own_module:number gave int; expected nn\.Module"),
        ("own_module:data", {}, r"gave Data; expected nn\.Module"),
    ],
)
def test_a_model_that_cannot_be_had(name, options, expected, write):
    write(OWN)
    with pytest.raises(InputError, match=expected):
        build_model(source(name, **options), 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist-5", "data 'mnist-5' is not built in .*did you mean mnist-5k"),
        ("own_module:network", r"own_module:network gave Linear; expected ez\.Data"),
    ],
)
def test_data_that_cannot_be_had(name, expected, write):
    write(OWN)
    with pytest.raises(InputError, match=expected):
        build_data(source(name))


def test_a_recipe_without_model_or_data():
    with pytest.raises(InputError, match="the recipe names no model; write model ="):
        build_model(None, 0)
    with pytest.raises(InputError, match="the recipe names no data; write data ="):
        build_data(None)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("raise RuntimeError('my mistake')", RuntimeError),
        ("import no_such_library", ModuleNotFoundError),
        ("from own_module import no_such_name", ImportError),
        ("def f(:", SyntaxError),
    ],
)
def test_a_module_that_fails_keeps_its_own_error_as_the_cause(text, cause, write):
    write(text)
    with pytest.raises(UserCodeError, match="'own_module:f': importing it failed") as caught:
        build_model(source("own_module:f"), 0)
    assert type(caught.value.__cause__) is cause


def test_a_function_that_fails_keeps_its_own_error_as_the_cause(write):
    write(OWN)
    with pytest.raises(UserCodeError, match="'own_module:fails' failed: KeyError") as caught:
        build_model(source("own_module:fails"), 0)
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(ez.InputError, match=r"needs in_features; write model = \{name = .*, in_f"):
        build_model(source("torch.nn:Linear", out_features=3), 0)


def test_an_error_in_ellzeros_own_words_passes(write):
    write(OWN)
    with pytest.raises(ez.EllzeroError, match=r"^my own words$"):
        build_model(source("own_module:refuses"), 0)
