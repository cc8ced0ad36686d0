"""Print a row per recipe from run folders' records: `python docs/make_results.py runs/*`.

Runs that differ in the seed alone make one row of docs/results.md: medians, and the range. With
`--dense` it is a row of the table of dense networks.
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

HEADINGS = ("network, data", "seeds", "nonzero ratio", "test error %", "reference error %")
HEADINGS += ("drop", "file ratio (gzip)", "seconds")
DENSE_HEADINGS = ("network, data", "parameters", "seeds", "epochs")
DENSE_HEADINGS += ("validation error", "test error", "seconds")


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


def dense_row(records: list[dict]) -> tuple[str, ...]:
    """One row of the table of dense networks; its error is in percent, or in bits per token."""
    network, data, _ = key(records[0])
    first, seeds = records[0]["recipe"], sorted(record["recipe"]["seed"] for record in records)

    def error(record: dict, part: str) -> float:
        score = record["reference"][part]["score"]
        return -score if score < 0 else 100 * (1 - score)

    return (
        f"{network}, {data}",
        f"{records[0]['parameters']:,}",
        ", ".join(map(str, seeds)),
        str(first["reference"]["epochs"]),
        cell([error(record, "validation") for record in records], 2),
        cell([error(record, "test") for record in records], 2),
        cell([record["seconds"] for record in records], 0),
    )


def main(folders: list[str]) -> str:
    """The table in Markdown, of the runs that are done."""
    rows = defaultdict(list)
    headings, row_of = (DENSE_HEADINGS, dense_row) if "--dense" in folders else (HEADINGS, row)
    for folder in filter(lambda argument: argument != "--dense", folders):
        record = json.loads((Path(folder) / "record.json").read_text())
        if record["status"] == "done":
            rows[key(record)].append(record)
    cells = [row_of(records) for _, records in sorted(rows.items())]
    lines = [headings, ("---",) * len(headings), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(main(sys.argv[1:]) + "\n")
