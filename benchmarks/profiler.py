"""Where a training step's time goes, by torch.profiler: l0 + l2, and masks held.

`python benchmarks/profiler.py`: LeNet-300-100, batch 128, fused Adam, one thread. Prints a table of
the operations that take most of the CPU's time of their own.
"""

import torch
from step import CASES, Step
from torch.profiler import ProfilerActivity, profile

STEPS = 200


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    for variant in ("l0 + l2", "masks, l0 decoupled"):
        step = Step(CASES["lenet-300-100"], variant)
        for _ in range(50):
            step()
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            for _ in range(STEPS):
                step()
        rows = sorted(profiled.key_averages(), key=lambda r: r.self_cpu_time_total, reverse=True)
        whole = sum(row.self_cpu_time_total for row in rows)
        print(f"{variant}: {whole / STEPS:.0f} microseconds a step under the profiler")
        print(f"{'operation':44}{'share':>7}{'us a step':>11}{'calls a step':>14}")
        for row in rows[:16]:
            share, each = 100 * row.self_cpu_time_total / whole, row.self_cpu_time_total / STEPS
            print(f"{row.key[:42]:44}{share:6.1f}%{each:11.1f}{row.count / STEPS:14.1f}")


if __name__ == "__main__":
    main()
