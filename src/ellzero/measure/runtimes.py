"""The ways to run a network that latency is measured of, each as a function of no arguments."""

from __future__ import annotations

import ctypes
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ellzero.errors import InputError
from ellzero.export.c.compiled import compile_c, load_c
from ellzero.export.c.source import export_c
from ellzero.export.onnx_file import export_onnx
from ellzero.graph import Network
from ellzero.operations import Activation, Flatten, Linear, Select

Call = Callable[[], object]

CALL_OVERHEAD = "an empty C function"
"""What calling C from Python takes by itself: the wrapper's share of the compiled C."""


def torch_dense(network: Network, batch: Tensor) -> Call:
    """The network as PyTorch runs it."""
    return torch.no_grad()(lambda: network(batch))


def torch_csr(network: Network, batch: Tensor) -> Call:
    """PyTorch with the weights of linear layers as CSR tensors; convolutions stay dense."""
    nodes = [node for node in network.graph.nodes if isinstance(node.op, Linear)]
    if not nodes:
        raise InputError("no linear layer")
    weights = {name: network.weight(name).detach() for name in network.graph.weight_names()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR a beta
        for name in {node.weights["weight"] for node in nodes}:
            weights[name] = weights[name].to_sparse_csr()
    sparse = Network(network.graph, weights).eval()
    return torch.no_grad()(lambda: sparse(batch))


def scipy_csr(network: Network, batch: Tensor) -> Call:
    """Linear layers as scipy's CSR products, all else in numpy; no convolutions."""
    steps = [_numpy_step(network, node) for node in network.graph.nodes[1:]]
    values = batch.numpy()

    def call() -> np.ndarray:
        x = values
        for step in steps:
            x = step(x)
        return x

    return call


def _numpy_step(network: Network, node: Any) -> Callable[[np.ndarray], np.ndarray]:
    from scipy import sparse

    weights = {role: network.weight(name).detach() for role, name in node.weights.items()}
    match node.op:
        case Linear():
            matrix = sparse.csr_array(weights["weight"].numpy())
            bias = weights["bias"].numpy() if "bias" in weights else np.float32(0)
            return lambda x: (matrix @ x.T).T + bias
        case Flatten():
            return lambda x: x.reshape(len(x), -1)
        case Select():
            return partial(np.take, indices=weights["indices"].numpy(), axis=1)
        case Activation(function="relu"):
            return lambda x: np.maximum(x, 0)
    raise InputError(f"not for {node.name} ({node.op.kind})")


def onnx_bound(network: Network, batch: Tensor, threads: int) -> Call:
    """onnxruntime with input and output bound beforehand, so that nothing is copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, path)
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    with torch.inference_mode():
        shape = tuple(network(batch).shape)
    binding = session.io_binding()
    inputs = onnxruntime.OrtValue.ortvalue_from_numpy(batch.numpy())
    outputs = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
    binding.bind_ortvalue_input(session.get_inputs()[0].name, inputs)
    binding.bind_ortvalue_output(session.get_outputs()[0].name, outputs)
    return lambda: session.run_with_iobinding(binding)


def compiled_c(network: Network, batch: Tensor) -> Call:
    """Generated C for this machine, called once for each example."""
    with tempfile.TemporaryDirectory() as folder:
        export_c(network, Path(folder) / "c", example=batch, storage="fastest")
        compiled = compile_c(Path(folder) / "c")
    inputs = np.ascontiguousarray(batch.numpy())
    outputs = np.empty((len(batch), compiled.outputs), np.float32)
    return compiled.bound(inputs, outputs)


def empty_c(batch: Tensor) -> Call:
    """A C function that does nothing, called once for each example."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int empty(const float *x, float *y) { (void)x; (void)y; return 0; }\n")
        empty = load_c(source).empty
    empty.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    places = [(batch.data_ptr(), batch.data_ptr())] * len(batch)

    def call() -> None:
        for x, y in places:
            empty(x, y)

    return call
