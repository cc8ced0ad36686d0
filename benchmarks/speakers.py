"""Spoken digits with each speaker held out in turn: the error pooled over all 3,000 recordings.

    python benchmarks/speakers.py recipes/audio-gru-spoken-digits-10x.toml --folder runs/speakers

Runs that are done already are not run again, so it can be stopped and started anew.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RECORDINGS = 500  # of each speaker


def record_of(recipe: Path, speaker: str, seed: int, folder: Path) -> dict:
    """The record of a run, which is run first if it is not done."""
    run = folder / f"{recipe.stem}-{speaker}-{seed}"
    done = run / "record.json"
    if not done.is_file() or json.loads(done.read_text())["status"] != "done":
        command = ["ellzero", "run", str(recipe), "--set", f"data.held_out={speaker}"]
        command += ["--seed", str(seed), "--output", str(run)]
        if done.is_file():
            command = ["ellzero", "run", "--resume", str(run)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return json.loads(done.read_text())


def wrong(percent: float) -> int:
    """How many recordings of one speaker an error in percent is."""
    return round(percent * RECORDINGS / 100)


def main() -> None:
    """A row a seed, and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    pooled = []
    print("| seed | dense error % | sparse error % | difference | by speaker, dense and sparse |")
    print("| --- | --- | --- | --- | --- |")
    for seed in options.seeds:
        records = [record_of(options.recipe, s, seed, options.folder) for s in SPEAKERS]
        counts = [
            (wrong(r["reference_error_percent"]), wrong(r["test_error_percent"])) for r in records
        ]
        total = RECORDINGS * len(SPEAKERS)
        dense, sparse = (100 * sum(column) / total for column in zip(*counts, strict=True))
        pooled.append((dense, sparse))
        each = ", ".join(
            f"{name} {100 * d / RECORDINGS:.1f} {100 * s / RECORDINGS:.1f}"
            for name, (d, s) in zip(SPEAKERS, counts, strict=True)
        )
        print(
            f"| {seed} | {dense:.2f} | {sparse:.2f} | {sparse - dense:+.2f} | {each} |", flush=True
        )
    dense, sparse = (statistics.median(column) for column in zip(*pooled, strict=True))
    difference = statistics.median(sparse - dense for dense, sparse in pooled)
    print(f"| median | {dense:.2f} | {sparse:.2f} | {difference:+.2f} | |")


if __name__ == "__main__":
    main()
