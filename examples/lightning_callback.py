"""PyTorch Lightning: a module and a trainer as ever, and one callback that makes the network small.

Run it with `python examples/lightning_callback.py`: a small network on 5,000 real digits, a few
seconds. It needs `pip install 'ellzero[lightning,data]'`.
"""

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.data.mnist_5k import mnist_5k
from ellzero.frameworks import Scheme
from ellzero.frameworks.lightning import SparseTraining


class Digits(pl.LightningModule):
    """An ordinary module; it knows nothing of ellzero."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main() -> float:
    """Train, prune, fine-tune; the accuracy on the validation digits."""
    torch.manual_seed(0)
    data = mnist_5k()
    whole = next(iter(data.train.batches(10_000, torch.device("cpu"))))
    loader = DataLoader(TensorDataset(*whole), batch_size=64, shuffle=True)

    callback = SparseTraining(
        Scheme(penalty=ez.L0(5e-5, beta=5) + ez.L2(1e-5), sparsity=0.95, prune_at=2 / 3)
    )
    module = Digits()
    trainer = pl.Trainer(
        max_epochs=12,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    masks, accuracy = callback.masks, ez.evaluate(module.net, data, "validation").score
    print(f"{masks.nonzeros:,} of {masks.numel:,} weights, {100 * accuracy:.1f} % right")
    return accuracy


if __name__ == "__main__":
    main()
