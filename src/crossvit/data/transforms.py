"""Cropping, resizing and flipping uint8 pictures, and turning them into normalised floats on the device."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from numpy.random import Generator
from PIL import Image
from torch import Tensor

from crossvit.data.reading.decoding import rgb_tensor

Fit = Literal["crop", "squash"]
"""`crop`: shorter side to the target, then the centre. `squash`: the whole picture, aspect ratio not kept."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Box = tuple[int, int, int, int]  # top, left, height, width in pixels


class EvalTransform:
    """The whole picture, or its centre square, at the model's size.

    Args:
        size: side of the result in pixels.
        fit: `crop` takes the largest centre square, `squash` the whole picture.
    """

    def __init__(self, size: int, fit: Fit = "crop") -> None:
        if fit not in ("crop", "squash"):
            raise ValueError(f"fit must be 'crop' or 'squash', got {fit!r}")
        self.size = size
        self.fit = fit
        self.min_side = 2 * size

    def __call__(self, image: Tensor) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size)."""
        return crop_and_resize(image, _whole(image.shape[1], image.shape[2], self.fit), self.size)


class TrainTransform:
    """A random crop, resized, and flipped half of the time (Szegedy et al. 2015, "Inception" crops).

    Args:
        size: side of the result in pixels.
        scale: smallest and largest share of the picture's area to keep; (1, 1) keeps the picture as `EvalTransform`
            does.
        ratio: smallest and largest width / height of the crop before resizing.
        flip: whether a picture is mirrored left to right with probability 1/2.
        fit: see `EvalTransform`; used where `scale` is (1, 1).
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: bool = True,
        fit: Fit = "crop",
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two rising numbers in (0, 1], got {scale}")
        self.size = size
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.flip = flip
        self.evaluation = EvalTransform(size, fit)
        self.min_side = math.ceil(2 * size / math.sqrt(scale[0]))

    def __call__(self, image: Tensor, rng: Generator, allow_flip: bool = True) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size).

        Args:
            image: decoded picture.
            rng: the only source of chance; the same number of draws is taken whatever `allow_flip` says.
            allow_flip: False where the sample's text speaks of left or right.
        """
        height, width = image.shape[1:]
        if self.scale == (1.0, 1.0):
            box = _whole(height, width, self.evaluation.fit)
        else:
            box = self._random_box(height, width, rng)
        mirror = self.flip and rng.random() < 0.5
        result = crop_and_resize(image, box, self.size)
        return result.flip(-1) if mirror and allow_flip else result

    def _random_box(self, height: int, width: int, rng: Generator) -> Box:
        for _ in range(10):
            area = height * width * rng.uniform(*self.scale)
            aspect = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        return _whole(height, width, "crop")


class Normalize:
    """uint8 pictures (..., 3, H, W) -> float32, zero mean and unit variance by channel, on the pictures' device.

    Args:
        mean: channel means in [0, 1].
        std: channel standard deviations in [0, 1].
    """

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD) -> None:
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean and std must hold three numbers, std above 0; got {mean} and {std}")
        self.mean = tuple(mean)
        self.std = tuple(std)
        std_tensor = torch.tensor(self.std).view(3, 1, 1)
        self._scale = {torch.device("cpu"): 1 / (255 * std_tensor)}
        self._shift = {torch.device("cpu"): -torch.tensor(self.mean).view(3, 1, 1) / std_tensor}

    def __call__(self, image: Tensor) -> Tensor:
        """Raises ValueError for a tensor that is not uint8: it has been normalised already."""
        if image.dtype != torch.uint8:
            raise ValueError(f"Normalize expects uint8 pictures, got {image.dtype}")
        device = image.device
        if device not in self._scale:
            self._scale[device] = self._scale[torch.device("cpu")].to(device)
            self._shift[device] = self._shift[torch.device("cpu")].to(device)
        planes = image.to(
            torch.float32, memory_format=torch.contiguous_format
        )  # H x W x 3 becomes 3 x H x W on the way
        return planes.mul_(self._scale[device]).add_(self._shift[device])


class Preprocess:
    """A Pillow image -> float32 (3, size, size), as the models were trained to see it (open_clip's convention).

    Args:
        size: side in pixels.
        fit: see `EvalTransform`.
        mean: channel means in [0, 1].
        std: channel standard deviations in [0, 1].
    """

    def __init__(
        self,
        size: int,
        fit: Fit = "crop",
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        self.transform = EvalTransform(size, fit)
        self.normalize = Normalize(mean, std)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalize(self.transform(rgb_tensor(image)))


def crop_and_resize(image: Tensor, box: Box, size: int) -> Tensor:
    """Cut `box` (top, left, height, width) out of uint8 (3, H, W) and resize it to (3, size, size), bicubic,
    antialiased. The result's memory is H x W x 3.
    """
    top, left, height, width = box
    region = image[:, top : top + height, left : left + width]
    if (height, width) == (size, size):
        return region
    region = region[None].contiguous(memory_format=torch.channels_last)  # faster than from planes, the same bytes
    return F.interpolate(region, size=(size, size), mode="bicubic", antialias=True)[0]


def _whole(height: int, width: int, fit: Fit) -> Box:
    if fit == "squash":
        return 0, 0, height, width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
