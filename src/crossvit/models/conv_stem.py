"""A small convolutional backbone for small pictures on a CPU."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvStem(nn.Module):
    """One stride-2 3x3 convolution a width, each with GroupNorm and GELU: 56 px -> 7x7, 32 px -> 4x4 with three widths.

    GroupNorm has no running statistics, so several forwards a step and any batch size give the same function.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128), groups: int = 8) -> None:
        super().__init__()
        blocks, channels = [], 3
        for width in widths:
            conv = nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1, bias=False)
            blocks.append(nn.Sequential(conv, nn.GroupNorm(groups, width), nn.GELU()))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.num_channels = channels
        self.stride = 2 ** len(widths)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, ceil(H / stride), ceil(W / stride))."""
        return self.blocks(image)

    def stages(self) -> list[list[nn.Module]]:
        """The blocks in order, for freezing from the front."""
        return [[block] for block in self.blocks]
