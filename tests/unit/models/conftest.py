from collections.abc import Callable

import pytest
import torch

from crossvit.models.conv_stem import ConvStem
from crossvit.models.crossvit import CrossViT
from crossvit.models.fusion import CoAttentionFusion, LateFusion, MergedFusion, NoFusion, TextSideFusion
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.text_encoder import TextEncoder
from crossvit.models.visual_transformer import VisualTransformer

FUSIONS = {
    "co_attention": CoAttentionFusion,
    "late": LateFusion,
    "merged": MergedFusion,
    "text_side": TextSideFusion,
    "none": NoFusion,
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=list(FUSIONS))
def fusion_kind(request) -> str:
    return request.param


@pytest.fixture
def make_fusion() -> Callable:
    """(kind, **arguments) -> a fusion of width 16 over texts of width 12."""

    def make(kind: str, width: int = 16, text_width: int = 12, **arguments):
        sizes = {} if kind == "none" else {"depth": 2, "heads": 2}
        return FUSIONS[kind](width, text_width, **sizes, **arguments).eval()

    return make


@pytest.fixture
def make_model(make_fusion) -> Callable:
    """(fusion kind) -> a CrossViT for 32 px pictures, narrow and shallow."""

    def make(kind: str = "co_attention", **arguments) -> CrossViT:
        return CrossViT(
            PatchEncoder(ConvStem((8, 16, 16), groups=4), 16, (4, 4)),
            VisualTransformer(16, 2, 2, (4, 4)),
            TextEncoder(50, 20, 12, 2, 2, eot_id=3),
            make_fusion(kind),
            embed_dim=8,
            **arguments,
        ).eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """(3, 9) captions `cls words eos pad...` of 9, 6 and 4 real tokens."""
    rows = torch.randint(4, 50, (3, 9))
    rows[:, 0] = 2
    for row, length in enumerate((9, 6, 4)):
        rows[row, length - 1] = 3
        rows[row, length:] = 0
    return rows


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32)
