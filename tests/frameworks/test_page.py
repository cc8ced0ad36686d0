"""The code of docs/frameworks.md runs, and does what the page says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from small import blobs, mlp, nonzero_weights

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
X, Y = blobs(60, 1)


def code(first_line: str) -> str:
    """The block of the page that begins so."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = [block for block in blocks if block.startswith(first_line)]
    return block


@pytest.fixture
def given(tmp_path, monkeypatch) -> dict[str, Any]:
    """What the code stands on, in an empty folder: the scheme of the page."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"torch": torch}
    exec(code("import ellzero as ez"), names)
    return names


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*Starting from v1.9.0, `tensorboardX`")
def test_lightning(given):
    pl = pytest.importorskip("pytorch_lightning", reason="comes with the extra 'lightning'")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    loader = DataLoader(TensorDataset(X, Y), 12)
    given |= {"module": Module(), "loader": loader}
    exec(code("import pytorch_lightning as pl"), given)
    assert nonzero_weights(given["module"]) == 7  # a twentieth of 144


class Classifier(nn.Module):
    """The small network with its loss, as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_hugging_face(given, tmp_path):
    transformers = pytest.importorskip("transformers", reason="comes with 'transformers'")
    pytest.importorskip("accelerate", reason="comes with the extra 'transformers'")
    told = {"report_to": [], "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
    given |= {
        "model": Classifier(),
        "arguments": transformers.TrainingArguments(str(tmp_path), **told),
        "dataset": [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)],
        "folder": str(tmp_path / "saved"),
    }
    exec(code("from ellzero.frameworks.hugging_face"), given)
    assert nonzero_weights(given["model"]) == 7
    assert (tmp_path / "saved" / "model.safetensors").is_file()


def test_accelerate(given):
    pytest.importorskip("accelerate", reason="comes with the extra 'transformers'")
    network = mlp()

    def train(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            nn.functional.cross_entropy(network(X), Y).backward()
            optimizer.step()

    optimizer = torch.optim.AdamW(network.parameters())
    given |= {"network": network, "optimizer": optimizer, "train": train}
    exec(code("from accelerate import"), given)
    assert nonzero_weights(network) == 14
    assert type(given["optimizer"]) is not torch.optim.AdamW


def test_scikit_learn(given, tmp_path):
    pytest.importorskip("sklearn", reason="comes with the extra 'scikit-learn'")
    given |= {"X": X.numpy(), "y": np.array(["a", "b", "c"])[Y]}
    exec(code("from ellzero.frameworks.scikit_learn"), given)
    packed = ez.load(tmp_path / "table.ellz")
    with torch.no_grad():
        torch.testing.assert_close(packed(X), given["classifier"].network_(X))


def test_skorch(given):
    skorch = pytest.importorskip("skorch", reason="is a library of its own")
    exec(code("from skorch.callbacks"), given)
    scheme = given["Scheme"](penalty=ez.L0(1e-3), sparsity=0.9)
    net = skorch.NeuralNetClassifier(
        mlp(),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        lr=0.02,
        max_epochs=4,
        batch_size=12,
        train_split=None,
        verbose=0,
        callbacks=[("sparse", given["SparseTraining"](scheme))],
    )
    x, y = X.numpy(), Y.numpy()
    net.fit(x, y)
    pruned = [w.detach() == 0 for w in (net.module_[0].weight, net.module_[2].weight)]
    assert sum(int(mask.sum()) for mask in pruned) == 144 - 14

    given |= {"net": net, "X": x, "y": y}
    exec(code("net.set_params"), given)
    again = [w.detach() == 0 for w in (net.module_[0].weight, net.module_[2].weight)]
    assert all(torch.equal(a, b) for a, b in zip(pruned, again, strict=True))

    net.set_params(callbacks__sparse__scheme=scheme, max_epochs=2)
    net.partial_fit(x, y)  # the trap: it prunes anew, and other weights
    afresh = [w.detach() == 0 for w in (net.module_[0].weight, net.module_[2].weight)]
    assert sum(int(mask.sum()) for mask in afresh) == 144 - 14
