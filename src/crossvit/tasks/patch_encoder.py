"""Stage 1: the CNN patch encoder as an image classifier, global average pooling on the map whose cells are the patches."""

from torch import Tensor

from crossvit.models.heads import ClassificationHead
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.tasks.classification import ClassificationTask


class PatchEncoderTask(ClassificationTask):
    """ResNet-18 as published: feature map -> GAP -> Linear. The projection to the transformer's width has no part in it and waits."""

    provides = ("patch_encoder.backbone.",)

    def __init__(self, patch_encoder: PatchEncoder, num_classes: int, dropout: float = 0.0, **settings) -> None:
        super().__init__(**settings)
        self.patch_encoder = patch_encoder
        self.classifier = ClassificationHead(patch_encoder.num_channels, num_classes, dropout)
        patch_encoder.proj.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.patch_encoder.feature_map(image))
