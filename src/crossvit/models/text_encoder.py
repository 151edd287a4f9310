"""The text encoder: tokens to contextual features, a pooled vector and the mask of real tokens."""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from crossvit.models.transformer import TransformerBlock


class TextFeatures(NamedTuple):
    """What a text encoder makes of a batch of captions."""

    tokens: Tensor  # (B, M, d_t)
    pooled: Tensor  # (B, d_t)
    mask: Tensor  # (B, M) bool, True where a token is real


class Tokenizer(Protocol):
    """What a text encoder needs to know of its tokenizer."""

    vocab_size: int
    context_length: int
    pad_id: int
    eot_id: int | None


class TextEncoder(nn.Module):
    """A Transformer of its own over token ids, with learned positions and a final LayerNorm.

    pad_id, eot_id: what the default mask goes by: everything up to the first `eot_id` where there is one, else all but
        `pad_id`.
    pooling: `cls` the first token (bidirectional encoders), `eot` the last real one (causal encoders), `mean` over the
        real ones.
    causal: a token reads only those before it, as in CLIP.
    positions: False makes an encoder that cannot know the order of words, a bag of them: a control.

    An encoder looks its words up in `embed`, and reads others instead where `forward` is given some: a masked or a perturbed caption.

    Word and position embeddings both start at a standard deviation of .02. torch's own N(0, 1) for words would drown
    the positions and leave the encoder blind to word order.

    Raises ValueError for an unknown pooling, for `causal` without positions (what a token may read gives the order
    away), and in `forward` for more tokens than `context_length`.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int,
        width: int,
        depth: int,
        heads: int,
        pad_id: int = 0,
        eot_id: int | None = None,
        pooling: Literal["cls", "eot", "mean"] = "cls",
        causal: bool = False,
        positions: bool = True,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "eot", "mean"):
            raise ValueError(f"pooling {pooling!r}: choose cls, eot or mean")
        if causal and not positions:
            raise ValueError("positions=false with causal=true: a causal encoder knows the order of words all the same")
        if causal and pooling == "cls":
            raise ValueError(
                "pooling=cls with causal=true: the first token reads nothing but itself; choose eot or mean"
            )
        self.width = self.word_width = width
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.eot_id = eot_id
        self.pooling = pooling
        self.causal = causal
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position = nn.Parameter(torch.empty(context_length, width)) if positions else None
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        if self.position is not None:
            nn.init.normal_(self.position, std=0.02)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, mlp_ratio, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def for_tokenizer(cls, tokenizer: Tokenizer, **arguments) -> "TextEncoder":
        """A text encoder whose vocabulary, context length, padding and end-of-text ids are those of `tokenizer`."""
        return cls(
            vocab_size=tokenizer.vocab_size,
            context_length=tokenizer.context_length,
            pad_id=tokenizer.pad_id,
            eot_id=tokenizer.eot_id,
            **arguments,
        )

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, M) -> word embeddings (B, M, word_width), before positions."""
        return self.token_embedding(tokens)

    def word_table(self) -> Tensor:
        """(vocab_size, word_width), what `embed` looks words up in."""
        return self.token_embedding.weight

    def forward(self, tokens: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> TextFeatures:
        """tokens (B, M) int64 with M <= context_length, mask (B, M) bool or None for the default, words (B, M, word_width) or None for
        `embed(tokens)`."""
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"{length} tokens, but the text encoder's context_length is {self.context_length}")
        mask = real_tokens(tokens, self.pad_id, self.eot_id, mask)
        words = self.embed(tokens) if words is None else words
        x = self.drop(words if self.position is None else words + self.position[:length])
        for block in self.blocks:
            x, _ = block(x, mask=mask, causal=self.causal)
        x = self.norm(x)
        return TextFeatures(x, pool_text(x, mask, self.pooling), mask)


def real_tokens(tokens: Tensor, pad_id: int, eot_id: int | None = None, mask: Tensor | None = None) -> Tensor:
    """(B, M) bool: the given mask, or what the ids say. The first token always counts, so that no text is empty."""
    if mask is None:
        mask = tokens != pad_id
        if eot_id is not None:
            ended = (tokens == eot_id).long().cumsum(dim=1)
            until_end = (ended == 0) | ((ended == 1) & (tokens == eot_id))
            mask = torch.where(ended[:, -1:] > 0, until_end, mask)
    first = torch.arange(tokens.shape[1], device=tokens.device) == 0
    return mask | first


def pool_text(tokens: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """(B, M, d_t) -> (B, d_t) over the real tokens: the first (`cls`), the last (`eot`) or their `mean`."""
    if pooling == "cls":
        return tokens[:, 0]
    if pooling == "eot":
        place = torch.arange(mask.shape[1], device=mask.device)
        last = (mask * place).argmax(dim=1)
        return tokens[torch.arange(tokens.shape[0], device=tokens.device), last]
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1)
