"""`ellzero report`: a page of studies and runs, from their records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ellzero.cli.options import Json, Trust


def report(
    folders: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    output: str | None = None,
    trust: Trust = False,
    json_: Json = False,
) -> None:
    """Write one HTML page of studies and runs, as far as they have come; nothing is trained.

    Example: ellzero report studies/smoke-1

    Parameters
    ----------
    folders
        Folders of studies or runs; two or more runs are compared and ranked.
    output
        The page's name, which ends in .html, or a folder for its report.html; by default the folder
        itself, if it is one.
    """
    from ellzero.cli.study import show_study
    from ellzero.cli.tables import say, show_warnings
    from ellzero.report.page import report as write

    written = write(folders, output, trust=trust)
    if json_:
        document = {
            "page": str(written.page),
            "tables": [str(path) for path in written.tables],
            "warnings": written.warnings,
        }
        print(json.dumps(document, indent=2))
    else:
        for path in (written.page, *written.tables):
            say(path)
        for study in written.studies:
            show_study(study)
        show_warnings(written.warnings)
