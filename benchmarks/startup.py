"""CPU seconds of the first second: `ellzero --help`, and what `import ellzero` adds to torch's.

`python benchmarks/startup.py`: medians of eleven processes each, in turns. `import ellzero` loads
nothing yet; what is used is loaded when it is named. Prints a table and a line of JSON.
"""

import json
import resource
import statistics
import subprocess
import sys

COMMANDS = {
    "ellzero --help": [sys.executable, "-m", "ellzero", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import torch, ellzero": [sys.executable, "-c", "import torch, ellzero"],
    "... and use it": [sys.executable, "-c", "import torch; from ellzero import L0, compress"],
}


def cpu_seconds(command: list[str]) -> float:
    """User and system time of a command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a line per command."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(11):
        for name, command in COMMANDS.items():
            found[name].append(cpu_seconds(command))
    figures = {name: round(statistics.median(seconds), 3) for name, seconds in found.items()}
    for name, seconds in figures.items():
        print(f"{name:24}{seconds:6.2f} s")
    print(json.dumps({"benchmark": "startup", **figures}))


if __name__ == "__main__":
    main()
