"""compile = true: other kernels for the same training; and what happens without a compiler."""

import copy
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ellzero as ez
from cases import PENALTY_CASES, fill
from ellzero.training.plan import Step
from ellzero.training.state import State
from small import classification, convnet, images, mlp, recipe

TESTS = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch.compile's own
    pytest.mark.filterwarnings("ignore:add_gradient"),  # there is no loss here
]
needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("c++")), reason="no C++ compiler for torch.compile"
)


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    """How many graphs have been compiled in this test."""
    return torch._dynamo.utils.counters["aot_autograd"]["total"]


def layers(seed: int = 0) -> Any:
    """A kernel in channels_last, a matrix, and one in bfloat16, with zeros among their weights."""
    torch.manual_seed(seed)
    model: Any = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Linear(17, 9), nn.Linear(16, 8)])
    model[0].to(memory_format=torch.channels_last)
    model[2].to(torch.bfloat16)
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(3)
            layer.weight[1, :2] = 0
    return model


def give_gradients(model: Any, size: float, seed: int = 0) -> None:
    """Other tensors every time, as after `zero_grad(set_to_none=True)`."""
    generator = torch.Generator().manual_seed(seed)
    for layer in model:
        layer.weight.grad = torch.empty_like(layer.weight, requires_grad=False)
        fill(layer.weight.grad, size * torch.randn(layer.weight.shape, generator=generator))


def assert_same_gradients(compiled: Any, eager: Any) -> None:
    for a, b in zip(compiled, eager, strict=True):
        found, expected = a.weight.grad, b.weight.grad
        if expected is None:
            assert found is None
            continue
        assert found.dtype == expected.dtype
        steepest = expected.abs().max().item()
        # bfloat16: rounded to different sides, and twice where a sum has a GroupLasso
        half = b.weight.dtype == torch.bfloat16
        rtol, atol = (2.0**-7, 2.0**-8 * steepest) if half else (1e-6, 1e-6 * steepest)
        torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def both(penalty: Any, **options: Any) -> tuple[Any, Any, ez.Regularizer, ez.Regularizer]:
    """The same layers twice, with a regularizer that is compiled, and with one that is not."""
    compiled, eager = layers(), layers()
    return (
        compiled,
        eager,
        ez.Regularizer(compiled, penalty, compile=True, **options),
        ez.Regularizer(eager, penalty, **options),
    )


PENALTIES = {name: case.hand for name, case in PENALTY_CASES.items()} | {
    "l0-steep": ez.L0(0.02, beta=500),
    "sum": ez.L0(0.02, beta=7) + ez.L1(0.01) + ez.L2(0.05) + ez.GroupLasso(0.01),
}


@needs_compiler
@pytest.mark.parametrize("penalty", PENALTIES.values(), ids=PENALTIES)
def test_the_compiled_gradient_is_the_same(penalty):
    compiled, eager, fast, slow = both(penalty, layer_scale="paper")
    for regularizer in (fast, slow):  # first where there is none yet
        regularizer.add_gradient()
    assert_same_gradients(compiled, eager)
    assert any(int(layer.weight.grad.count_nonzero()) > 0 for layer in eager)
    for seed in range(3):
        for model, regularizer in ((compiled, fast), (eager, slow)):
            give_gradients(model, 0.1, seed)
            regularizer.add_gradient()
        assert_same_gradients(compiled, eager)
    assert graphs() == 1


def without_an_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._inductor", None)


def with_another_tracer(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_fx(*arguments: Any, mode: str) -> None:
        """Its argument has another name."""

    monkeypatch.setattr("torch.fx.experimental.proxy_tensor.make_fx", make_fx)


def with_a_tracer_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_fx(*arguments: Any, tracing_mode: str) -> Any:
        raise RuntimeError("no such mode")

    monkeypatch.setattr("torch.fx.experimental.proxy_tensor.make_fx", make_fx)


def with_another_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.compile", lambda graph: None)


def with_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def codegen(*_: Any) -> Any:
        raise TypeError("another version's")

    monkeypatch.setattr("torch._inductor.graph.GraphLowering.codegen", codegen)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_an_interface, "import of torch._inductor halted"),
        (with_another_tracer, "unexpected keyword argument 'tracing_mode'"),
        (with_a_tracer_that_fails, "no such mode"),
        (with_another_compiler, "takes 1 positional argument"),
        (with_a_compiler_that_fails, "TypeError: another version's"),
    ],
)
def test_where_torch_has_another_interface_the_plain_form_is_taken(change, reason, monkeypatch):
    change(monkeypatch)
    # numbers of this test alone, so that no other one's kernels lie in the compiler's cache
    penalty = ez.L0(0.0213, beta=7.125) + ez.L2(0.05)
    compiled, eager, fast, slow = both(penalty, layer_scale="paper")
    for model in (compiled, eager):
        give_gradients(model, 0.1)
    with pytest.warns(ez.EllzeroWarning, match=rf"cannot compile .*{reason}.* torch 2\.11 .*2\.13"):
        fast.add_gradient()
    slow.add_gradient()
    fast.add_gradient()  # and says so once
    slow.add_gradient()
    for a, b in zip(compiled, eager, strict=True):
        assert a.weight.grad.equal(b.weight.grad)


@needs_compiler
def test_a_weight_larger_than_a_chunk_is_one_graph_too():
    penalty = ez.L0(0.02, beta=7) + ez.L2(0.05)
    torch.manual_seed(0)
    compiled = nn.ModuleList([nn.Linear(300, 700)])
    eager = copy.deepcopy(compiled)
    for model, compile in ((compiled, True), (eager, False)):
        give_gradients(model, 0.1)
        ez.Regularizer(model, penalty, compile=compile).add_gradient()
    assert_same_gradients(compiled, eager)
    assert graphs() == 1


@needs_compiler
def test_weights_of_equal_strides_and_other_shapes_have_kernels_of_their_own():
    model = nn.ModuleList([nn.Linear(16, 9), nn.Linear(16, 20)])
    regularizer = ez.Regularizer(model, ez.L2(0.5), compile=True)
    for acting, frozen in ((0, 1), (1, 0), (0, 1)):
        layers: Any = model[acting], model[frozen]
        for layer, moves in zip(layers, (True, False), strict=True):
            layer.weight.grad = None
            layer.weight.requires_grad_(moves)
        regularizer.add_gradient()
        torch.testing.assert_close(layers[0].weight.grad, layers[0].weight.detach())
        assert layers[1].weight.grad is None
    assert graphs() == 2, "the third time there is a kernel already"


@needs_compiler
def test_weights_with_gaps_between_them_and_another_dtype_later():
    torch.manual_seed(0)
    layer: Any = nn.Linear(16, 8)
    layer.weight = nn.Parameter(torch.randn(8, 32)[:, ::2])
    penalty = ez.L0(0.1) + ez.L2(0.1)
    regularizer = ez.Regularizer(layer, penalty, compile=True, ramp=ez.Schedule(0, 1, "linear"))
    regularizer.progress = 0.3
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        layer.to(dtype)
        layer.weight.grad = None
        regularizer.add_gradient()
        expected = 0.3 * penalty.gradient(layer.weight.detach())
        torch.testing.assert_close(layer.weight.grad, expected, rtol=rtol, atol=rtol * 1e-3)


@needs_compiler
def test_a_ramp_compiles_once_for_all_its_values():
    penalty = ez.L0(0.2, beta=7) + ez.L2(0.05)
    compiled, eager, fast, slow = both(penalty, ramp=ez.Schedule(0, 1, "cubic"))
    ends = []
    for progress in (0.0, 0.125, 0.3, 0.5, 0.99, 1.0):
        for model, regularizer in ((compiled, fast), (eager, slow)):
            give_gradients(model, 0.1)
            regularizer.progress = progress
            regularizer.add_gradient()
        assert_same_gradients(compiled, eager)
        ends.append(compiled[1].weight.grad)
    assert graphs() == 1
    assert not any(a.equal(b) for a, b in itertools.pairwise(ends)), "it did rise"


@needs_compiler
@pytest.mark.parametrize("ramp", [None, ez.Schedule(0, 1, "linear")], ids=["steady", "ramp"])
def test_a_weight_that_is_frozen_later_is_left_alone(ramp):
    compiled, eager, fast, slow = both(ez.L0(0.2, beta=7) + ez.L2(0.05), ramp=ramp)
    fast.progress = slow.progress = 0.5
    for frozen in (None, 1, 0):
        for model, regularizer in ((compiled, fast), (eager, slow)):
            if frozen is not None:
                model[frozen].weight.requires_grad_(False)
            give_gradients(model, 0.1)
            regularizer.add_gradient()
        assert_same_gradients(compiled, eager)
    untouched = layers()
    give_gradients(untouched, 0.1)
    for i, same in enumerate((True, True, False)):
        assert compiled[i].weight.grad.equal(untouched[i].weight.grad) == same
    for model, regularizer in ((compiled, fast), (eager, slow)):
        model.requires_grad_(True)
        give_gradients(model, 0.1)
        regularizer.add_gradient()
    assert_same_gradients(compiled, eager)
    assert not compiled[1].weight.grad.equal(untouched[1].weight.grad), "and thawed again"


@needs_compiler
def test_all_weights_frozen_is_no_error():
    compiled, _, fast, _ = both(ez.L2(0.05))
    for layer in compiled:
        layer.weight.requires_grad_(False)
    fast.add_gradient()
    assert all(layer.weight.grad is None for layer in compiled)
    assert graphs() == 0


@needs_compiler
def test_many_regularizers_in_one_process_do_not_run_out_of_compilations():
    # torch gives up on a function that was compiled for too many cases (8 by default)
    for strength in range(1, 12):
        model = layers()[1:2]
        ez.Regularizer(model, ez.L2(float(strength)), compile=True).add_gradient()
        expected = 2 * strength * model[0].weight.detach()
        torch.testing.assert_close(model[0].weight.grad, expected, rtol=1e-6, atol=0)


# a whole scheme


def figures(result: Any) -> list[float]:
    return [outcome.loss for outcome in result.record.outcomes]


SCHEMES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dense-layers": (mlp, classification, {}),
    "decoupled-and-ramp": (
        mlp,
        classification,
        {
            "train": {
                "penalty": {
                    "l0": {"strength": 1e-2, "form": "decoupled"},
                    "l2": {"strength": 1e-4},
                },
                "ramp": {"shape": "linear"},
            }
        },
    ),
    "images": (convnet, images, {"channels_last": True}),
}


@needs_compiler
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_a_scheme_comes_to_the_same_network(scheme):
    network, problem, tables = scheme
    found, expected = (
        ez.compress(
            network(),
            problem(),
            # plain descent: Adam makes a step of full length of the least difference
            recipe(**{**tables, "train": {**sgd(), **tables.get("train", {})}}, compile=compile),
        )
        for compile in (True, False)
    )
    assert graphs() > 0
    assert figures(found) == pytest.approx(figures(expected), rel=1e-4)
    assert found.masks.nonzeros == expected.masks.nonzeros
    assert list(found.model.state_dict()) == list(expected.model.state_dict())
    for name, tensor in found.model.state_dict().items():
        other = expected.model.state_dict()[name]
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-4)


def sgd() -> dict[str, Any]:
    return {"optimizer": "sgd", "learning_rate": 0.05}


@needs_compiler
def test_a_step_compiles_the_network_and_the_penalty():
    model = mlp()
    state = State(model, ez.select(model), start={}, step=Step("train", epochs=1))
    state.equip(recipe(compile=True))
    assert state.forward is not None
    assert state.regularizer is not None
    state.forward(torch.ones(4, 6)).sum().backward()
    assert graphs() == 1
    state.regularizer.add_gradient()
    assert graphs() == 2


# without a compiler

TRAINING = """
import ellzero as ez
from small import classification, mlp, recipe

try:
    ez.compress(mlp(), classification(), recipe(compile=True))
except ez.EllzeroError as error:
    print("refused:", error)
else:
    print("trained")
"""


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CXX", "/nonexistent/g++"), ("PATH", "/nonexistent")],
    ids=["CXX", "PATH"],
)
def test_without_a_compiler_the_recipe_is_refused(variable, value, tmp_path):
    environment = {name: v for name, v in os.environ.items() if name != "CXX"}
    environment |= {
        "PYTHONPATH": str(TESTS),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        variable: value,
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAINING],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused: compile = true: cannot compile for cpu"), done.stdout
    assert "C++ compiler" in done.stdout
    assert "Traceback" not in done.stderr
