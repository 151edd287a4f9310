"""CrossViT: the two towers, their fusion and the heads, with open_clip's own interface."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from crossvit.errors import UserError
from crossvit.models.fusion import CrossModalFusion, FusionOutput
from crossvit.models.heads import MaskedWordHead, MatchingHead, ProjectionHead, RelationHead, TwoImageHead
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.text_encoder import TextFeatures
from crossvit.models.visual_transformer import VisualTransformer


class CrossViT(nn.Module):
    """Patch encoder, Visual Transformer, text encoder, cross-modal fusion and heads.

    embed_dim: E, the width of the joint space of `encode_image` and `encode_text`. num_relations: K of the relation
        head.
    logit_scale_init: `logit_scale` holds the logarithm, as in CLIP. logit_bias_init: of `logit_bias`, which the
        sigmoid loss adds to the scaled cosine (SigLIP).

    What a script written for open_clip uses is here under the same names: `encode_image`, `encode_text`, `logit_scale`,
    and a forward that returns image features, text features and the scale. Raises UserError where the widths of the
    parts do not fit.
    """

    def __init__(
        self,
        patch_encoder: PatchEncoder,
        vision: VisualTransformer,
        text_encoder: nn.Module,
        fusion: CrossModalFusion,
        embed_dim: int,
        num_relations: int = 2,
        logit_scale_init: float = math.log(1 / 0.07),
        logit_bias_init: float = -10.0,
    ) -> None:
        super().__init__()
        for name, part in (("patch_encoder", patch_encoder), ("fusion", fusion)):
            if part.width != vision.width:
                raise UserError(
                    f"{name}.width={part.width} but vision.width={vision.width}: give both the same, see model.width"
                )
        if text_encoder.width != fusion.text_width:
            raise UserError(
                f"the text encoder is {text_encoder.width} wide but fusion.text_width={fusion.text_width}: "
                f"set model.text_width={text_encoder.width}"
            )
        self.patch_encoder = patch_encoder
        self.vision = vision
        self.text_encoder = text_encoder
        self.fusion = fusion
        self.itc_image = ProjectionHead(vision.pooled_width, embed_dim)
        self.itc_text = ProjectionHead(text_encoder.width, embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(float(logit_scale_init)))
        self.logit_bias = nn.Parameter(torch.tensor(float(logit_bias_init)))
        self.itm = MatchingHead(vision.width)
        self.relation = RelationHead(vision.width, num_relations)
        self.two_image = TwoImageHead(vision.width)
        self.mlm = MaskedWordHead(vision.width, text_encoder.word_width, text_encoder.vocab_size)

    def visual_features(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, d), CLS first."""
        return self.visual_tokens(self.patch_encoder(image).patches, image.shape[-2:])

    def visual_tokens(self, patches: Tensor, size: Sequence[int]) -> Tensor:
        """Patches (B, P, d) of pictures of this height and width -> (B, N, d), CLS first."""
        return self.vision(patches, self.patch_encoder.grid(size))

    def text_features(self, tokens: Tensor, mask: Tensor | None = None, words: Tensor | None = None) -> TextFeatures:
        """tokens (B, M), mask (B, M) or None where the padding says it, words (B, M, d_e) in place of the tokens' own
        embeddings or None."""
        return self.text_encoder(tokens, mask, words)

    def embed_visual(self, visual: Tensor) -> Tensor:
        """Visual tokens (B, N, d) -> (B, E), rows of length 1."""
        return self.itc_image.unit(self.vision.pool(visual))

    def embed_text(self, text: TextFeatures) -> Tensor:
        """-> (B, E), rows of length 1."""
        return self.itc_text.unit(text.pooled)

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) -> (B, E)."""
        visual = self.visual_features(image)
        return self.embed_visual(visual) if normalize else self.itc_image(self.vision.pool(visual))

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(B, M) tokens -> (B, E)."""
        features = self.text_features(text)
        return self.embed_text(features) if normalize else self.itc_text(features.pooled)

    def fuse(
        self, visual: Tensor, text: TextFeatures, need_weights: bool = False, pooled_only: bool = False
    ) -> FusionOutput:
        """Row i of `visual` (B, N, d) with row i of `text`. pooled_only: the streams are of no interest."""
        return self.fusion(visual, text.tokens, text.mask, need_weights=need_weights, pooled_only=pooled_only)

    def match_logits(self, fused: FusionOutput) -> Tensor:
        """-> (B, 2), index 1 = they belong together."""
        return self.itm(fused.pooled)

    def relation_logits(self, fused: FusionOutput) -> Tensor:
        """-> (B, K)."""
        return self.relation(fused.pooled)

    def two_image_logits(self, first: FusionOutput, second: FusionOutput) -> Tensor:
        """The same text fused with two pictures -> (B, 2), index 1 = the statement holds."""
        return self.two_image(torch.cat([first.pooled, second.pooled], dim=-1))

    def masked_word_logits(self, states: Tensor) -> Tensor:
        """Fused text tokens (n, d) -> (n, vocabulary)."""
        return self.mlm(states, self.text_encoder.word_table())

    def match_score(self, visual: Tensor, text: TextFeatures) -> Tensor:
        """Row i with row i -> (B,), larger = fits better: the matching head's logit difference, which ranks as its
        probability does without saturating; without fusion the scaled cosine."""
        if not self.fusion.is_joint:
            return self.logit_scale.exp() * (self.embed_visual(visual) * self.embed_text(text)).sum(dim=-1)
        logits = self.match_logits(self.fuse(visual, text, pooled_only=True)).float()
        return logits[:, 1] - logits[:, 0]

    def match(self, image: Tensor, tokens: Tensor) -> Tensor:
        """(B, 3, H, W) with (B, M) -> (B,), see `match_score`."""
        return self.match_score(self.visual_features(image), self.text_features(tokens))

    def pairing(self, image: Tensor, tokens: Tensor) -> list[dict[str, Tensor]]:
        """The pairing matrices of every fusion layer, see `FusionOutput`. Raises ValueError where the fusion pairs
        nothing."""
        fused = self.fuse(self.visual_features(image), self.text_features(tokens), need_weights=True)
        if fused.pairing is None:
            raise ValueError(f"{type(self.fusion).__name__} has no cross-attention, so there is no pairing to show")
        return fused.pairing

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> dict[str, Tensor]:
        """As open_clip with output_dict: unit `image_features` and `text_features` (B, E) of what was given, and
        `logit_scale`."""
        out = {"logit_scale": self.logit_scale.exp()}
        if image is not None:
            out["image_features"] = self.encode_image(image, normalize=True)
        if text is not None:
            out["text_features"] = self.encode_text(text, normalize=True)
        return out
