"""The Visual Transformer on top of the patch encoder, as an image classifier through the patches."""

from torch import Tensor

from crossvit.models.heads import ClassificationHead
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.visual_transformer import VisualTransformer
from crossvit.tasks.classification import ClassificationTask


class VisualTransformerTask(ClassificationTask):
    """The Visual Transformer on the patches, classified from its pooled output."""

    provides = ("patch_encoder.", "vision.")

    def __init__(
        self, patch_encoder: PatchEncoder, vision: VisualTransformer, num_classes: int, dropout: float = 0.0, **settings
    ) -> None:
        super().__init__(**settings)
        self.patch_encoder = patch_encoder
        self.vision = vision
        self.classifier = ClassificationHead(vision.pooled_width, num_classes, dropout)

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.vision.pool(self.vision(self.patch_encoder(image).patches)))
