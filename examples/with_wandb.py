"""A run that is logged to Weights & Biases: `pip install wandb`, `python examples/with_wandb.py`.

It is written into the folder `wandb`, without a connection; `wandb sync wandb/offline-run-...`
uploads it. With `mode="online"` that happens while it goes on.
"""

from pathlib import Path

import wandb
from my_project import data, network

import ellzero as ez

RECIPE = ez.Recipe.parse(
    {
        "reference": {"epochs": 3},
        "train": {"epochs": 5, "learning_rate": 5e-3, "penalty": {"l0": {"strength": 1e-4}}},
        "prune": {"sparsity": 0.8},
        "finetune": {"epochs": 3},
    }
)


def main(folder: str | Path = ".") -> ez.Result:
    """Log the recipe, every epoch, and what came of it."""
    settings = RECIPE.to_table()
    with wandb.init(project="ellzero", mode="offline", dir=folder, config=settings) as run:

        def log(metrics: ez.EpochMetrics) -> None:
            figures = metrics.to_table()
            stage = figures.pop("stage")
            run.log({f"{stage}/{name}": figure for name, figure in figures.items()})

        result = ez.compress(network(), data(), RECIPE, callback=log)
        run.summary["nonzero_ratio"] = result.record.nonzero_ratio
        run.summary["validation_score"] = result.record.compressed.validation.score
    return result


if __name__ == "__main__":
    main()
