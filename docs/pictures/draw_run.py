"""Draw what a run came to, from its records alone: `python docs/pictures/draw_run.py RUN PICTURE`.

For a network on 28 x 28 images whose first layer is dense (needs the extra `report`): where it
still looks, its density per layer, and how error and nonzeros went over the epochs.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from safetensors.numpy import load_file

INK, ACCENT, SOFT = "#1f2933", "#0b7285", "#adb5bd"
mpl.rcParams.update({"font.size": 9, "axes.edgecolor": SOFT, "axes.titleweight": "bold"})
mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "text.color": INK})


def draw(run: Path, picture: Path) -> None:
    """Three panels side by side in one picture."""
    record = json.loads((run / "record.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    figure, (look, density, course) = plt.subplots(
        1, 3, figsize=(10, 3.1), width_ratios=(1, 1.1, 1.6), layout="constrained"
    )

    first = load_file(run / "model.safetensors")[record["layers"][0]["name"]]
    read = (first != 0).sum(axis=0).reshape(28, 28)
    image = look.imshow(read, cmap="GnBu")
    look.set(title="Where it still looks", xticks=[], yticks=[])
    look.set_xlabel(f"nonzero weights per pixel, of {len(first)}")
    look.spines[:].set_visible(False)
    figure.colorbar(image, ax=look, shrink=0.8)

    layers = record["layers"][::-1]
    bars = density.barh(
        [layer["name"].removesuffix(".weight") for layer in layers],
        [100 * layer["density"] for layer in layers],
        color=ACCENT,
        height=0.55,
    )
    labels = [f"{layer['nonzeros']:,} of {layer['weights']:,}" for layer in layers]
    density.bar_label(bars, labels, padding=3)
    density.set(title="Weights left per layer", xlabel="percent", xlim=(0, 100))
    density.margins(y=0.15)

    sparse = [metrics for metrics in epochs if metrics["stage"] != "reference"]
    course.plot(
        range(len(sparse)),
        [100 * (1 - metrics["validation_score"]) for metrics in sparse],
        color=ACCENT,
        label="validation error, percent",
    )
    dense = 100 * (1 - record["reference"]["validation"]["score"])
    course.axhline(dense, color=SOFT, linestyle="--", label=f"dense network, {dense:.2f}")
    course.set(title="Training, pruning, fine-tuning", xlabel="epoch", ylim=(0, 3 * dense))
    nonzeros = course.twinx()
    nonzeros.semilogy([metrics["nonzeros"] for metrics in sparse], color=INK, linewidth=0.9)
    nonzeros.set_ylabel("nonzero weights")
    nonzeros.spines["right"].set_visible(True)
    course.plot([], [], color=INK, linewidth=0.9, label="nonzero weights")
    course.legend(frameon=False, loc="upper right")

    figure.savefig(picture, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
