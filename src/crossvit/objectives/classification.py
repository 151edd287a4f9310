"""Cross-entropy over classes, for the stages that train on labelled images alone."""

from torch import Tensor, nn
from torch.nn import functional as F


def classification_loss(logits: Tensor, label: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of (B, K) logits against label (B,), a scalar in nats."""
    return F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing)


class ClassificationLoss(nn.Module):
    """`classification_loss` with its smoothing and its weight."""

    def __init__(self, weight: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return classification_loss(logits, label, self.label_smoothing)
