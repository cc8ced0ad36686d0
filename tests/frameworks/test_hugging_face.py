"""The Trainer for Hugging Face against a loop by hand, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import ellzero as ez
from ellzero.frameworks import Scheme
from small import blobs, mlp, nonzero_weights, tensors_equal

transformers = pytest.importorskip("transformers", reason="comes with the extra 'transformers'")
pytest.importorskip("accelerate", reason="comes with the extra 'transformers'")

from transformers import EarlyStoppingCallback, TrainingArguments  # noqa: E402

from ellzero.frameworks.hugging_face import SparseTrainer  # noqa: E402

X, Y = blobs(60, 1)
BATCH = 12
PENALTY = ez.L0(2e-3, beta=5) + ez.L1(1e-2, form="decoupled") + ez.L2(1e-3)
EPOCHS = 4
NONZEROS = 30


class Blobs(Dataset):
    """The three clouds, an example a dict, as a Trainer wants it."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index], "labels": Y[index]}


class Classifier(nn.Module):
    """The small network with its loss, as transformers has it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def scheme(**settings: Any) -> Scheme:
    return Scheme(**{"penalty": PENALTY, "nonzeros": NONZEROS, **settings})


def trainer(folder: Path, told: Scheme | None = None, *, model: Any = None, **settings: Any) -> Any:
    given = {
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "optim": "adamw_torch",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    callbacks = settings.pop("callbacks", None)
    return SparseTrainer(
        model or Classifier(),
        TrainingArguments(str(folder), **{**given, **settings}),
        train_dataset=Blobs(),
        eval_dataset=Blobs(),
        scheme=told or scheme(),
        callbacks=callbacks,
    )


def by_hand(*, accumulate: int = 1, clip: float = 0.0, autocast: bool = False) -> nn.Module:
    """What the trainer is to come to, in a loop without transformers."""
    net = mlp()
    decayed = [p for name, p in net.named_parameters() if "bias" not in name]
    others = [p for name, p in net.named_parameters() if "bias" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.02)
    regularizer = ez.Regularizer(net, PENALTY)

    def epoch(regularizer: ez.Regularizer) -> None:
        batches = list(zip(X.split(BATCH), Y.split(BATCH), strict=True))
        for start in range(0, len(batches), accumulate):
            group = batches[start : start + accumulate]
            optimizer.zero_grad()
            for x, y in group:
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    loss = nn.functional.cross_entropy(net(x), y)
                (loss / len(group)).backward()
            regularizer.add_gradient()
            if clip:
                nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            regularizer.step(optimizer)

    for _ in range(EPOCHS // 2):
        epoch(regularizer)
    after = ez.Regularizer(net, ez.L2(1e-3))
    with ez.prune(net, nonzeros=NONZEROS).hold(optimizer):
        for _ in range(EPOCHS - EPOCHS // 2):
            epoch(after)
    return net


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_it_equals_a_loop_by_hand_to_the_bit(tmp_path, accumulate, clip):
    model = Classifier()
    settings = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
    trainer(tmp_path, model=model, **settings).train()
    assert tensors_equal(model.net, by_hand(accumulate=accumulate, clip=clip))
    assert nonzero_weights(model) == NONZEROS


def test_it_equals_a_loop_by_hand_in_bfloat16(tmp_path):
    model = Classifier()
    trainer(tmp_path, model=model, bf16=True).train()
    assert tensors_equal(model.net, by_hand(autocast=True))


def test_the_penalty_is_within_the_norm_that_is_clipped(tmp_path):
    norms = []

    class Watching(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model, **_):
            gradients = [p.grad for p in model.parameters()]
            norms.append(
                float(torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients])))
            )

    strong = scheme(penalty=ez.L1(100.0))
    trainer(tmp_path, strong, max_grad_norm=0.05, max_steps=3, callbacks=[Watching()]).train()
    assert norms
    assert max(norms) <= 0.05 * (1 + 1e-6)


@pytest.mark.parametrize("step", [5, 15], ids=["in the training", "in the fine-tuning"])
@pytest.mark.parametrize(
    "told",
    [
        scheme(),
        scheme(gradual=ez.Schedule(0, 1, "cubic")),
        scheme(penalty=None, gates=ez.HardConcrete(1e-3, keep=0.9)),
    ],
    ids=["penalty", "gradual", "gates"],
)
def test_a_training_that_goes_on_from_a_checkpoint_comes_to_the_same(tmp_path, told, step):
    whole, resumed = Classifier(), Classifier()
    saving = {"save_strategy": "steps", "save_steps": 5}
    trainer(tmp_path, told, model=whole, **saving).train()
    again = trainer(tmp_path, told, model=resumed, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert tensors_equal(resumed, whole)
    assert again.masks.nonzeros == NONZEROS


def test_the_last_checkpoint_is_found(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 15}
    whole, resumed = Classifier(), Classifier()
    trainer(tmp_path, model=whole, **saving).train()
    (tmp_path / "checkpoint-20").rename(tmp_path / "other")
    trainer(tmp_path, model=resumed, **saving).train(resume_from_checkpoint=True)
    assert tensors_equal(resumed, whole)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    trainer(tmp_path, save_strategy="steps", save_steps=15).train()
    (tmp_path / "checkpoint-15" / "sparse_training.pt").unlink()
    with pytest.raises(
        ez.InputError, match=r"sparse_training\.pt does not exist; expected a check"
    ):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))


class Falling:
    """A score that falls at each evaluation, so that the first network would be the best."""

    score = 0.0

    def __call__(self, prediction: Any) -> dict[str, float]:
        self.score -= 1
        return {"score": self.score}


def test_the_best_network_is_one_after_the_pruning(tmp_path):
    model = Classifier()
    best = trainer(
        tmp_path,
        model=model,
        save_strategy="epoch",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )
    best.compute_metrics = Falling()
    best.train()
    assert Path(best.state.best_model_checkpoint).name == "checkpoint-15"
    assert nonzero_weights(model) == NONZEROS
    assert best.state.global_step == 20  # the patience begins anew, too


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fp16": True}, "take bf16=True"),
        ({"optim": "galore_adamw_layerwise", "optim_target_modules": ["net"]}, "within the backw"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path, settings, message):
    with pytest.raises(ez.InputError, match=message):
        trainer(tmp_path, **settings)


def test_after_an_error_the_weights_are_no_draw_of_gates(tmp_path):
    class Failing(Classifier):
        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            raise RuntimeError("out of luck")

    model = Failing()
    gates = scheme(penalty=None, gates=ez.HardConcrete(1e-3, keep=0.5))
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer(tmp_path, gates, model=model).train()
    assert tensors_equal(model.net, mlp())


def test_gates_are_plain_weights_in_an_evaluation(tmp_path):
    """A loss of the network as it stands without noise, the same each time."""
    told = scheme(penalty=None, gates=ez.HardConcrete(1e-3, keep=0.6), nonzeros=9, prune_at=0.9)
    losses = []

    class Watching(transformers.TrainerCallback):
        def on_epoch_end(self, args, state, control, **_):
            if watched.sparsifier.is_pruned:
                return
            losses.append([watched.evaluate()["eval_loss"] for _ in range(2)])
            regularizer = next(iter(watched.sparsifier._regularizers.values()))
            with regularizer.finalized(), torch.no_grad():
                losses[-1].append(float(watched.model(X, Y)["loss"]))

    watched = trainer(tmp_path, told, num_train_epochs=2, callbacks=[Watching()])
    watched.train()
    assert losses
    for first, second, expected in losses:
        assert first == second == pytest.approx(expected, rel=1e-5)


def encoder() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=30, intermediate_size=32, max_position_embeddings=8, **shape)
    return BertForMaskedLM(config)


class Tokens(Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        tokens = torch.arange(index, index + 8) % 30
        return {"input_ids": tokens, "labels": tokens}


@pytest.mark.slow
def test_an_encoder_is_saved_and_read_without_ellzero(tmp_path):
    model = encoder()
    told = Scheme(
        penalty=ez.L0(1e-4), sparsity=0.9, include=["bert.encoder.*.weight"], exclude=["*Norm*"]
    )
    compressed = trainer(tmp_path, told, model=model, max_steps=6, per_device_train_batch_size=4)
    compressed.train_dataset = Tokens()
    compressed.train()
    folder = tmp_path / "saved"
    compressed.save_model(str(folder))
    tokens = Tokens()[3]["input_ids"][None]
    with torch.no_grad():
        expected = model.eval()(tokens).logits
    code = (
        "import sys; sys.modules['ellzero'] = None\n"
        "import json, torch\n"
        "from transformers import BertForMaskedLM\n"
        f"model = BertForMaskedLM.from_pretrained({str(folder)!r}).eval()\n"
        "weights = [w for n, w in model.named_parameters() if n.startswith('bert.encoder')\n"
        "           and n.endswith('weight') and 'Norm' not in n]\n"
        "with torch.no_grad():\n"
        f"    logits = model(torch.tensor({tokens.tolist()})).logits\n"
        "print(json.dumps([sum(int(w.count_nonzero()) for w in weights),\n"
        "    sum(w.numel() for w in weights), logits.tolist()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    nonzeros, numel, logits = json.loads(done.stdout.splitlines()[-1])
    # each of two layers has 4 matrices 16 x 16 and 2 of 16 x 32; a tenth stays
    assert numel == 2 * (4 * 256 + 2 * 512)
    assert nonzeros == compressed.masks.nonzeros == numel - round(0.9 * numel)
    torch.testing.assert_close(torch.tensor(logits), expected)


class Logits(nn.Module):
    """The encoder as a network from tokens to logits, which is what a packed file holds."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder(tokens).logits


@pytest.mark.slow
def test_an_encoder_is_packed_and_read_without_transformers(tmp_path):
    network = Logits(encoder()).eval()
    weights = ez.select(network, include=["*.encoder.layer.*.weight"], exclude=["*Norm*"])
    ez.prune(network, sparsity=0.9, weights=weights)
    tokens = torch.stack([Tokens()[i]["input_ids"] for i in range(3)])
    ez.pack(ez.trace(network, tokens[:1]), tmp_path / "net.ellz")
    with torch.no_grad():
        torch.save((tokens, network(tokens)), tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules.update(transformers=None, accelerate=None)\n"
        "import torch, ellzero as ez\n"
        f"tokens, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        "with torch.no_grad():\n"
        f"    logits = ez.load({str(tmp_path / 'net.ellz')!r})(tokens)\n"
        "torch.testing.assert_close(logits, expected)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
