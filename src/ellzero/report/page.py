"""The page: one self-contained HTML file of the studies and runs in some folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ellzero.errors import InputError
from ellzero.files import write_atomically
from ellzero.report.facts import StudyFacts
from ellzero.run_folder import RECORD, RunFolder
from ellzero.study.results import STUDY, Results
from ellzero.user_code import importing

if TYPE_CHECKING:
    from ellzero.report.section import Section

PAGE = "report.html"

GENERATOR = "ellzero report</title>"
"""What each page says of itself in its beginning."""

ENDINGS = (".html", ".htm")


def write_report(
    paths: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    trust: bool = False,
) -> Path:
    """Write one HTML page of studies and runs, from their records alone.

    The page needs nothing but itself: no script, no network. Runs that are still going, or have
    failed, are shown as far as they came; one that cannot be read is shown as unreadable, where it
    is not the only one.

    Args:
        paths: folders of studies or runs; with two or more runs the page compares them.
        output: the HTML file, whose name ends in .html, or a folder for its report.html; by default
            report.html in the folder, if it is one. An older report of that name is replaced.
        trust: whether the classes of penalties of one's own may be imported, to draw their pull on
            the weights; those of a run that this user began in its folder are anyway.

    Returns:
        The page. Of a single study the tables lie beside it, as CSV and Markdown.

    Raises:
        InputError: a folder that holds neither; the only record, or a study, that cannot be read;
            several folders without `output`; another file of that name than a report; a folder that
            cannot be made; the extra `report` is not installed.

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
    return report(paths, output, trust=trust).page


@dataclass(frozen=True)
class Report:
    """What a report was written as.

    Args:
        page: the HTML file.
        tables: of a single study the files beside it, as CSV and Markdown.
        warnings: what the runs and studies warn of, each sentence once.
        studies: those on the page.

    Example:
        >>> from pathlib import Path
        >>> Report(Path("report.html"), (), ("seed 1 diverged",)).page.suffix
        '.html'
    """

    page: Path
    tables: tuple[Path, ...]
    warnings: tuple[str, ...]
    studies: tuple[StudyFacts, ...] = ()


def report(
    paths: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    trust: bool = False,
) -> Report:
    """Write a report, as `write_report` does, and say what was written."""
    folders = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not folders:
        raise InputError("there is nothing to report: no folder was given")
    if output is None and len(folders) > 1:
        raise InputError("a report of several folders needs an output (--output): page.html")
    require_libraries()
    page = folders[0] / PAGE if output is None else _page_at(output)
    if page.is_file() and not _is_report(page):
        raise InputError(f"{page} is there already and no report of ellzero; give another name")
    with importing(trust):
        contents = [_read(folder, alone=len(folders) == 1) for folder in folders]
        if output is not None and page != Path(output):
            _make(page.parent)
        return write(contents, page)


def _page_at(output: str | Path) -> Path:
    """The page itself, or report.html in a folder, which any other name is of."""
    path = Path(output)
    return path if path.suffix.lower() in ENDINGS and not path.is_dir() else path / PAGE


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {folder} for the page: {error.strerror}") from None


def _is_report(page: Path) -> bool:
    """Whether a file is a page that was written here, so that a newer one may replace it."""
    with page.open("rb") as file:
        return GENERATOR.encode() in file.read(1 << 16)


def write(contents: Sequence[StudyFacts | RunFolder], page: Path) -> Report:
    """Write the page of studies and runs that have been read, and a single study's tables."""
    from ellzero.report.tables import write_tables

    html = _render(_sections(contents)).encode(errors="backslashreplace")  # of folders' names
    write_atomically(page, html)
    tables: tuple[Path, ...] = ()
    if len(contents) == 1 and isinstance(contents[0], StudyFacts):
        tables = write_tables(contents[0], page.parent)
    warnings = chain.from_iterable(map(_warnings, contents))
    studies = tuple(content for content in contents if isinstance(content, StudyFacts))
    return Report(page, tables, tuple(dict.fromkeys(warnings)), studies)


def _warnings(content: StudyFacts | RunFolder) -> Iterator[str]:
    if isinstance(content, StudyFacts):
        yield from (text for text, _ in content.warnings)
    else:
        yield from content.warnings
        if content.status == "unreadable":
            yield f"{content.folder} cannot be read: {content.error}"


def require_libraries() -> None:
    """Make sure that a report can be made.

    Raises:
        InputError: the extra `report` is not installed.
    """
    for module in ("jinja2", "matplotlib"):
        if find_spec(module) is None:
            raise InputError(f"a report needs {module}: pip install 'ellzero[report]'")


def _read(folder: Path, *, alone: bool) -> StudyFacts | RunFolder:
    """The study or the run in a folder; nothing of it is read a second time.

    Raises:
        InputError: there is neither; a study, or a run alone on its page, that cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder} to report on")
    if (folder / STUDY).is_file():
        return StudyFacts(Results.read(folder))
    if not (folder / RECORD).is_file():
        raise InputError(
            f"{folder} holds neither a run nor a study: there is no {RECORD} or {STUDY} in it"
        )
    return RunFolder.read(folder) if alone else RunFolder.at(folder)


def _sections(contents: Sequence[StudyFacts | RunFolder]) -> list[Section]:
    """A section for each study and run; two or more runs are compared first."""
    from ellzero.report.run_section import run_section
    from ellzero.report.runs_section import runs_section
    from ellzero.report.study_section import study_section

    sections = []
    for index, content in enumerate(contents):
        if isinstance(content, StudyFacts):
            sections.append(study_section(content, f"{index} {content.results.folder}"))
        else:
            sections.append(run_section(content, f"{index} {content.folder}"))
    titles = Counter(section.title for section in sections)
    for section, content in zip(sections, contents, strict=True):
        if titles[section.title] > 1:  # two of one recipe
            folder = content.folder if isinstance(content, RunFolder) else content.results.folder
            section.title = f"{section.title} ({folder})"
    runs = [content for content in contents if isinstance(content, RunFolder)]
    compared = [runs_section(runs, "runs")] if len(runs) > 1 else []
    return compared + sections


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
