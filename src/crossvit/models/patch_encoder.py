"""The patch encoder: a CNN whose feature map is cut into the patches that the Visual Transformer reads."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossvit.errors import UserError
from crossvit.models.memory import RowMemory, row_keys


class PatchFeatures(NamedTuple):
    """What a patch encoder makes of a batch of images."""

    feature_map: Tensor  # (B, C, h, w), what a classifier pools
    patches: Tensor  # (B, P, d), row by row from the top left


class PatchEncoder(nn.Module):
    """Image (B, 3, H, W) -> feature map (B, C, h, w) -> P patches of width d.

    backbone: a module with `num_channels`, `stride` and forward(image) -> (B, C, h, w); None in mode `pixel`, which
        needs none.
    mode: three readings of "7x7 patches".
        grid: the cells of the feature map are the patches. ResNet-18 turns 224 px into 7x7 cells of 512 channels.
        window: non-overlapping windows of `patch_size` x `patch_size` cells, each pooled to a patch (layer 1: 56x56 ->
            8x8 patches).
        pixel: `patch_size` x `patch_size` pixels are a patch, as in ViT (224 px -> 32x32 patches). No CNN.
    grid_size: rows and columns of patches in mode `grid`. A map of another size is pooled to it (`interpolate=True`) or
        kept, and the Visual Transformer then interpolates its positions. Pooled cells average to the pooled map where
        the map is the grid or a whole multiple or fraction of it.
    freeze_at: the first so many stages of the backbone keep their weights and their running statistics (5: all of it).
    freeze_norm: every BatchNorm of the backbone keeps its weights and running statistics.
    dropout: share of the map's channels that training leaves out of the patches (Tompson et al. 2015), a strong
        regulariser of what is trained on a frozen backbone.
    remember: with all of the backbone frozen, keep the maps of so many pictures (by their pixels) instead of computing
        them in every epoch and stage; of use where pictures are not cropped at random.

    Raises ValueError for an unknown mode or a missing backbone, UserError for `remember` without freeze_at=5.
    """

    def __init__(
        self,
        backbone: nn.Module | None,
        width: int,
        grid_size: Sequence[int] = (7, 7),
        mode: Literal["grid", "window", "pixel"] = "grid",
        patch_size: int = 7,
        interpolate: bool = True,
        freeze_at: int = 0,
        freeze_norm: bool = False,
        dropout: float = 0.0,
        remember: int = 0,
    ) -> None:
        super().__init__()
        if remember and freeze_at != 5:
            raise UserError(f"patch_encoder.remember={remember} needs a frozen backbone: set patch_encoder.freeze_at=5")
        if mode not in ("grid", "window", "pixel"):
            raise ValueError(f"mode {mode!r}: choose grid, window or pixel")
        if (backbone is None) != (mode == "pixel"):
            raise ValueError(f"mode {mode!r} {'takes no' if mode == 'pixel' else 'needs a'} backbone")
        self.backbone = PixelPatches(patch_size) if backbone is None else backbone
        self.width = width
        self.mode = mode
        self.grid_size = tuple(grid_size)
        self.patch_size = patch_size
        self.interpolate = interpolate
        self.num_channels = self.backbone.num_channels
        self.drop = nn.Dropout2d(dropout)
        self.proj = nn.Conv2d(self.num_channels, width, kernel_size=1)
        nn.init.xavier_uniform_(self.proj.weight.flatten(1))
        nn.init.zeros_(self.proj.bias)
        self._freeze = (freeze_at, freeze_norm)
        for module in _frozen_modules(self.backbone, freeze_at, freeze_norm):
            module.requires_grad_(False)
        self._memory = RowMemory(remember, self.backbone) if remember else None
        self.train()

    def forward(self, image: Tensor, passing: bool = False) -> PatchFeatures:
        """(B, 3, H, W) -> feature map (B, C, h, w) and patches (B, P, d). passing: pictures that do not come again are
        neither looked up nor remembered."""
        feature_map = self.feature_map(image, passing)
        return PatchFeatures(feature_map, self.proj(self.drop(self.cells(feature_map))).flatten(2).transpose(1, 2))

    def feature_map(self, image: Tensor, passing: bool = False) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), before anything is cut."""
        if self._memory is None or passing or image.requires_grad:
            return self.backbone(image)
        maps = self._memory.answer(row_keys(image), lambda places: self.backbone(image[places]))
        return torch.stack([kept.to(image.device) for kept in maps])

    def cells(self, feature_map: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, rows, columns): the patches before their projection to width d."""
        if self.mode == "window":
            return F.avg_pool2d(feature_map, self.patch_size, ceil_mode=True, count_include_pad=False)
        if self.mode == "grid" and self.interpolate and feature_map.shape[-2:] != self.grid_size:
            return F.adaptive_avg_pool2d(feature_map, self.grid_size)
        return feature_map

    def grid(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Rows and columns of patches for an image of this many pixels (a number, or height and width)."""
        if self.mode == "grid" and self.interpolate:
            return self.grid_size
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        step = self.backbone.stride
        rows, columns = -(-height // step), -(-width // step)
        if self.mode == "window":
            return -(-rows // self.patch_size), -(-columns // self.patch_size)
        return rows, columns

    def num_patches(self, image_size: int | Sequence[int]) -> int:
        """P for an image of this many pixels."""
        rows, columns = self.grid(image_size)
        return rows * columns

    def train(self, mode: bool = True) -> "PatchEncoder":
        super().train(mode)
        for module in _frozen_modules(
            self.backbone, *self._freeze
        ):  # sync_batchnorm may have put others in their places
            module.eval()
        return self


class PixelPatches(nn.Module):
    """Non-overlapping squares of pixels as cells: (B, 3, H, W) -> (B, 3 p^2, ceil(H/p), ceil(W/p)), zeros beyond the
    edge."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.stride = patch_size
        self.num_channels = 3 * patch_size**2

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        return F.pixel_unshuffle(F.pad(image, (0, -width % self.stride, 0, -height % self.stride)), self.stride)


def _frozen_modules(backbone: nn.Module, freeze_at: int, freeze_norm: bool) -> list[nn.Module]:
    """The modules whose weights and statistics stay as they are."""
    if not 0 <= freeze_at <= 5:
        raise ValueError(f"freeze_at {freeze_at} is not in 0..5")
    frozen = []
    if freeze_at == 5:
        frozen = [backbone]
    elif freeze_at:
        frozen = [module for stage in backbone.stages()[:freeze_at] for module in stage]
    if freeze_norm:
        frozen += [module for module in backbone.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return frozen
