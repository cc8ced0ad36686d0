"""Print a row per recipe from run folders' records: `python docs/make_results.py runs/*`.

Runs that differ in the seed alone make one row of docs/results.md: medians, and the range.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HEADINGS = ("network, data", "seeds", "nonzero ratio", "test error %", "reference error %")
HEADINGS += ("drop", "file ratio (gzip)", "seconds")


def key(record: dict) -> tuple[str, str, int]:
    """What runs of one row have in common."""
    recipe = record["recipe"]
    return recipe["model"]["name"], recipe["data"]["name"], -record["nonzeros"]


def cell(values: list[float], digits: int) -> str:
    """Median, and the range in brackets."""
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def row(records: list[dict]) -> tuple[str, ...]:
    """One row of the table."""
    network, data, _ = key(records[0])
    seeds = sorted(record["recipe"]["seed"] for record in records)
    errors = [record["test_error_percent"] for record in records]
    references = [record["reference_error_percent"] for record in records]
    drops = [error - reference for error, reference in zip(errors, references, strict=True)]
    return (
        f"{network}, {data}",
        ", ".join(map(str, seeds)),
        f"{records[0]['nonzero_ratio']:.0f}x",
        cell(errors, 2),
        cell(references, 2),
        cell(drops, 2),
        cell([record["file_ratio"] for record in records], 1),
        cell([record["seconds"] for record in records], 0),
    )


def main(folders: list[str]) -> str:
    """The table in Markdown, of the runs that are done."""
    rows = defaultdict(list)
    for folder in folders:
        record = json.loads((Path(folder) / "record.json").read_text())
        if record["status"] == "done":
            rows[key(record)].append(record)
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row(found) for _, found in sorted(rows.items()))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
