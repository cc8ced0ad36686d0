"""Packed files beside `zstd -19` and `xz -9` of the same networks' safetensors files.

`python benchmarks/packed_sizes.py [NAME ...]`: LeNets as float32 and quantized to 2 to 8 bits,
ResNet-18, an LSTM classifier, gpt-small, and a BERT-shaped encoder of 22 million weights whose last
layer is tied to its table of tokens; each dense and pruned. The networks are as they are built:
what is measured is the coding. `--lenet FILE` and `--lenet-5 FILE` take trained weights instead, as
`ez.save` wrote them. Prints bytes and seconds of each, of one thread, and by how much the file
exceeds what its own models say for the codes; fails where a packed file is larger than one of the
others, where packing takes more than twice the seconds of zstd, or where that is more than 3 %.
"""

import argparse
import copy
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from ideal import ideal_bytes
from torch import Tensor, nn

import ellzero as ez
from ellzero.networks.gpt import gpt_small
from ellzero.networks.lenet import lenet_5_caffe, lenet_300_100
from ellzero.packed.reader import read_packed
from networks import resnet_18

IMAGE = torch.zeros(1, 1, 28, 28)
BITS = range(2, 9)


class Classifier(nn.Module):
    """Texts of 5,000 tokens in four classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5000, 64)
        self.lstm = nn.LSTM(64, 128, batch_first=True)
        self.head = nn.Linear(128, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(tokens))[0][:, -1])


class Encoder(nn.Module):
    """Six layers of width 384 over 30,522 tokens, of which the last layer guesses one."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(30522, 384), nn.Embedding(512, 384)
        layer = nn.TransformerEncoderLayer(384, 12, 1536, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.guess = nn.Linear(384, 30522)
        self.guess.weight = self.tokens.weight
        for weight in self.parameters():  # as BERT begins
            if weight.ndim > 1:
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.guess(self.layers(self.tokens(tokens) + self.places(places)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor | None, list[float]]] = {
    "lenet-300-100": (lenet_300_100, IMAGE, [0.985]),
    "lenet-5-caffe": (lenet_5_caffe, IMAGE, [0.995]),
    "resnet-18": (resnet_18, torch.zeros(1, 3, 32, 32), [0, 0.6, 0.9]),
    "lstm": (Classifier, torch.zeros(1, 12, dtype=torch.int64), [0, 0.6, 0.9]),
    "gpt-small": (gpt_small, torch.zeros(1, 64, dtype=torch.int64), [0, 0.6]),
    "encoder": (Encoder, None, [0, 0.6, 0.8]),
}
"""How each is made, an example (None: weights only), and how many of its weights are zero."""


def sparse(model: nn.Module, sparsity: float) -> nn.Module:
    """The network with its linear and convolutional weights pruned, each layer alike."""
    model = copy.deepcopy(model).eval()
    if sparsity:
        ez.prune(model, sparsity=sparsity, scope="layer")
    return model


def cases(
    names: list[str], trained: dict[str, Path | None]
) -> Iterator[tuple[str, nn.Module, Tensor | None]]:
    """What is packed: a name, the network, an example (None: weights only)."""
    for name, (make, example, sparsities) in NETWORKS.items():
        if names and name not in names:
            continue
        torch.manual_seed(0)
        model, file = make(), trained.get(name)
        if file is not None:
            ez.load(file, model)
        for sparsity in sparsities:
            thin = model if file is not None else sparse(model, sparsity)
            yield f"{name}, {sparsity:.1%} zeros", thin, example
            if example is IMAGE:
                for bits in BITS:
                    small = ez.compact(thin, IMAGE).model
                    ez.quantize(small, bits=bits, biases=6)
                    yield f"{name}, {bits} bits", small, example


def seconds(who: int) -> float:
    """Processor time so far, of this process or of those it ran."""
    return resource.getrusage(who).ru_utime


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--lenet", type=Path)
    parser.add_argument("--lenet-5", type=Path)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NETWORKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(NETWORKS)}")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    trained = {"lenet-300-100": arguments.lenet, "lenet-5-caffe": arguments.lenet_5}
    print(
        "network, bytes: safetensors, ellz, zstd, xz; seconds: pack, read, zstd, xz; over the ideal"
    )
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        raw, packed = Path(folder, "x.safetensors"), Path(folder, "x.ellz")
        for name, model, example in cases(arguments.names, trained):
            subject = model if example is None else ez.compact(model, example).model
            ez.save(subject, raw)
            times = [seconds(resource.RUSAGE_SELF)]
            parts = ez.pack(subject, packed).parts
            times.append(seconds(resource.RUSAGE_SELF))
            _, weights = read_packed(packed, max_bytes=1 << 34)
            times.append(seconds(resource.RUSAGE_SELF))
            took, sizes = [times[1] - times[0], times[2] - times[1]], []
            for command, ending in ((["zstd", "-19", "-q"], ".zst"), (["xz", "-9"], ".xz")):
                began = seconds(resource.RUSAGE_CHILDREN)
                subprocess.run([*command, "-T1", "-k", "-f", str(raw)], check=True)
                took.append(seconds(resource.RUSAGE_CHILDREN) - began)
                sizes.append(Path(str(raw) + ending).stat().st_size)
            size = packed.stat().st_size
            figures = " ".join(f"{n:,}" for n in (raw.stat().st_size, size, *sizes))
            ideal = size - parts["codes"] + ideal_bytes(packed.read_bytes(), weights)
            over = size / ideal - 1
            seconds_each = " ".join(f"{t:.1f}" for t in took)
            print(f"{name}: {figures}; {seconds_each}; {over:.1%}", flush=True)
            slow = took[0] > 2 * took[2] and took[0] > 2
            failed |= size > min(sizes) or slow or over > 0.03
    sys.exit(failed)


if __name__ == "__main__":
    main()
