"""The page: one self-contained HTML file of the studies and runs in some folders."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.errors import InputError
from ellzero.files import write_atomically
from ellzero.record import RECORD, read_record
from ellzero.study.results import STUDY, Found, Results

if TYPE_CHECKING:
    from ellzero.report.section import Section

PAGE = "report.html"


def write_report(
    paths: str | Path | Sequence[str | Path], output: str | Path | None = None
) -> Path:
    """Write one HTML page of studies and runs, from their records alone.

    The page needs nothing but itself: no script, no network. Runs that are still going, or have
    failed, are shown as far as they came.

    Args:
        paths: folders of studies or runs; with two or more runs the page compares them.
        output: the HTML file; by default report.html in the folder, if it is one.

    Returns:
        The page. Of a single study the tables lie beside it, as CSV and Markdown.

    Raises:
        InputError: a folder that holds neither; a record that cannot be read; several folders
            without `output`; the extra `report` is not installed.

    Example:
        >>> import tempfile, torch, ellzero as ez
        >>> x, y = torch.eye(4).repeat(5, 1), torch.arange(4).repeat(5)
        >>> data = ez.Data((x, y), (x, y), (x, y))
        >>> recipe = ez.Recipe.parse({"train": {"epochs": 1}, "prune": {"sparsity": 0.5}})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = ez.compress(torch.nn.Linear(4, 4), data, recipe, folder=f"{folder}/run")
        ...     ez.write_report(f"{folder}/run").name
        'report.html'
    """
    return write_all(paths, output)[0]


def write_all(
    paths: str | Path | Sequence[str | Path], output: str | Path | None = None
) -> tuple[Path, ...]:
    """Write the page, and of a single study the tables beside it; all files, the page first."""
    folders = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not folders:
        raise InputError("there is nothing to report: no folder was given")
    if output is None and len(folders) > 1:
        raise InputError("a report of several folders needs an output: name the file to write")
    for folder in folders:
        _check(folder)
    require_libraries()
    from ellzero.report.tables import write_tables

    page = folders[0] / PAGE if output is None else Path(output)
    write_atomically(page, _render(_sections(folders)).encode())
    if len(folders) == 1 and (folders[0] / STUDY).is_file():
        return (page, *write_tables(Results.read(folders[0]), page.parent))
    return (page,)


def warnings_of(folders: Sequence[Path]) -> list[str]:
    """What the runs and studies in these folders warn of, each sentence once."""
    said: list[str] = []
    for folder in folders:
        if (folder / STUDY).is_file():
            said += [text for text, _ in Results.read(folder).warnings()]
        else:
            said += Found.at(folder).warnings
    return list(dict.fromkeys(said))


def require_libraries() -> None:
    """Make sure that a report can be made.

    Raises:
        InputError: the extra `report` is not installed.
    """
    for module in ("jinja2", "matplotlib"):
        if find_spec(module) is None:
            raise InputError(f"a report needs {module}: pip install 'ellzero[report]'")


def _sections(folders: Sequence[Path]) -> list[Section]:
    """A section per folder, a study's or a run's; two or more runs are compared first."""
    from ellzero.report.run_section import run_section, runs_section
    from ellzero.report.study_section import study_section

    sections, runs = [], []
    for index, folder in enumerate(folders):
        name = f"{index} {folder}"
        if (folder / STUDY).is_file():
            sections.append(study_section(Results.read(folder), name))
        else:
            runs.append(Found.at(folder))
            sections.append(run_section(runs[-1], name))
    compared = [runs_section(runs, "runs")] if len(runs) > 1 else []
    return compared + sections


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"no folder {folder} to report on")
    if not (folder / STUDY).is_file():
        if not (folder / RECORD).is_file():
            raise InputError(
                f"{folder} holds neither a run nor a study: there is no {RECORD} or {STUDY} in it"
            )
        read_record(folder)


def _render(sections: Sequence[Section]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ellzero.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(sections=sections)
