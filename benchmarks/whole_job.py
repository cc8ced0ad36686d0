"""The main job from the command line, LeNet-300-100 on MNIST at 68x, and the share of each stage.

`python benchmarks/whole_job.py [OVERRIDE ...]`: recipes/lenet-300-100-mnist.toml, in a temporary
folder; a few minutes. MNIST is looked for as by any run (ELLZERO_DATA). "the rest" is the start of
Python, reading the data, evaluation on test data, checkpoints and other files. Prints a table and a
line of JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = Path(__file__).parents[1] / "recipes" / "lenet-300-100-mnist.toml"


def main() -> None:
    """Run it once."""
    overrides = [text for override in sys.argv[1:] for text in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-m", "ellzero", "run", str(RECIPE), "--output", str(output)]
        began = time.perf_counter()
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL)
        total = time.perf_counter() - began
        record = json.loads((output / "record.json").read_text())
        epochs = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    stages = dict.fromkeys(("reference", "train", "finetune"), 0.0)
    for epoch in epochs:
        stages[epoch["stage"]] += epoch["seconds"]
    stages["the rest"] = total - sum(stages.values())
    for stage, seconds in stages.items():
        print(f"{stage:12}{seconds:7.1f} s {100 * seconds / total:5.1f} %")
    ratio, error = record["nonzero_ratio"], record["test_error_percent"]
    print(f"{'whole':12}{total:7.1f} s        {ratio:.0f}x, test error {error:.2f} %")
    shares = {stage: round(seconds / total, 4) for stage, seconds in stages.items()}
    figures = {"seconds": round(total, 1), "shares": shares, "nonzero_ratio": round(ratio, 1)}
    print(json.dumps({"benchmark": "whole_job", **figures, "test_error_percent": round(error, 2)}))


if __name__ == "__main__":
    main()
