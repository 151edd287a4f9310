"""What the image-classification stages share."""

from torch import Tensor

from crossvit.data.batches import ImageBatch
from crossvit.metrics import IndexedCatMetric, classification_accuracy
from crossvit.objectives.classification import ClassificationLoss
from crossvit.tasks.base import Task

KS = (1, 5)


class ClassificationTask(Task):
    """Training and validation of any image classifier; subclasses say how an image becomes logits."""

    def __init__(self, loss: ClassificationLoss, **settings) -> None:
        super().__init__(**settings)
        self.loss = loss
        self.val_rows = IndexedCatMetric("logits", "label")

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) normalised image -> (B, K)."""
        raise NotImplementedError

    def training_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        logits = self(batch.image)
        loss = self.loss(logits, batch.label)
        self.step_losses = {"loss": loss.detach()}
        accuracy = classification_accuracy(logits.detach(), batch.label, 1).mean()
        self.log_figures({"loss": loss.detach(), "acc@1": accuracy})
        return self.loss.weight * loss

    def validation_step(self, batch: ImageBatch, batch_idx: int) -> None:
        self.val_rows.update(batch.index, logits=self(batch.image).float(), label=batch.label)

    def validation_figures(self, data) -> tuple[str, ...]:
        return tuple(f"val/acc@{k}" for k in KS)

    def on_validation_epoch_end(self) -> None:
        rows = self.val_rows.compute()
        self.val_rows.reset()
        for k in KS:
            accuracy = classification_accuracy(rows["logits"], rows["label"], k).mean()
            self.log(f"val/acc@{k}", accuracy, prog_bar=True, sync_dist=True)
