"""A small encoder of Hugging Face's transformers, trained, pruned and fine-tuned by its Trainer.

Run it with `python examples/hugging_face_encoder.py`: a BERT of two layers learns to fill in masked
bytes of Shakespeare's plays, in about a minute, and keeps a tenth of its encoder's weights. It
needs `pip install 'ellzero[transformers,data]'`.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

import ellzero as ez
from ellzero.data.shakespeare import shakespeare
from ellzero.frameworks import Scheme
from ellzero.frameworks.hugging_face import SparseTrainer

MASK = 256  # a token beside the 256 bytes
CONTEXT = 32


class Windows(Dataset):
    """Windows of bytes, int64 (CONTEXT,)."""

    def __init__(self, part):
        batches = part.batches(4096, torch.device("cpu"))
        self.windows = torch.cat([inputs for inputs, _ in batches])

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return self.windows[index]


def masked(windows):
    """A batch in which a seventh of the bytes is hidden, and has to be filled in."""
    tokens = torch.stack(windows)
    hidden = torch.rand(tokens.shape) < 1 / 7
    return {
        "input_ids": tokens.masked_fill(hidden, MASK),
        "labels": tokens.masked_fill(~hidden, -100),
    }


def accuracy(prediction):
    """Fraction of the masked bytes that the network fills in rightly."""
    hidden = prediction.label_ids != -100
    right = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"accuracy": float(right[hidden].mean())}


def main(steps: int = 800) -> float:
    """Train, prune, fine-tune; the accuracy on the text that was not trained on."""
    torch.manual_seed(0)
    data = shakespeare(tokens="bytes", context=CONTEXT)
    config = BertConfig(
        vocab_size=MASK + 1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=CONTEXT,
    )
    scheme = Scheme(
        penalty=ez.L0(1e-5, beta=5),
        sparsity=0.9,
        prune_at=0.6,
        gradual=ez.Schedule(0, 1, "cubic", after=0.3),
        include=["bert.encoder.*.weight"],
        exclude=["*LayerNorm*"],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=256,
            learning_rate=3e-3,
            lr_scheduler_type="linear",
            warmup_steps=100,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SparseTrainer(
            BertForMaskedLM(config),
            arguments,
            train_dataset=Windows(data.train),
            eval_dataset=Windows(data.validation),
            data_collator=masked,
            compute_metrics=accuracy,
            scheme=scheme,
        )
        trainer.train()
        reached = trainer.evaluate()["eval_accuracy"]
        trainer.save_model(folder)  # as ever: `from_pretrained` needs no ellzero
        BertForMaskedLM.from_pretrained(folder)
    masks = trainer.masks
    print(f"{masks.nonzeros:,} of {masks.numel:,} weights, {100 * reached:.1f} % right")
    return reached


if __name__ == "__main__":
    main()
