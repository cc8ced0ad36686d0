"""Generated C as a Python callable."""

import functools
import shutil

import numpy as np
import pytest
import torch

import ellzero as ez
from c_programs import assert_close, needs_gcc, predicted, random_network, raw_inputs
from ellzero.export.c.compiled import Compiled
from ellzero.graph import Network
from small import convnet, mlp

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def traced(seed: int = 0) -> Network:
    return ez.trace(mlp(seed=seed), X)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Compiled:
    """The network of `traced`, which takes 6 values and gives 3."""
    return ez.compile_c(ez.export_c(traced(), tmp_path_factory.mktemp("net")))


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
@needs_gcc
@pytest.mark.parametrize("storage", ["smallest", "fastest", "dense"])
@pytest.mark.parametrize("seed", [1, 4])
def test_outputs_are_pytorchs(tmp_path, storage, seed):
    network = random_network(seed)
    ez.export_c(network, tmp_path, storage=storage)
    x = raw_inputs(network)
    found = ez.compile_c(tmp_path)(x)
    assert found.dtype == torch.float32
    assert_close(found, predicted(network, x), storage)


@pytest.mark.filterwarnings("ignore::ellzero.EllzeroWarning")
@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("storage", ["smallest", "fastest", "dense"])
def test_outputs_of_many_networks(tmp_path, storage):
    """Vectorized code for this machine, which the sanitizers' build is not."""
    for seed in set(range(400, 430)) - {417}:  # a maximum over padding alone: -inf, refused
        network = random_network(seed)
        ez.export_c(network, tmp_path, storage=storage)
        x = raw_inputs(network)
        assert_close(ez.compile_c(tmp_path)(x), predicted(network, x), f"{seed}, {storage}")


@needs_gcc
def test_inputs_of_any_kind(tmp_path):
    model = convnet().eval()
    x = torch.randint(0, 256, (3, 2, 6, 6), dtype=torch.uint8)
    prepare = ez.Preprocess(1 / 128, -1.0)
    source = ez.export_c(ez.trace(model, x.float(), preprocess=prepare), tmp_path)
    net = ez.compile_c(source.folder)
    expected = model(prepare(x))
    for same in (x, x.flatten(1), x.numpy(), x.double(), x.transpose(2, 3).mT):
        assert_close(net(same), expected.double(), str(type(same)))
    batch, outputs = np.ascontiguousarray(x, np.float32), np.empty((3, 2), np.float32)
    net.bound(batch, outputs)()
    assert_close(torch.from_numpy(outputs), expected.double(), "bound")


@needs_gcc
def test_inputs_of_another_size(net):
    for wrong in (X[:, :5], X[:0], torch.zeros(0), torch.tensor(1.0)):
        with pytest.raises(ez.InputError, match="of 6 values each"):
            net(wrong)


@needs_gcc
def test_inputs_that_numpy_cannot_read(net):
    assert torch.equal(net(X.clone().requires_grad_()), net(X))
    rounded = X.bfloat16()
    assert torch.equal(net(rounded), net(rounded.float()))


@needs_gcc
def test_memory_that_c_would_leave(net):
    batch, outputs = X.numpy(), np.zeros((4, 3), np.float32)
    net.bound(batch, outputs)
    read_only = outputs.copy()
    read_only.flags.writeable = False
    wrong = {
        "batch is float64": (batch.astype(np.float64), outputs),
        "batch is Tensor": (X, outputs),
        r"batch is \(4, 5\)": (batch[:, :5].copy(), outputs),
        r"batch is \(4, 6\) with strides \(4, 16\)": (np.asfortranarray(batch), outputs),
        r"batch is \(\)": (np.array(1, np.float32), outputs),
        "outputs is int32": (batch, outputs.astype(np.int32)),
        r"outputs is \(3, 3\)": (batch, outputs[:3]),
        r"outputs is \(4, 3\) with strides": (batch, np.zeros((4, 6), np.float32)[:, ::2]),
        "outputs can only be read": (batch, read_only),
    }
    for message, arrays in wrong.items():
        with pytest.raises(ez.InputError, match=message):
            net.bound(*arrays)
    assert not outputs.any(), "binding alone runs nothing"


@needs_gcc
def test_several_networks_at_once(tmp_path):
    """In one folder and, of one name, in two: each library keeps its own."""
    sources = [
        ez.export_c(traced(seed), tmp_path, example=X, name=name)
        for seed, name in ((1, "one"), (2, "two"))
    ]
    with pytest.raises(ez.InputError, match=r"one, two.*name="):
        ez.compile_c(tmp_path)
    # by name, and by what export_c returned
    nets = [ez.compile_c(tmp_path, name="one"), ez.compile_c(sources[1])]
    ez.export_c(traced(3), tmp_path / "other", example=X, name="one")
    nets.append(ez.compile_c(tmp_path / "other"))
    for seed, net in enumerate(nets, start=1):
        assert_close(net(X), mlp(seed=seed)(X).double(), str(seed))
    assert sorted(path.suffix for path in tmp_path.glob("one*")) == [".c", ".c", ".h"]


def test_nothing_to_compile(tmp_path):
    with pytest.raises(ez.InputError, match="holds none"):
        ez.compile_c(tmp_path)
    with pytest.raises(ez.InputError, match=r"there is no folder .*nowhere"):
        ez.compile_c(tmp_path / "nowhere")
    ez.export_c(traced(), tmp_path, example=X)
    with pytest.raises(ez.InputError, match=r"no other\.c"):
        ez.compile_c(tmp_path, name="other")
    (tmp_path / "net.h").write_text("/* mine */")
    with pytest.raises(ez.InputError, match="export_c did not write it"):
        ez.compile_c(tmp_path)


def test_no_compiler(tmp_path, monkeypatch):
    ez.export_c(traced(), tmp_path, example=X)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ez.InputError, match=r"no C compiler found \(tried no-such-compiler\)"):
        ez.compile_c(tmp_path, compiler="no-such-compiler")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ez.InputError, match=r"tried cc, gcc, clang\); install gcc"):
        ez.compile_c(tmp_path)
    monkeypatch.setenv("CC", "my-compiler")
    with pytest.raises(ez.InputError, match="tried my-compiler"):
        ez.compile_c(tmp_path)


@needs_gcc
def test_compiler_that_fails(tmp_path):
    ez.export_c(traced(), tmp_path, example=X)
    (tmp_path / "net.c").write_text("int net_predict(\n")
    with pytest.raises(ez.InputError, match=r"failed: .*net\.c:1.*error"):
        ez.compile_c(tmp_path)


@needs_gcc
def test_flags(tmp_path):
    ez.export_c(traced(), tmp_path, example=X)
    net = ez.compile_c(tmp_path, compiler="gcc", flags=["-std=c99", "-O0"])
    assert_close(net(X), mlp()(X).double(), "-O0")
    with pytest.raises(ez.InputError, match=r"flags is '-O2'; expected a list"):
        ez.compile_c(tmp_path, flags="-O2")


@needs_gcc
def test_a_compiler_with_options(tmp_path, monkeypatch):
    """As CC has it in makefiles; and a compiler in a folder whose name has a space."""
    source = ez.export_c(traced(), tmp_path, example=X)
    monkeypatch.setenv("CC", "gcc -O1 -DNET_NO_STATIC=1")
    with pytest.raises(AttributeError, match="net_predict"):  # the option arrived
        ez.compile_c(source)
    monkeypatch.setenv("CC", "env gcc")
    assert_close(ez.compile_c(source)(X), mlp()(X).double(), "a launcher")
    compiler = tmp_path / "my tools" / "cc"
    compiler.parent.mkdir()
    compiler.symlink_to(str(shutil.which("gcc")))
    assert_close(ez.compile_c(source, compiler=str(compiler))(X), mlp()(X).double(), "a space")
    with pytest.raises(ez.InputError, match="is no command: No closing quotation"):
        ez.compile_c(source, compiler="gcc '-O2")
