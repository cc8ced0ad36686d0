"""`ellzero doctor`: what of this machine can be used."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from itertools import groupby

from ellzero.cli.options import Json


def doctor(*, json_: Json = False) -> None:
    """Show versions, devices, data sets, extras and compilers, and how to get what is missing.

    The exit code is 0 unless ellzero itself cannot work.

    Example: ellzero doctor
    """
    from ellzero.cli.tables import say
    from ellzero.doctor import examine
    from ellzero.terminal import plain

    findings = examine()
    broken = [finding for finding in findings if finding.state == "broken"]
    if json_:
        print(json.dumps({"works": not broken, "findings": [*map(asdict, findings)]}, indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for section, group in groupby(findings, lambda finding: finding.section):
            print(section)
            for finding in group:
                state = "" if finding.state == "ok" else f"{finding.state}: "
                line = f"  {finding.name:{width}}  {plain(state + finding.detail)}"
                print(line.rstrip())
        say("ellzero cannot work" if broken else "ellzero works here")
    if broken:
        sys.exit(1)
