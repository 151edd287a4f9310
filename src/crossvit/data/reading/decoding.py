"""From a picture file to a uint8 tensor."""

import io
import warnings
from collections.abc import Callable
from functools import cache, partial
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MAX_PIXELS = 89_478_485
"""Pictures with more pixels than this are refused (the limit at which Pillow warns of decompression bombs)."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What is read. Pillow knows more, PostScript among them, for which it starts another program on what a stranger wrote."""

_JPEG = b"\xff\xd8\xff"
_LARGE_FILE = 131_072  # bytes; a JPEG above it may be decoded at a part of its size
_FRAMES = {0xC0 + kind for kind in range(16)} - {
    0xC4,
    0xC8,
    0xCC,
}  # the JPEG markers that a picture's size stands behind


class BadSample(Exception):
    """A picture that cannot be used. `path` is the file and `reason` a few words."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def decode_image(path: str | PathLike[str], min_side: int | None = None) -> Tensor:
    """Decode a picture to RGB.

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB (an alpha channel is dropped, 16 bits keep their upper 8),
    and the EXIF orientation is applied. JPEG goes through torchvision (1.2 to 2 times as fast as Pillow, the same
    bytes), everything else through Pillow.

    Args:
        path: picture file; the format is taken from its content, not from its name.
        min_side: a large JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps this many
            pixels. None decodes at full size.

    Returns:
        uint8 tensor (3, H, W); the memory is H x W x 3.

    Raises:
        BadSample: the file is missing, empty, truncated, not a picture or larger than `MAX_PIXELS`.
    """
    return decode_bytes(read_picture(str(path)), str(path), min_side)


def decode_bytes(data: bytes, path: str, min_side: int | None = None) -> Tensor:
    """`decode_image` of a file's content; `path` names it in errors."""
    size = _jpeg_size(data) if data.startswith(_JPEG) else None
    if size is not None:
        _check_size(path, *size)
        decode_jpeg = _jpeg_decoder()
        reducible = min_side is not None and len(data) > _LARGE_FILE and min(size) >= 2 * min_side
        if decode_jpeg is not None and not reducible:
            try:
                return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            except RuntimeError:
                pass  # Pillow reads a few more variants and says in short what is wrong
    return _decode_pillow(path, data, min_side)


def rgb_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image of any mode to a uint8 tensor (3, H, W), EXIF orientation applied.

    Raises:
        ValueError: floating-point pictures, which have no defined white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point picture")
    if image.mode.startswith("I"):
        high = (np.clip(np.asarray(image), 0, 65_535).astype(np.uint16) >> 8).astype(np.uint8)
        array = np.repeat(high[:, :, None], 3, axis=2)
    else:
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        array = np.array(image.convert("RGB"))
    return torch.from_numpy(array).permute(2, 0, 1)


def encode_png(image: Tensor) -> bytes:
    """A uint8 tensor (3, H, W) as the content of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


@cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchvision's decoder; None where it has none any more (0.29 announces that it will go)."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg  # slow to import, and only pictures need it
    except ImportError:
        return None
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    return partial(decode_jpeg, mode=ImageReadMode.RGB, apply_exif_orientation=True)


def read_picture(path: str) -> bytes:
    """The content of a file. Raises BadSample where it is missing, empty or cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            data = file.read()
    except FileNotFoundError:
        raise BadSample(path, "missing file") from None
    except OSError as error:
        raise BadSample(path, f"cannot be read ({error.strerror})") from None
    if not data:
        raise BadSample(path, "zero bytes")
    return data


def _open(path: str, data: bytes) -> Image.Image:
    """Read the header and refuse what is too large."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise BadSample(path, f"more than {MAX_PIXELS} pixels") from None
    except Exception:  # damaged headers raise nearly any type
        raise BadSample(path, "not a picture, or a damaged header") from None
    _check_size(path, *image.size)
    return image


def _check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadSample(path, f"{width} x {height}: more than {MAX_PIXELS} pixels")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG claims, before anything is allocated for its pixels; None where it claims nothing."""
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            return int.from_bytes(data[place + 7 : place + 9]), int.from_bytes(data[place + 5 : place + 7])
        # a fill byte is one byte, any other segment says how long it is
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


def _decode_pillow(path: str, data: bytes, min_side: int | None) -> Tensor:
    image = _open(path, data)
    try:
        if min_side is not None:
            image.draft("RGB", (min_side, min_side))  # JPEG only; keeps both sides at least this long
        return rgb_tensor(image)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly any type on damaged data
        raise BadSample(path, f"cannot be decoded ({error})") from None
