"""A run that is logged to MLflow: `pip install mlflow`, `python examples/with_mlflow.py`.

It is written into the file `mlflow.db`, which `mlflow ui --backend-store-uri sqlite:///mlflow.db`
shows.
"""

from pathlib import Path

import mlflow
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


def log(metrics: ez.EpochMetrics) -> None:
    """Log the figures of an epoch."""
    figures = metrics.to_table()
    stage, epoch = figures.pop("stage"), figures.pop("epoch")
    known = {f"{stage}/{name}": value for name, value in figures.items() if value is not None}
    mlflow.log_metrics(known, step=epoch)


def main(folder: str | Path = ".") -> ez.Result:
    """Log the recipe, every epoch, and what came of it."""
    mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
    mlflow.set_experiment("ellzero")
    with mlflow.start_run():
        mlflow.log_dict(RECIPE.to_table(), "recipe.json")
        result = ez.compress(network(), data(), RECIPE, callback=log)
        mlflow.log_metric("nonzero_ratio", result.record.nonzero_ratio)
        mlflow.log_metric("validation_score", result.record.compressed.validation.score)
    return result


if __name__ == "__main__":
    main()
