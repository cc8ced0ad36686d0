"""Generated C as a Python callable."""

import functools

import numpy as np
import pytest
import torch

import ellzero as ez
from c_programs import assert_close, needs_gcc, predicted, random_network, raw_inputs
from ellzero.graph import Network
from small import convnet, mlp

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@functools.cache
def traced(seed: int = 0) -> Network:
    return ez.trace(mlp(seed=seed), X)


@needs_gcc
@pytest.mark.parametrize("aim", ["size", "speed", "dense"])
@pytest.mark.parametrize("seed", [1, 4])
def test_outputs_are_pytorchs(tmp_path, aim, seed):
    network = random_network(seed)
    ez.export_c(network, tmp_path, aim=aim)
    x = raw_inputs(network)
    found = ez.compile_c(tmp_path)(x)
    assert found.dtype == torch.float32
    assert_close(found, predicted(network, x), aim)


@needs_gcc
@pytest.mark.slow
@pytest.mark.parametrize("aim", ["size", "speed", "dense"])
def test_outputs_of_many_networks(tmp_path, aim):
    """Vectorized code for this machine, which the sanitizers' build is not."""
    for seed in range(400, 430):
        network = random_network(seed)
        ez.export_c(network, tmp_path, aim=aim)
        x = raw_inputs(network)
        assert_close(ez.compile_c(tmp_path)(x), predicted(network, x), f"{seed}, {aim}")


@needs_gcc
def test_inputs_of_any_kind(tmp_path):
    model = convnet().eval()
    x = torch.randint(0, 256, (3, 2, 6, 6), dtype=torch.uint8)
    prepare = ez.Affine(1 / 128, -1.0)
    source = ez.export_c(ez.trace(model, x.float(), preprocess=prepare), tmp_path)
    net = ez.compile_c(source.folder)
    expected = model(prepare(x))
    for same in (x, x.flatten(1), x.numpy(), x.double(), x.transpose(2, 3).mT):
        assert_close(net(same), expected.double(), str(type(same)))
    batch, outputs = np.ascontiguousarray(x, np.float32), np.empty((3, 2), np.float32)
    net.bound(batch, outputs)()
    assert_close(torch.from_numpy(outputs), expected.double(), "bound")


@needs_gcc
def test_inputs_of_another_size(tmp_path):
    ez.export_c(traced(), tmp_path, example=X)
    net = ez.compile_c(tmp_path)
    for wrong in (X[:, :5], X[:0], torch.zeros(0), torch.tensor(1.0)):
        with pytest.raises(ez.InputError, match="of 6 values each"):
            net(wrong)


@needs_gcc
def test_several_networks_at_once(tmp_path):
    """In one folder and, of one name, in two: each library keeps its own."""
    for seed, name in ((1, "one"), (2, "two")):
        ez.export_c(traced(seed), tmp_path, example=X, name=name)
    with pytest.raises(ez.InputError, match=r"one, two.*name="):
        ez.compile_c(tmp_path)
    nets = [ez.compile_c(tmp_path, name=name) for name in ("one", "two")]
    ez.export_c(traced(3), tmp_path / "other", example=X, name="one")
    nets.append(ez.compile_c(tmp_path / "other"))
    for seed, net in enumerate(nets, start=1):
        assert_close(net(X), mlp(seed=seed)(X).double(), str(seed))
    assert sorted(path.suffix for path in tmp_path.glob("one*")) == [".c", ".c", ".h"]


def test_nothing_to_compile(tmp_path):
    with pytest.raises(ez.InputError, match="holds none"):
        ez.compile_c(tmp_path)
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
