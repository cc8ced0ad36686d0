"""A BERT-shaped encoder of Hugging Face's classes: trained, pruned, distilled, packed, read again.

`python benchmarks/encoder.py`: 22 million weights, half of them a table of 30,522 tokens. Trained
on Shakespeare by masked bytes, so that 257 rows of the table are ever read. Then, to each sparsity
in turn: trained with an l0 penalty to give the dense encoder's outputs, pruned by magnitude,
trained on with the zeros held. What is pruned are the linear layers, half of all weights; the
tables stay dense. Then compacted, quantized to 4 bits, tables and all, and packed; a fresh process
that knows neither the network's class nor transformers reads the file.

Prints for each stage the bytes and how the embeddings of held-out texts (means of
`last_hidden_state` over 64 bytes) lie to those of the dense encoder: the mean of their cosines, and
of the same after the mean embedding is taken off, for embeddings of one network are all alike.

Needs `pip install transformers` (nothing is downloaded with it) and Tiny Shakespeare, which is
looked for as by any run (ELLZERO_DATA). One thread.
"""

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ellzero as ez
from ellzero.data.shakespeare import shakespeare

CONTEXT = 64
MASK = 256
"""The token behind the bytes, which stands where a byte is to be guessed."""

SPARSITIES = 0.6, 0.8
"""Of the linear layers, one after the other."""

READER = """
import sys
import torch, ellzero as ez
path, texts, results = sys.argv[1:]
network, tokens = ez.load(path), torch.load(texts, weights_only=True)
with torch.no_grad():
    states = [network(part, torch.ones_like(part)).last_hidden_state for part in tokens.split(32)]
torch.save(torch.cat(states).mean(1), results)
assert "transformers" not in sys.modules
"""
"""What the fresh process runs: a file, tokens, and where their embeddings go."""


def encoder(layers: int, width: int, vocabulary: int) -> nn.Module:
    """An untrained encoder with heads of 32 features."""
    from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]

    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )
    return BertModel(config, add_pooling_layer=False)


def windows(part: Any) -> Tensor:
    """The texts of a part of the data, (N, CONTEXT)."""
    return torch.cat([tokens for tokens, _ in part.batches(1024, torch.device("cpu"))])


def batches(texts: Tensor, size: int, minutes: float) -> Iterator[tuple[Tensor, float]]:
    """Texts drawn at random until the time is over, and the share of it that is; one at least."""
    began, share = time.perf_counter(), 0.0
    while share < 1:
        yield texts[torch.randint(len(texts), (size,))], share
        share = (time.perf_counter() - began) / (60 * minutes)


def train(model: Any, drawn: Iterable[tuple[Tensor, float]]) -> float:
    """Restore texts of which 15 % of the bytes are masked; bits a masked byte in the last tenth.

    The bytes that are seen are asked for as well: of the masked ones alone such a short training
    learns how frequent each byte is, and to look at no text.
    """
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    table, bits = model.get_input_embeddings().weight, []
    model.train()
    for tokens, share in drawn:
        set_rate(optimizer, share)
        hidden = torch.rand(tokens.shape) < 0.15
        states = model(tokens.masked_fill(hidden, MASK)).last_hidden_state
        losses = F.cross_entropy((states @ table[:MASK].T).mT, tokens, reduction="none")
        optimizer.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bits.append(losses.detach()[hidden].mean().item() / math.log(2))
    model.eval()
    return statistics.mean(bits[-(len(bits) // 10 + 1) :])


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """A learning rate that rises for a tenth of the time, and falls to 0."""
    for group in optimizer.param_groups:
        group["lr"] = 2e-4 * min(10 * share + 0.01, (1 - share) / 0.9)


def distil(
    student: nn.Module,
    teacher: nn.Module,
    drawn: Iterable[tuple[Tensor, float]],
    *,
    strength: float = 0.0,
    masks: ez.Masks | None = None,
) -> None:
    """Train to give the teacher's outputs: their squared distance, and the embeddings' cosine.

    Args:
        student: what is trained, without dropout, as is the teacher.
        teacher: stays as it is.
        drawn: texts, and the share of the time that is over.
        strength: of the l0 penalty.
        masks: where given, its zeros are held.
    """
    student.eval()
    optimizer = torch.optim.AdamW(student.parameters(), weight_decay=0.0)
    regularizer = None
    if strength:
        regularizer = ez.Regularizer(student, ez.L0(strength, beta=20), weights=layers(student))
    hold = masks.hold(optimizer) if masks is not None else None
    for tokens, share in drawn:
        set_rate(optimizer, share)
        with torch.no_grad():
            wanted = teacher(tokens).last_hidden_state
        given = student(tokens).last_hidden_state
        likeness = F.cosine_similarity(given.mean(1), wanted.mean(1)).mean()
        loss = F.mse_loss(given, wanted) + 1 - likeness
        optimizer.zero_grad()
        loss.backward()
        if regularizer is not None:
            regularizer.add_gradient()
        optimizer.step()
    if hold is not None:
        hold.release()


def layers(model: nn.Module) -> ez.Selection:
    """The weights of the linear layers, without the tables."""
    return ez.select(model, exclude=["*embeddings*"])


@torch.no_grad()
def embeddings(model: nn.Module, tokens: Tensor) -> Tensor:
    """(N, width) of tokens (N, CONTEXT)."""
    states = [model(part, torch.ones_like(part)).last_hidden_state for part in tokens.split(32)]
    return torch.cat(states).mean(1)


def likeness(given: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The mean cosine of embeddings of the same texts, and that without the mean embedding."""

    def cosine(shift: Tensor) -> float:
        return float(F.cosine_similarity(given - shift, wanted - shift).mean())

    mean = wanted.mean(0)
    return cosine(torch.zeros_like(mean)), cosine(mean)


def ship(model: nn.Module, folder: Path, bits: int) -> ez.Packed:
    """Compact, quantize with the tables, pack."""
    tokens = torch.zeros(1, CONTEXT, dtype=torch.int64)
    small = ez.compact(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    weights = ez.select(small.model, include=["default", "*embeddings.weight"])
    ez.quantize(small.model, bits=bits, weights=weights)
    return ez.pack(small.model, folder / "encoder.ellz")


def read_elsewhere(path: Path, tokens: Tensor) -> Tensor:
    """Embeddings by a packed file, in a process that has nothing but ellzero."""
    texts, results = path.with_name("tokens.pt"), path.with_name("embeddings.pt")
    torch.save(tokens, texts)
    subprocess.run([sys.executable, "-c", READER, *map(str, (path, texts, results))], check=True)
    return torch.load(results, weights_only=True)


def report(options: argparse.Namespace, data: ez.Data, folder: Path) -> None:
    """Each stage, a line of the table, and all of it as a line of JSON."""
    texts, held_out = windows(data.train), windows(data.validation)[: options.texts]
    teacher = encoder(options.layers, options.width, options.vocabulary)
    count = sum(parameter.numel() for parameter in teacher.parameters())
    bits = train(teacher, batches(texts, options.batch, options.minutes))
    wanted = embeddings(teacher, held_out)
    others = likeness(wanted.roll(1, 0), wanted)
    print(f"{count:,} weights; {bits:.2f} bits a masked byte")
    print(f"embeddings of different texts, dense: cosine {others[0]:.3f}, centred {others[1]:.3f}")
    print(f"{'':32}{'bytes':>12}{'cosine':>9}{'centred':>9}")
    rows: list[tuple[str, int, float, float]] = []

    def add(stage: str, size: int, given: Tensor) -> None:
        rows.append((stage, size, *likeness(given, wanted)))
        print(f"{stage:32}{size:12,}{rows[-1][2]:9.4f}{rows[-1][3]:9.4f}", flush=True)

    def add_packed(stage: str, model: nn.Module) -> None:
        packed = ship(model, folder, options.bits)
        if not packed.self_contained:
            sys.exit("the packed file is not self-contained")
        add(
            f"{stage}, {options.bits} bits, packed",
            packed.size_bytes,
            read_elsewhere(packed.path, held_out),
        )

    dense = 4 * count
    add("dense", dense, wanted)
    add_packed("dense", teacher)
    student = copy.deepcopy(teacher)
    for sparsity in SPARSITIES:
        drawn = batches(texts, options.batch, options.minutes / 2)
        distil(student, teacher, drawn, strength=options.strength)
        masks = ez.prune(student, sparsity=sparsity, weights=layers(student))
        add(f"{sparsity:.0%} pruned", dense, embeddings(student, held_out))
        drawn = batches(texts, options.batch, options.minutes / 2)
        distil(student, teacher, drawn, masks=masks)
        add(f"{sparsity:.0%} pruned, distilled", dense, embeddings(student, held_out))
        add_packed(f"{sparsity:.0%} pruned, distilled", student)
    print(
        json.dumps(
            {
                "benchmark": "encoder",
                "weights": count,
                "bits": bits,
                "others": others,
                "stages": rows,
            }
        )
    )


def main() -> None:
    """Run it once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6, help="of the dense training (6)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384, help="a multiple of 32 (384)")
    parser.add_argument("--vocabulary", type=int, default=30_522)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--texts", type=int, default=256, help="held-out texts that are judged")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--strength", type=float, default=1e-6, help="of the l0 penalty (1e-6)")
    options = parser.parse_args()
    try:
        import transformers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("benchmarks/encoder.py needs transformers: pip install transformers")
    try:
        data = shakespeare(tokens="bytes", context=CONTEXT)
    except ez.InputError as error:
        sys.exit(f"benchmarks/encoder.py needs Tiny Shakespeare: {error}")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        report(options, data, Path(folder))


if __name__ == "__main__":
    main()
