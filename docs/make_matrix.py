"""Write the tables of docs/matrix.md: `python docs/make_matrix.py`, some minutes.

Every network of `tests/matrix_networks.py` goes through every stage of `tests/matrix_stages.py`.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import ellzero as ez
from matrix_networks import MATRIX_NETWORKS
from matrix_stages import STAGES, outcome

PAGE = Path(__file__).with_name("matrix.md")
TABLES = re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end -->)", re.DOTALL)

Outcomes = Mapping[tuple[str, str], str]
"""(network, stage) -> "yes", or why it is refused."""


def tables(outcomes: Outcomes) -> str:
    """What docs/matrix.md holds between its marks."""
    rows = [("network", "weights", *STAGES), ("---",) * (len(STAGES) + 2)]
    for network, case in MATRIX_NETWORKS.items():
        cells = ("yes" if outcomes[network, stage] == "yes" else "refused" for stage in STAGES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is not selected
            count = ez.select(case.model()).numel
        rows.append((network, f"{count:,}", *cells))
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    reasons = "".join(
        f"- {network}, {stage}: {said}.\n"
        for (network, stage), said in outcomes.items()
        if said != "yes"
    )
    stages = "".join(f"- {stage}: {of_first_line(stage)}\n" for stage in STAGES)
    return f"\n{table}\nRefused:\n\n{reasons}\nWhat a cell checks:\n\n{stages}"


def of_first_line(stage: str) -> str:
    """What a stage says that it checks."""
    return str(STAGES[stage].__doc__).splitlines()[0]


def tried() -> Outcomes:
    """What comes of each cell."""
    outcomes = {}
    for network, case in MATRIX_NETWORKS.items():
        for stage in STAGES:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # none of them is trained
                outcomes[network, stage] = outcome(case, stage, Path(folder))
    return outcomes


def with_tables(page: str, outcomes: Outcomes) -> str:
    """The page with new tables."""
    return TABLES.sub(lambda _: tables(outcomes), page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(), tried()))
