"""Random scenes, and which of them a split may use."""

from dataclasses import replace
from random import Random

from crossvit.data.scenes.graph import CLASSES, COLOURS, HELD_OUT_PAIRS, SHAPES, Obj, Scene
from crossvit.data.scenes.logic import Caption, mentions_held_out
from crossvit.data.scenes.presets import Preset

_JITTER = 0.02  # of the image side, for centres
_SCALE = 0.06  # relative, for diameters
_BACKGROUND = (15, 70)

ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
TRAIN_PAIRS = tuple(pair for pair in ALL_PAIRS if pair not in HELD_OUT_PAIRS)


def diameter_of(size: str, preset: Preset, rng: Random) -> float:
    """A diameter for a size word, as a fraction of the image side."""
    return round(preset.diameters[size] * (1 + rng.uniform(-_SCALE, _SCALE)), 4)


def move(obj: Obj, cell: tuple[int, int], preset: Preset, rng: Random) -> Obj:
    """The object in another cell (row, col), with fresh jitter."""
    row, col = cell
    x = round((col + 0.5) / preset.grid + rng.uniform(-_JITTER, _JITTER), 4)
    y = round((row + 0.5) / preset.grid + rng.uniform(-_JITTER, _JITTER), 4)
    return obj._replace(row=row, col=col, x=x, y=y)


def random_scene(rng: Random, preset: Preset, compositional: bool = False) -> Scene:
    """A scene of the preset; in the compositional split at least one object has a held-out colour-shape pair."""
    number = rng.randint(preset.min_objects, preset.max_objects)
    if compositional:
        first = rng.choice(sorted(HELD_OUT_PAIRS))
        pairs = [first, *rng.sample([pair for pair in ALL_PAIRS if pair != first], number - 1)]
    else:
        pairs = rng.sample(TRAIN_PAIRS, number)
    cells = rng.sample([(row, col) for row in range(preset.grid) for col in range(preset.grid)], number)
    objects = []
    for (colour, shape), cell in zip(pairs, cells, strict=True):
        size, texture = rng.choice(preset.sizes), rng.choice(preset.textures)
        objects.append(
            move(Obj(shape, colour, size, texture, 0, 0, 0.0, 0.0, diameter_of(size, preset, rng)), cell, preset, rng)
        )
    return Scene(tuple(objects), rng.randint(*_BACKGROUND))


def class_scene(rng: Random, preset: Preset, label: int) -> Scene:
    """One object of class `label` (index into CLASSES) anywhere in the picture, for the ImageNet layout."""
    colour, shape = CLASSES[label]
    diameter = round(rng.uniform(preset.diameters["large"], 0.55), 4)
    x, y = (round(rng.uniform(diameter / 2, 1 - diameter / 2), 4) for _ in range(2))
    obj = Obj(
        shape, colour, "large", rng.choice(preset.textures), int(y * preset.grid), int(x * preset.grid), x, y, diameter
    )
    return Scene((obj,), rng.randint(*_BACKGROUND))


class ScenePool:
    """Scenes one split may use.

    Evaluation pools are drawn first and put their keys into `reserved`, which every later pool avoids: no scene is in
    two splits, none of the evaluated ones in training. Only the compositional pool shows, and only it mentions,
    held-out pairs. Training pools mention any two objects, evaluation pools those of the preset's `diagonal`.
    """

    def __init__(self, preset: Preset, rng: Random, reserved: set, *, training: bool, compositional: bool = False):
        self.preset = replace(preset, diagonal=preset.diagonal and not training)
        self.rng = rng
        self.reserved = reserved
        self.training = training
        self.compositional = compositional

    def accepts(self, scene: Scene) -> bool:
        """Whether the split may use this scene."""
        return scene.has_held_out_pair == self.compositional and scene.key not in self.reserved

    def mentions_well(self, caption: Caption) -> bool:
        """Whether the split may use this caption: it names a held-out pair exactly in the compositional split."""
        return mentions_held_out(caption) == self.compositional

    def draw(self) -> Scene:
        """A random scene the split may use."""
        while True:
            scene = random_scene(self.rng, self.preset, self.compositional)
            if self.accepts(scene):
                return scene

    def keep(self, *scenes: Scene) -> None:
        """Mark scenes as used."""
        if not self.training:
            self.reserved.update(scene.key for scene in scenes)
