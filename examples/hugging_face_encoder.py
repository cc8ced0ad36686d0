"""A small encoder of Hugging Face's transformers, trained, pruned and fine-tuned by its Trainer.

Run it with `python examples/hugging_face_encoder.py`: a BERT of two layers learns to find the
capitals of Shakespeare's plays in a text without any, in about a minute, and keeps a tenth of its
encoder's weights. It needs `pip install 'ellzero[transformers,data]'`.
"""

import tempfile

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForTokenClassification, TrainingArguments

import ellzero as ez
from ellzero.data.shakespeare import shakespeare
from ellzero.frameworks import Scheme
from ellzero.frameworks.hugging_face import SparseTrainer

CONTEXT = 32


class Windows(Dataset):
    """Windows of bytes in lower case, int64 (CONTEXT,), and for each letter whether it was not."""

    def __init__(self, part):
        batches = part.batches(4096, torch.device("cpu"))
        text = torch.cat([inputs for inputs, _ in batches])
        upper = (text >= ord("A")) & (text <= ord("Z"))
        lower = (text >= ord("a")) & (text <= ord("z"))
        self.tokens = torch.where(upper, text + ord("a") - ord("A"), text)
        self.labels = torch.where(upper | lower, upper.long(), -100)  # of what is no letter: none

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def f1(prediction):
    """The F1 score of the capitals, of which one letter in ten is."""
    said = (prediction.predictions.argmax(-1) == 1) & (prediction.label_ids >= 0)
    true = prediction.label_ids == 1
    return {"f1": float(2 * (said & true).sum() / (said.sum() + true.sum()))}


def main(steps: int = 700) -> float:
    """Train, prune, fine-tune; the F1 score on text that was not trained on."""
    torch.manual_seed(0)
    data = shakespeare(tokens="bytes", context=CONTEXT)
    config = BertConfig(
        vocab_size=128,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        max_position_embeddings=CONTEXT,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    scheme = Scheme(
        penalty=ez.L0(1e-5, beta=5),
        sparsity=0.9,
        prune_at=0.7,
        gradual=ez.Schedule(0, 1, "cubic", after=0.4),
        include=["bert.encoder.*.weight"],
        exclude=["*LayerNorm*"],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=256,
            learning_rate=2e-3,
            lr_scheduler_type="linear",
            warmup_steps=100,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = SparseTrainer(
            BertForTokenClassification(config),
            arguments,
            train_dataset=Windows(data.train),
            eval_dataset=Windows(data.validation),
            compute_metrics=f1,
            scheme=scheme,
        )
        trainer.train()
        reached = trainer.evaluate()["eval_f1"]
        trainer.save_model(folder)  # as ever: `from_pretrained` needs no ellzero
        BertForTokenClassification.from_pretrained(folder)
    masks = trainer.masks
    print(f"{masks.nonzeros:,} of {masks.numel:,} weights, F1 {reached:.2f}")
    return reached


if __name__ == "__main__":
    main()
