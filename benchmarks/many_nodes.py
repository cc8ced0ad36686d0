"""Networks of many nodes: how the time to compact, pack, load and write them as C grows.

`python benchmarks/many_nodes.py [NODES ...]`: a chain of so many ReLUs, which no compaction makes
shorter; by default 5,000, 10,000 and 20,000. Prints the seconds of each, of one thread.
"""

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import ellzero as ez
from ellzero.graph import Graph, Network
from ellzero.operations import Activation, Input

NODES = [5_000, 10_000, 20_000]


def chain(count: int) -> Network:
    """So many ReLUs on 8 values."""
    graph = Graph(
        nodes=[
            {"name": "x", "op": Input(size=(8,))},
            *(
                {
                    "name": f"relu_{index}",
                    "op": Activation(function="relu"),
                    "inputs": [f"relu_{index - 1}" if index else "x"],
                }
                for index in range(count)
            ),
        ]
    )
    return Network(graph, {}).eval()


def seconds(call: Callable[[], object]) -> float:
    """What a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """Print a row for each length."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("nodes", nargs="*", type=int, default=NODES)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that there is no weight
    print("nodes, seconds: compact, pack, load, C")
    for count in parser.parse_args().nodes:
        network, folder = chain(count), Path(tempfile.mkdtemp())
        calls = (
            lambda network=network: ez.compact(network),
            lambda network=network, to=folder: ez.pack(network, to / "net.ellz", progress=False),
            lambda to=folder: ez.load(to / "net.ellz"),
            lambda network=network, to=folder: ez.export_c(network, to / "net-c"),
        )
        print(f"{count:,}:", *(f"{seconds(call):.1f}" for call in calls))


if __name__ == "__main__":
    main()
