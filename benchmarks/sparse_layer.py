"""One sparse layer at batch 1: generated C against scipy's own kernel, PyTorch and onnxruntime.

    python benchmarks/sparse_layer.py [--size 4096] [--density 0.01]

Prints a table and one line of JSON. "scipy, raw kernel" is the compiled function behind scipy's
CSR product, on arrays made beforehand, without what `@` does around it.
"""

import argparse
import json

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import _sparsetools
from torch import nn

import ellzero as ez
from ellzero.measure import runtimes
from ellzero.measure.latency import time_calls


def layer(size: int, density: float) -> nn.Linear:
    """A square layer without a bias, its nonzeros in random places."""
    torch.manual_seed(0)
    model = nn.Linear(size, size, bias=False)
    ez.prune(model, sparsity=1 - density)
    return model


def raw_kernel(model: nn.Linear, x: torch.Tensor) -> runtimes.Call:
    """Scipy's CSR product as its compiled kernel, which adds to its output."""
    matrix = sparse.csr_array(model.weight.detach().numpy())
    values, output = x.numpy().ravel(), np.zeros(matrix.shape[0], np.float32)
    return lambda: _sparsetools.csr_matvec(
        *matrix.shape, matrix.indptr, matrix.indices, matrix.data, values, output
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--density", type=float, default=0.01)
    told = parser.parse_args()
    torch.set_num_threads(1)
    model, x = layer(told.size, told.density), torch.randn(1, told.size)
    network = ez.trace(model, x)
    found = time_calls(
        {
            "torch dense": runtimes.torch_dense(network, x),
            "torch CSR": runtimes.torch_csr(network, x),
            "onnxruntime": runtimes.onnx_bound(network, x, 1),
            "scipy CSR": runtimes.scipy_csr(network, x),
            "scipy, raw kernel": raw_kernel(model, x),
            "compiled C": runtimes.compiled_c(network, x),
        }
    )
    print(f"{told.size} x {told.size}, density {told.density:g}, batch 1, one thread")
    print(f"{'':20} {'us':>8}  {'quartiles':>15}")
    for way, latency in found.items():
        low, median, high = (1e6 * s for s in (latency.low_s, latency.median_s, latency.high_s))
        print(f"{way:20} {median:8.1f}  {low:7.1f}-{high:.1f}")
    ratio = found["scipy, raw kernel"].median_s / found["compiled C"].median_s
    print(f"compiled C is {ratio:.2f} times as fast as scipy's raw kernel")
    seconds = {way: latency.median_s for way, latency in found.items()}
    print(json.dumps({"size": told.size, "density": told.density, "median_s": seconds}))


if __name__ == "__main__":
    main()
