"""What a scene is: a few objects with shape, colour, size, texture and a place on a grid.

Truth is decided by the symbols alone (`logic.holds`). Jitter, exact diameter and background only change the picture, so
`Scene.key` leaves them out: two scenes of one key satisfy the same captions.
"""

from dataclasses import dataclass
from typing import NamedTuple

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "white", "pink")
SIZES = ("small", "large")
TEXTURES = ("plain", "striped")
ATTRIBUTES = ("shape", "colour", "size", "texture")
VALUES = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}

# Colour-shape pairs kept out of every training image: each shape in two colours, each colour in one or two shapes.
HELD_OUT_PAIRS = frozenset((COLOURS[i % 8], shape) for j, shape in enumerate(SHAPES) for i in (j, j + 4))
# The classes of the ImageNet layout: 24 allowed pairs, each colour with three shapes and each shape with four colours.
CLASSES = tuple(
    (colour, shape) for i, colour in enumerate(COLOURS) for j, shape in enumerate(SHAPES) if (i - j) % 2 == 1
)


class Obj(NamedTuple):
    """One object. `row` and `col` count from the top left; `x`, `y` (centre) and `diameter` are fractions of the
    side."""

    shape: str
    colour: str
    size: str
    texture: str
    row: int
    col: int
    x: float
    y: float
    diameter: float

    @property
    def held_out(self) -> bool:
        """Whether its colour-shape pair belongs to the compositional split."""
        return (self.colour, self.shape) in HELD_OUT_PAIRS


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects in different cells, on a grey `background` (0..255)."""

    objects: tuple[Obj, ...]
    background: int

    @property
    def key(self) -> tuple:
        """The symbols in canonical order: equal for two scenes that no caption can tell apart."""
        return tuple(sorted(obj[:6] for obj in self.objects))

    @property
    def has_held_out_pair(self) -> bool:
        """Whether any object shows a colour-shape pair of the compositional split."""
        return any(obj.held_out for obj in self.objects)

    def to_dict(self) -> dict:
        """Plain data for json."""
        return {"background": self.background, "objects": [obj._asdict() for obj in self.objects]}

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """The inverse of `to_dict`."""
        return cls(tuple(Obj(**obj) for obj in data["objects"]), data["background"])
