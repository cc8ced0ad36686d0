"""The callback for PyTorch Lightning against a loop by hand, bit for bit."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ellzero as ez
from ellzero.frameworks import Scheme
from small import blobs, mlp, nonzero_weights, tensors_equal

pl = pytest.importorskip("pytorch_lightning", reason="comes with the extra 'lightning'")

from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint  # noqa: E402
from pytorch_lightning.plugins import MixedPrecision  # noqa: E402

from ellzero.frameworks.lightning import SparseTraining  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need"),
]

X, Y = blobs(60, 1)
BATCH, BATCHES = 12, 5
PENALTY = ez.L0(2e-3, beta=5) + ez.L1(1e-2, form="decoupled") + ez.L2(1e-3)
EPOCHS = 4
PRUNE_AT = 0.5
NONZEROS = 30


def loader() -> DataLoader:
    # with a generator of its own it draws nothing from the one that gates draw from
    return DataLoader(TensorDataset(X, Y), BATCH, generator=torch.Generator())


class Classifier(pl.LightningModule):
    """The small network under Adam with weight decay."""

    def __init__(self, optimizer: Any = torch.optim.AdamW) -> None:
        super().__init__()
        self.net = mlp()
        self._make_optimizer = optimizer

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return self._make_optimizer(self.parameters(), lr=0.02, weight_decay=0.1)


def scheme(**settings: Any) -> Scheme:
    given = {"penalty": PENALTY, "nonzeros": NONZEROS, "prune_at": PRUNE_AT}
    return Scheme(**{**given, **settings})


def trainer(*callbacks: Any, **settings: Any) -> Any:
    given = {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**given, **settings})


def by_hand(
    *, accumulate: int = 1, clip: float | None = None, autocast: bool = False, epochs: int = EPOCHS
) -> nn.Module:
    """What the callback is to come to, in a loop without Lightning."""
    net = mlp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
    regularizer = ez.Regularizer(net, PENALTY)

    def epoch(regularizer: ez.Regularizer) -> None:
        batches = list(zip(X.split(BATCH), Y.split(BATCH), strict=True))
        for start in range(0, len(batches), accumulate):
            optimizer.zero_grad()
            for x, y in batches[start : start + accumulate]:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
                    loss = nn.functional.cross_entropy(net(x), y) / accumulate
                loss.backward()
            regularizer.add_gradient()
            if clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            regularizer.step(optimizer)

    for _ in range(round(epochs * PRUNE_AT)):
        epoch(regularizer)
    after = ez.Regularizer(net, ez.L2(1e-3))
    with ez.prune(net, nonzeros=NONZEROS).hold(optimizer):
        for _ in range(epochs - round(epochs * PRUNE_AT)):
            epoch(after)
    return net


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_it_equals_a_loop_by_hand_to_the_bit(accumulate, clip):
    module = Classifier()
    settings = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip}
    trainer(SparseTraining(scheme()), **settings).fit(module, loader())
    assert tensors_equal(module.net, by_hand(accumulate=accumulate, clip=clip))
    assert nonzero_weights(module.net) == NONZEROS


def test_it_equals_a_loop_by_hand_in_bfloat16():
    module = Classifier()
    trainer(SparseTraining(scheme()), precision="bf16-mixed").fit(module, loader())
    assert tensors_equal(module.net, by_hand(autocast=True))


def fitted_with_scaler(scale: float, callback: SparseTraining, optimizer: Any) -> Classifier:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    module = Classifier(optimizer)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    trainer(callback, plugins=[plugin], max_epochs=2).fit(module, loader())
    return module


def test_under_a_gradient_scaler_the_scale_does_not_matter():
    one, large = (
        fitted_with_scaler(scale, SparseTraining(scheme()), torch.optim.SGD)
        for scale in (2.0**8, 2.0**12)
    )
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(large.state_dict()[name], tensor, atol=1e-4, rtol=1e-2)


def test_a_fused_optimizer_under_a_gradient_scaler_is_refused():
    def fused(parameters: Any, **settings: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, fused=True, **settings)

    with pytest.raises(ez.InputError, match="AdamW is fused and unscales float16 gradients"):
        fitted_with_scaler(256.0, SparseTraining(scheme()), fused)


@pytest.mark.parametrize("kept_epoch", [0, 2], ids=["in the training", "in the fine-tuning"])
@pytest.mark.parametrize("gradual", [None, ez.Schedule(0, 1, "cubic")], ids=["", "gradual"])
def test_a_training_that_goes_on_from_a_checkpoint_comes_to_the_same(tmp_path, kept_epoch, gradual):
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = Classifier(), Classifier()
    trainer(SparseTraining(scheme(gradual=gradual)), keep).fit(whole, loader())
    callback = SparseTraining(scheme(gradual=gradual))
    trainer(callback).fit(resumed, loader(), ckpt_path=tmp_path / f"epoch={kept_epoch}.ckpt")
    assert tensors_equal(resumed, whole)
    assert callback.masks is not None
    assert callback.masks.nonzeros == NONZEROS


class Seeded(Classifier):
    """Draws anew in each epoch, so that a resumed one has the draws of the first."""

    def validation_step(self, batch, batch_idx):
        pass

    def on_train_epoch_start(self):
        torch.manual_seed(self.current_epoch)


@pytest.mark.parametrize("gates", [ez.HardConcrete(1e-3, keep=0.9), ez.PMMP(1e-3)])
@pytest.mark.parametrize("kept_epoch", [0, 2])
def test_gates_are_in_the_checkpoint(tmp_path, gates, kept_epoch):
    gated = scheme(penalty=None, gates=gates)
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    whole, resumed = Seeded(), Seeded()
    loaders = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    trainer(SparseTraining(gated), keep, accumulate_grad_batches=2).fit(whole, **loaders)
    again = trainer(SparseTraining(gated), accumulate_grad_batches=2)
    again.fit(resumed, ckpt_path=tmp_path / f"epoch={kept_epoch}.ckpt", **loaders)
    assert tensors_equal(resumed, whole)
    assert nonzero_weights(whole) == NONZEROS


class Adversaries(pl.LightningModule):
    """Two networks that take turns, with an optimizer each."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = mlp(), mlp(seed=1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        for net, optimizer in zip((self.first, self.second), self.optimizers(), strict=True):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()

    def configure_optimizers(self):
        nets = (self.first, self.second)
        return [torch.optim.AdamW(n.parameters(), lr=0.02, weight_decay=0.1) for n in nets]


def test_of_several_optimizers_each_has_its_own_part():
    module = Adversaries()
    trainer(SparseTraining(scheme(include=["first.*.weight"]))).fit(module, loader())
    assert tensors_equal(module.first, by_hand())
    assert nonzero_weights(module.second) == 144

    both = Adversaries()
    both.second = copy.deepcopy(both.first)
    trainer(SparseTraining(scheme(sparsity=0.75, nonzeros=None, scope="layer"))).fit(both, loader())
    assert tensors_equal(both.first, both.second)
    assert nonzero_weights(both) == 2 * 36


def test_gates_need_automatic_optimization():
    callback = SparseTraining(scheme(penalty=None, gates=ez.HardConcrete(0.1)))
    with pytest.raises(ez.InputError, match="gates put a draw into the weights once"):
        trainer(callback).fit(Adversaries(), loader())


def test_a_validation_within_a_step_and_gates_do_not_go_together():
    callback = SparseTraining(scheme(penalty=None, gates=ez.HardConcrete(0.1)))
    settings = {"accumulate_grad_batches": 2, "val_check_interval": 1, "num_sanity_val_steps": 0}
    module = Seeded()
    before = copy.deepcopy(module.net)
    with pytest.raises(ez.InputError, match="a validation between the batches of one optimizer"):
        trainer(callback, **settings).fit(module, loader(), loader())
    assert tensors_equal(module.net, before)  # no step was taken, and the draw is gone


class Falling(Classifier):
    """Its score falls from epoch to epoch, so that the first epoch would be the best."""

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log("score", float(-self.current_epoch))


def test_the_best_epoch_is_one_after_the_pruning(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="score", mode="max", filename="{epoch}")
    module = Falling()
    done = trainer(SparseTraining(scheme()), best)
    done.fit(module, loader(), loader())
    assert Path(best.best_model_path).name == "epoch=2.ckpt"
    kept = Classifier()
    kept.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    assert nonzero_weights(kept) == NONZEROS


def test_stopping_early_begins_anew_after_the_pruning():
    """Patience of three epochs would be over in the fourth; three are of the fine-tuning alone."""
    early = EarlyStopping("score", mode="max", patience=3)
    done = trainer(SparseTraining(scheme()), early, max_epochs=6)
    done.fit(Falling(), loader(), loader())
    assert done.current_epoch == 6


def test_a_training_that_stops_before_the_pruning_is_told():
    early = EarlyStopping("score", mode="max", patience=1)
    with pytest.warns(ez.EllzeroWarning, match="after 10 of 30 steps, before the pruning at step"):
        trainer(SparseTraining(scheme()), early, max_epochs=6).fit(Falling(), loader(), loader())


def test_an_average_of_the_weights_is_pruned_as_well():
    average = pl.callbacks.StochasticWeightAveraging(0.01, swa_epoch_start=1)
    module = Classifier()
    with pytest.warns(ez.EllzeroWarning, match="such as an average of the weights"):
        trainer(SparseTraining(scheme()), average).fit(module, loader())
    assert nonzero_weights(module) == NONZEROS


def test_a_trainer_without_an_end_is_refused():
    with pytest.raises(ez.InputError, match="does not know how many steps it will take"):
        trainer(SparseTraining(scheme()), max_epochs=-1).fit(Classifier(), loader())
    with pytest.raises(ez.InputError, match="give it max_epochs alone"):
        trainer(SparseTraining(scheme()), max_steps=7).fit(Adversaries(), loader())


@pytest.mark.slow
def test_the_network_is_read_without_lightning(tmp_path):
    module = Classifier()
    trainer(SparseTraining(scheme())).fit(module, loader())
    assert list(module.net.state_dict()) == list(mlp().state_dict())
    assert type(module.net[0]) is nn.Linear
    ez.pack(ez.trace(module.net.eval(), X[:1]), tmp_path / "net.ellz")
    with torch.no_grad():
        torch.save((X, module.net(X)), tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules.update(pytorch_lightning=None)\n"
        "import torch, ellzero as ez\n"
        f"x, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    outputs = ez.load({str(tmp_path / 'net.ellz')!r})(x)\n"
        "torch.testing.assert_close(outputs, expected)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
