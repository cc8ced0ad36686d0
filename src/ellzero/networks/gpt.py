"""A small GPT: a transformer that predicts the next token."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ellzero.errors import InputError


class Attention(nn.Module):
    """Causal self-attention with several heads; one linear layer makes queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.heads = heads
        self.dropout = nn.Dropout(dropout)  # a module, so that a recipe can switch it off

    def forward(self, x: Tensor) -> Tensor:
        """(N, time, width) of (N, time, width)."""
        heads = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (N, time, 3, heads, width / heads)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each (N, heads, time, width / heads)
        dropout = self.dropout.p if self.dropout.training else 0.0
        mixed = F.scaled_dot_product_attention(
            queries, keys, values, dropout_p=dropout, is_causal=True
        )
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers on each place alone, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, time, width) of (N, time, width)."""
        return self.contract(F.gelu(self.expand(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward layers, each added to its input, which is normalized first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, time, width) of (N, time, width)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class GPT(nn.Module):
    """The transformer that `gpt_small` makes."""

    def __init__(
        self, vocabulary: int, width: int, layers: int, heads: int, context: int, dropout: float
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        self.context = context
        self._initialize(residual_std=0.02 / math.sqrt(2 * layers))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, time, vocabulary) of the token after each of the tokens (N, time)."""
        time = tokens.shape[1]
        if time > self.context:
            raise InputError(
                f"gpt-small got sequences of {time} tokens; its context is {self.context} tokens, "
                f"so give shorter ones, or make the network with context={time}"
            )
        places = torch.arange(time, device=tokens.device)
        x = self.dropout(self.tokens(tokens) + self.positions(places))
        return self.head(self.norm(self.blocks(x)))

    def _initialize(self, residual_std: float) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("output.weight", "contract.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif name == "positions.weight":
                nn.init.normal_(parameter, std=0.01)
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)


def gpt_small(
    *,
    vocabulary: int = 65,
    width: int = 128,
    layers: int = 5,
    heads: int = 4,
    context: int = 128,
    dropout: float = 0.0,
) -> GPT:
    """A GPT of GPT-2's form with five blocks of width 128, 1,016,320 parameters.

    Takes tokens (N, time), int64 in [0, vocabulary), of at most `context` places, and gives logits
    (N, time, vocabulary), at each place those of the next token. A block `blocks.0` has the linear
    layers `attention.qkv`, `attention.output`, `feed_forward.expand` and `feed_forward.contract`;
    `head` has the weight of the embedding `tokens`. Linear weights and tokens start from a normal
    distribution with deviation 0.02, positions with 0.01, what ends in a sum (`attention.output`,
    `feed_forward.contract`) with 0.02 / sqrt(2 layers); biases are 0.

    Args:
        vocabulary: number of different tokens; 65 are the characters of the Shakespeare text.
        width: values at each place; a multiple of `heads`.
        layers: blocks.
        heads: of each attention.
        context: largest number of tokens in a sequence.
        dropout: probability with which an attention weight, a value of the embeddings' sum or of
            what a block adds is dropped in training.

    Raises:
        InputError: a width that the heads do not divide; when it runs, a sequence that is longer
            than the context.
        ValueError: a probability is not in [0, 1] (PyTorch's own check).

    Example:
        >>> import torch
        >>> network = gpt_small()
        >>> network(torch.zeros(2, 9, dtype=torch.int64)).shape
        torch.Size([2, 9, 65])
        >>> sum(parameter.numel() for parameter in network.parameters())
        1016320

    Source:
        Radford, Wu, Child, Luan, Amodei, Sutskever: Language models are unsupervised multitask
        learners, 2019, and its code, https://github.com/openai/gpt-2 (`src/model.py`).
    """
    if width % heads:
        raise InputError(f"gpt-small: width is {width}; expected a multiple of heads={heads}")
    return GPT(vocabulary, width, layers, heads, context, dropout)
