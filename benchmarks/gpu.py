"""What penalties, masks and pruning take on a GPU, beside the copy bandwidth of the card.

    python benchmarks/gpu.py [--device cuda] [--scale 1] [--only copy,steps,...]

Sections: copy, steps, constants, prune, epochs. A call of the package is timed by itself ("call")
and within a training step of fused Adam ("step", a ratio). The limit of a call is that of a copy:
12 bytes a weight, to read it and to read and write its gradient (decoupled: 8, masks: 12), at the
speed at which the card copies a hundred million numbers. "host" is how long Python is at it, where
nothing waits for the card. Medians of repeats, by events of the card, after a warm-up. Prints
tables in Markdown and a line of JSON, which is also written to $OUT/gpu.json after every section.
`--device cpu --scale 0.01` tries the script itself. A section that fails is told, and the others go
on.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import ellzero as ez
import networks
from ellzero import chunks
from ellzero.networks.lenet import lenet_5_caffe
from ellzero.preprocess import Preprocess
from ellzero.training.loop import epochs
from ellzero.training.plan import Step
from ellzero.training.state import State

BATCH, SPARSITY = 128, 0.98
LARGE = 100_000_000
GRADIENT = ez.L0(1e-5, beta=5.0) + ez.L2(1e-5)
DECOUPLED = ez.L0(1e-2, beta=5.0, form="decoupled")
BYTES = {"gradient": 12, "decoupled": 8, "masks": 12}
"""What has to move for each weight, in float32."""

Figures = dict[str, Any]


class Card:
    """A device, and how time and memory are measured on it."""

    def __init__(self, name: str, scale: float) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"
        self.scale = scale
        self.bandwidth = float("nan")
        """Bytes a second of a copy, read and written."""

    def wait(self) -> None:
        """Wait until all is done."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def ms(self, call: Callable[[], object], *, seconds: float = 0.4, repeats: int = 9) -> float:
        """Milliseconds of a call, the median of repeats of as many calls as fill the time."""
        for _ in range(3):
            call()
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        once = time.perf_counter() - began
        calls = max(1, min(200, round(seconds / repeats / max(once, 1e-6))))
        return statistics.median(self._each(call, calls) for _ in range(repeats))

    def _each(self, call: Callable[[], object], calls: int) -> float:
        if self.is_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / calls
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return 1e3 * (time.perf_counter() - began) / calls

    def host_ms(self, call: Callable[[], object]) -> float:
        """Milliseconds until a call returns, whatever the card is still at."""
        taken = []
        for _ in range(20):
            self.wait()
            began = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - began))
        return statistics.median(taken)

    def launches(self, call: Callable[[], object]) -> int | None:
        """Kernels and copies that a call has the card do."""
        if not self.is_cuda:
            return None
        call()
        self.wait()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiled:
            call()
            self.wait()
        return sum(event.device_type.name == "CUDA" for event in profiled.events() or ())

    def held(self) -> int:
        """Bytes of memory that are held; the peak is counted from here."""
        self.wait()
        if not self.is_cuda:
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def added_mib(self, call: Callable[[], object]) -> float | None:
        """The most memory that a call takes beyond what is there."""
        if not self.is_cuda:
            return None
        call()
        before = self.held()
        call()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


def copy(card: Card) -> Figures:
    """The copy bandwidth, which the other sections compare with."""
    count = round(LARGE * card.scale)
    source, target = (torch.ones(count, device=card.device) for _ in range(2))
    ms = card.ms(lambda: target.copy_(source))
    card.bandwidth = 8 * count / (1e-3 * ms)
    added = card.ms(lambda: target.add_(source, alpha=0.5))
    table(
        ["of float32", "ms", "GB/s"],
        [
            [f"copy of {count:,}", f"{ms:.3f}", f"{card.bandwidth / 1e9:.0f}"],
            ["g += a w, one kernel", f"{added:.3f}", f"{12 * count / added / 1e6:.0f}"],
        ],
    )
    return {"numbers": count, "copy_ms": ms, "bandwidth": card.bandwidth, "add_ms": added}


def steps(card: Card) -> Figures:
    """What each form adds to a training step, on three kinds of networks."""
    width = round(5000 * card.scale**0.5)
    cases: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "LeNet-5-Caffe": (lenet_5_caffe, (BATCH, 1, 28, 28)),
        f"{layers(card)} layers of 64 x 64": (lambda: many(layers(card)), (BATCH, 64)),
        f"4 layers of {width} x {width}": (
            lambda: nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(4)]),
            (BATCH, width),
        ),
    }
    return {name: network_steps(card, name, *case) for name, case in cases.items()}


def layers(card: Card) -> int:
    """Two hundred, and fewer where the script itself is tried."""
    return round(200 * min(1.0, 10 * card.scale))


def many(layers: int) -> nn.Sequential:
    """As many small layers, each with a shortcut, so that a step of them stays finite."""
    return nn.Sequential(*[Shortcut(nn.Linear(64, 64, bias=False)) for _ in range(layers)])


class Shortcut(nn.Module):
    """A layer and a way around it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape."""
        return x + 0.1 * torch.relu(self.layer(x))


VARIANTS: dict[str, tuple[str, Figures, int | None]] = {
    # what acts, options of the regularizer, and another value of chunks.SMALL
    "l0 + l2, weight by weight": ("gradient", {}, -1),
    "l0 + l2": ("gradient", {}, None),
    "l0 + l2, compiled, a kernel a weight": ("gradient", {"compile": True}, -1),
    "l0 + l2, compiled": ("gradient", {"compile": True}, None),
    "l0 decoupled, weight by weight": ("decoupled", {}, -1),
    "l0 decoupled": ("decoupled", {}, None),
    "masks held": ("masks", {}, None),
}


def network_steps(
    card: Card, name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> Figures:
    """A table of one network."""
    x = torch.randn(shape, device=card.device)
    rows, figures = [], {}
    plain, numel = float("nan"), 0
    for variant in ("nothing", *VARIANTS):
        torch.manual_seed(0)
        with card.device:
            model = make()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-6, fused=True)
        numel = sum(w.numel() for w in ez.select(model).values())
        kind, options, small = VARIANTS.get(variant, ("nothing", {}, None))
        with joining(small):
            call, step, end = bound(model, optimizer, x, kind, options)
            began = time.perf_counter()
            step()
            card.wait()
            first = time.perf_counter() - began
            each = card.ms(step, seconds=0.8)
            if variant == "nothing":
                plain = each
                figures["plain_step_ms"] = plain
                continue
            figures[variant] = found = {
                "call_ms": card.ms(call),
                "host_ms": card.host_ms(call),
                "limit_ms": 1e3 * BYTES[kind] * numel / card.bandwidth,
                "launches": card.launches(call),
                "added_mib": card.added_mib(call),
                "step": each / plain,
                "first_step_s": first,
            }
            end()
        found["of_limit"] = found["call_ms"] / found["limit_ms"]
        shown = ("call_ms", "host_ms", "of_limit", "launches", "added_mib", "step", "first_step_s")
        rows.append([variant, *(number(found[key]) for key in shown)])
        del model, optimizer, call, step, end
    print(f"\n{name}: {numel:,} weights, plain step {plain:.3f} ms\n")
    table(
        ["", "call, ms", "host, ms", "of the limit", "launches", "MiB added", "step", "first, s"],
        rows,
    )
    return figures


def bound(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, kind: str, options: Figures
) -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """The package's call by itself, a training step with it, and what ends it."""
    end: Callable[[], None] = lambda: None  # noqa: E731
    call, after_backward, after_step = end, end, end
    if kind == "gradient":
        call = after_backward = ez.Regularizer(model, GRADIENT, **options).add_gradient
    elif kind == "decoupled":
        regularizer = ez.Regularizer(model, DECOUPLED, **options)
        call = after_step = lambda: regularizer.step(optimizer)
    elif kind == "masks":
        masks = ez.prune(model, sparsity=SPARSITY)
        weights = list(masks.weights.values())
        hold = masks.hold(optimizer)
        call, end = lambda: masks.bits.apply(weights), hold.release

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        after_backward()
        optimizer.step()
        after_step()

    return call, step, end


@contextlib.contextmanager
def joining(small: int | None, largest: int | None = None) -> Iterator[None]:
    """Other constants of `chunks` inside the block."""
    before = chunks.SMALL, chunks.LARGEST
    chunks.SMALL = before[0] if small is None else small
    chunks.LARGEST = before[1] if largest is None else largest
    try:
        yield
    finally:
        chunks.SMALL, chunks.LARGEST = before


def constants(card: Card) -> Figures:
    """The plain gradient and the decoupled step with other sizes of chunks and of small weights."""
    rows, figures = [], {}
    width = round(5000 * card.scale**0.5)
    cases: dict[str, Callable[[], nn.Module]] = {
        "large": lambda: nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(4)]),
        "ResNet-18": networks.resnet_18,
        "many small": lambda: many(layers(card)),
    }
    sizes = [(chunks.SMALL, 1 << n) for n in range(19, 25)]
    joined = [(1 << n, chunks.LARGEST) for n in (14, 16, 18, 20, 22)]
    for name, make in cases.items():
        with card.device:
            model = make()
        for w in model.parameters():
            w.grad = torch.zeros_like(w)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        gradient, decoupled = (ez.Regularizer(model, p) for p in (GRADIENT, DECOUPLED))
        calls = {
            "gradient_ms": gradient.add_gradient,
            "decoupled_ms": lambda regularizer=decoupled, o=optimizer: regularizer.step(o),
        }
        for small, largest in sizes if name == "large" else sizes + joined:
            with joining(small, largest):
                found: dict[str, float | None] = {
                    key: card.ms(call, seconds=0.1, repeats=5) for key, call in calls.items()
                }
                found["added_mib"] = card.added_mib(gradient.add_gradient)
            figures[f"{name}, SMALL {small}, LARGEST {largest}"] = found
            rows.append([name, str(small), str(largest), *map(number, found.values())])
    head = ["", "SMALL", "LARGEST", "gradient, ms", "decoupled, ms", "MiB added"]
    table(head, rows)
    return figures


def prune(card: Card) -> Figures:
    """Pruning a hundred million weights in four layers, and the rival's seconds."""
    width = round(5000 * card.scale**0.5)
    rows, figures = [], {}
    ways: dict[str, Callable[[nn.Sequential], object]] = {
        "global": lambda model: ez.prune(model, sparsity=SPARSITY),
        "layer": lambda model: ez.prune(model, sparsity=SPARSITY, scope="layer"),
        "torch.nn.utils.prune, global": lambda model: torch_prune.global_unstructured(
            [(layer, "weight") for layer in model], torch_prune.L1Unstructured, amount=SPARSITY
        ),
    }
    for way, call in ways.items():
        seconds, added = [], None
        for _ in range(4):
            torch.manual_seed(0)
            with card.device:
                layers = [nn.Linear(width, width, bias=False) for _ in range(4)]
            model = nn.Sequential(*layers)
            before = card.held()
            began = time.perf_counter()
            kept = call(model)
            card.wait()
            seconds.append(time.perf_counter() - began)
            if card.is_cuda:
                added = (torch.cuda.max_memory_allocated() - before) / (16 * width * width)
            del kept, model, layers
        median = statistics.median(seconds[1:])
        figures[way] = {"seconds": median, "added": added}
        rows.append([way, f"{median:.3f}", number(added)])
    table([f"{4 * width * width:,} weights", "seconds", "memory added, of the weights'"], rows)
    return figures


def epochs_of_lenet(card: Card) -> Figures:
    """An epoch of LeNet-5 by the loop of `compress`, with l0 + l2; data of MNIST's shape."""
    count = max(4, round(60_000 * card.scale) // BATCH) * BATCH
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    y = torch.randint(10, (count,), generator=generator)
    penalty = {"l0": {"strength": 1e-5, "beta": 5}, "l2": {"strength": 5e-5}}
    variants: dict[str, Figures] = {
        "float32, no penalty": {},
        "float32": {"penalty": penalty},
        "bfloat16": {"penalty": penalty, "precision": "bfloat16"},
        "bfloat16, channels_last": {
            "penalty": penalty, "precision": "bfloat16", "channels_last": True
        },
    }  # fmt: skip
    rows, figures = [], {}
    for variant, told in variants.items():
        torch.manual_seed(0)
        model = lenet_5_caffe().to(card.device)
        data = ez.Data((raw, y), (raw[:500], y[:500]), preprocess=Preprocess(1 / 255))
        train = {"epochs": 10, "batch_size": BATCH, "penalty": told.pop("penalty", {})}
        recipe = ez.Recipe.parse({"prune": {"sparsity": 0.5}, "train": train, **told})
        state = State(model, ez.select(model), start={}, step=Step("train", epochs=10))
        state.equip(recipe)
        running = epochs(state, recipe, data, tick=lambda: None)
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            next(running)
            card.wait()
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds[1:])
        figures[variant] = {"seconds": median, "samples_per_second": count / median}
        rows.append([variant, f"{median:.3f}", f"{count / median:,.0f}", f"{seconds[0]:.1f}"])
    table([f"{count:,} images", "s an epoch", "images a second", "first epoch, s"], rows)
    return figures


SECTIONS: dict[str, Callable[[Card], Figures]] = {
    "copy": copy,
    "steps": steps,
    "constants": constants,
    "prune": prune,
    "epochs": epochs_of_lenet,
}


def number(value: float | None) -> str:
    """A figure for a table."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table in Markdown."""
    for row in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> int:
    """Run the sections; the exit status is how many failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(SECTIONS))
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "add_gradient")
    card = Card(options.device, options.scale)
    name = torch.cuda.get_device_name() if card.is_cuda else str(card.device)
    figures: Figures = {"benchmark": "gpu", "device": name, "torch": torch.__version__}
    print(f"{name}, PyTorch {torch.__version__}, scale {card.scale}")
    failed = 0
    for section in dict.fromkeys(("copy", *options.only.split(","))):
        print(f"\n## {section}\n")
        began = time.perf_counter()
        try:
            figures[section] = SECTIONS[section](card)
        except Exception as error:  # a loan of the card is short, so the others go on
            traceback.print_exc(file=sys.stdout)
            figures[section] = {"failed": str(error)}
            failed += 1
        print(f"\n({time.perf_counter() - began:.0f} s)")
        if "OUT" in os.environ:
            Path(os.environ["OUT"], "gpu.json").write_text(json.dumps(figures, indent=1))
    print(json.dumps(figures))
    return failed


if __name__ == "__main__":
    sys.exit(main())
