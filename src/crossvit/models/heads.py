"""The heads: what the features are asked."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ClassificationHead(nn.Module):
    """Class logits of a feature map (B, C, h, w), by global average pooling, or of a pooled vector (B, C)."""

    def __init__(self, num_channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.linear = nn.Linear(num_channels, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        """-> (B, num_classes)."""
        pooled = features.mean(dim=(2, 3)) if features.dim() == 4 else features
        return self.linear(self.drop(pooled))


class ProjectionHead(nn.Linear):
    """To the joint space, without a bias: (B, d) -> (B, E). `unit` gives rows of length 1, in float32 (CLIP, Radford et
    al. 2021)."""

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__(width, embed_dim, bias=False)
        nn.init.normal_(self.weight, std=width**-0.5)

    def unit(self, pooled: Tensor) -> Tensor:
        """(B, d) -> (B, E), every row of length 1."""
        return F.normalize(self(pooled).float(), dim=-1)


class MatchingHead(nn.Linear):
    """Do picture and text belong together? (B, 2d) -> logits (B, 2), 1 = they do (ITM, Li et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, 2)


class RelationHead(nn.Sequential):
    """Which of K relations holds between picture and text: (B, 2d) -> logits (B, K)."""

    def __init__(self, width: int, num_relations: int) -> None:
        super().__init__(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, num_relations))


class MaskedWordHead(nn.Module):
    """Which word was masked? (n, d) of the fused text -> logits (n, vocabulary), by the word embeddings themselves (Devlin et al. 2019).

    `mask_embedding` (word_width,) is what the text encoder reads in place of a masked word.
    """

    def __init__(self, width: int, word_width: int, vocab_size: int) -> None:
        super().__init__()
        self.mask_embedding = nn.Parameter(torch.empty(word_width).normal_(std=0.02))
        self.transform = nn.Sequential(nn.Linear(width, word_width), nn.GELU(), nn.LayerNorm(word_width))
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, states: Tensor, words: Tensor) -> Tensor:
        """states (n, d), words (vocabulary, word_width) -> (n, vocabulary)."""
        return F.linear(self.transform(states), words, self.bias)


class TwoImageHead(nn.Sequential):
    """Is a statement about two pictures true? Both (picture, text) passes side by side, (B, 4d) -> logits (B, 2)
    (NLVR2)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Linear(4 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 2))
