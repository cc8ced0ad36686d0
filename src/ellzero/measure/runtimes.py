"""The ways to run a network that latency is measured of, each as a function of no arguments."""

from __future__ import annotations

import ctypes
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise
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
from ellzero.graph.network import outputs_of
from ellzero.operations import Activation, Flatten, Linear, Select

Call = Callable[[], object]

Inputs = tuple[Tensor, ...]
"""A batch of each of a network's inputs."""

CALL_OVERHEAD = "an empty C function"
"""What calling C from Python takes by itself: the wrapper's share of the compiled C."""


def torch_dense(network: Network, batch: Inputs) -> Call:
    """The network as PyTorch runs it."""
    return torch.no_grad()(lambda: network(*batch))


def torch_csr(network: Network, batch: Inputs) -> Call:
    """PyTorch with the weights of linear layers as CSR tensors; convolutions stay dense."""
    uses = Counter(name for node in network.graph.nodes for name in node.weights.values())
    linear = [node for node in network.graph.nodes if isinstance(node.op, Linear)]
    nodes = [node for node in linear if uses[node.weights["weight"]] == 1]
    if not nodes:
        raise InputError("no linear layer with a weight of its own")
    weights = {name: network.weight(name).detach() for name in network.graph.weight_names()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR a beta
        for name in {node.weights["weight"] for node in nodes}:
            weights[name] = weights[name].to_sparse_csr()
    sparse = Network(network.graph, weights).eval()
    try:
        with torch.no_grad():
            sparse(*batch)
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(f"torch has no such product: {str(error).splitlines()[0]}") from None
    return torch.no_grad()(lambda: sparse(*batch))


def scipy_csr(network: Network, batch: Inputs) -> Call:
    """Linear layers as scipy's CSR products, all else in numpy; no convolutions."""
    steps = []
    for before, node in pairwise(network.graph.nodes):
        if node.inputs != (before.name,):
            raise InputError(f"not for {node.name}, which does not read the node before it alone")
        steps.append(_numpy_step(network, node))
    values = batch[0].numpy()

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
        case Linear(transposed=False) if len(network.shapes[node.name]) == 1:
            matrix = sparse.csr_array(weights["weight"].numpy())
            bias = weights["bias"].numpy() if "bias" in weights else np.float32(0)
            return lambda x: (matrix @ x.T).T + bias
        case Flatten():
            return lambda x: x.reshape(len(x), -1)
        case Select():
            return partial(np.take, indices=weights["indices"].numpy(), axis=node.op.axis + 1)
        case Activation(function="relu"):
            return lambda x: np.maximum(x, 0)
    raise InputError(f"not for {node.name} ({node.op.kind})")


def onnx_bound(network: Network, batch: Inputs, threads: int) -> Call:
    """onnxruntime with input and output bound beforehand, so that nothing is copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, path, batch)
        session = onnxruntime.InferenceSession(
            path.read_bytes(), options, providers=["CPUExecutionProvider"]
        )
    with torch.inference_mode():
        results = outputs_of(network(*batch))
    binding = session.io_binding()
    for known, x in zip(session.get_inputs(), batch, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy())
        binding.bind_ortvalue_input(known.name, value)
    for known, result in zip(session.get_outputs(), results, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(result.shape, np.float32))
        binding.bind_ortvalue_output(known.name, value)
    return lambda: session.run_with_iobinding(binding)


def compiled_c(network: Network, batch: Inputs) -> Call:
    """Generated C for this machine, called once for each example."""
    with tempfile.TemporaryDirectory() as folder:
        export_c(network, Path(folder) / "c", example=batch, storage="fastest")
        compiled = compile_c(Path(folder) / "c")
    inputs = torch.cat([x.flatten(1).float() for x in batch], 1).numpy()
    outputs = np.empty((len(inputs), compiled.outputs), np.float32)
    return compiled.bound(inputs, outputs)


def empty_c(batch: Inputs) -> Call:
    """A C function that does nothing, called once for each example."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text("int empty(const float *x, float *y) { (void)x; (void)y; return 0; }\n")
        empty = load_c(source).empty
    empty.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    places = [(batch[0].data_ptr(), batch[0].data_ptr())] * len(batch[0])

    def call() -> None:
        for x, y in places:
            empty(x, y)

    return call
