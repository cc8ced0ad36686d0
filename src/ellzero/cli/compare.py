"""`ellzero compare`: methods by one protocol, and a report of what came of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ellzero.cli.options import Json


def compare(
    study: Path,
    /,
    *,
    output: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    memory: float | None = None,
    json_: Json = False,
) -> None:
    """Compare methods by a study: train, prune and fine-tune every cell, then write a report.

    Cells that are done are not run again, so a study that was stopped goes on by the same command.

    Example: ellzero compare studies/smoke.toml --workers 2

    Parameters
    ----------
    study
        TOML file that says which methods, strengths, seeds and sparsities or budgets.
    output
        Folder for the study, new or its own; by default runs/STUDY.
    workers
        How many cells are run side by side: by default one; the machine's threads are shared out
        between them. With --ray by default as many as the cluster has room for.
    ray
        Address of a Ray cluster that runs the cells, auto or ray://HOST:10001; docs/cluster.md.
    cpus
        With --ray: CPUs of a cell, which are its threads; 1 by default.
    gpus
        With --ray: GPUs of a cell, or a part of one; none by default.
    memory
        With --ray: GiB of memory that a cell needs; by default they are not counted.
    """
    from ellzero.cli.study import show_study
    from ellzero.cli.tables import say, show_warnings
    from ellzero.errors import InputError
    from ellzero.report.facts import StudyFacts
    from ellzero.report.page import PAGE, require_libraries, write
    from ellzero.report.tables import comparison, differences, efforts
    from ellzero.study.ray_cluster import RayCluster
    from ellzero.study.runner import compare as run_study
    from ellzero.study.study import Study

    require_libraries()  # before hours of work, not after
    wanted = {"cpus": cpus, "gpus": gpus, "memory": memory if memory is None else memory * 2**30}
    given = {name: number for name, number in wanted.items() if number is not None}
    if ray is None and given:
        raise InputError(f"--{next(iter(given))} is of a cell on a Ray cluster; name it by --ray")
    cluster = None if ray is None else RayCluster(ray, **given)
    settings = Study.read(study)
    folder = output or Path("runs") / settings.name
    try:
        results = run_study(settings, folder, workers=workers, cluster=cluster)
        facts = StudyFacts(results)
        page = write([facts], folder / PAGE).page
    except (KeyboardInterrupt, OSError, MemoryError) as error:
        error.add_note(f"{folder} keeps what is done, and the same command goes on")
        raise
    failures = results.failures()
    if json_:
        document = {
            "folder": str(folder),
            "report": str(page),
            "comparison": comparison(facts),
            "differences": differences(facts),
            "efforts": efforts(facts),
            "warnings": dict(facts.warnings),
            "failures": {str(failed.folder): failed.error for failed in failures},
        }
        print(json.dumps(document, indent=2))
    else:
        show_study(facts)
        show_warnings(f"{text} (runs: {count})" for text, count in facts.warnings)
        say(f"{page}: the report; tables and cells lie beside it")
    for failed in failures:
        say(f"ellzero: {failed.folder}: {failed.error}", file=sys.stderr)
    if failures or results.unfinished():
        sys.exit(1)
