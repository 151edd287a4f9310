from random import Random

import pytest

from crossvit.data.scenes import generate
from crossvit.data.scenes.graph import Obj, Scene
from crossvit.data.scenes.presets import PRESETS
from crossvit.data.scenes.sample import ScenePool

DIAMETERS = {"small": 0.21, "large": 0.30}  # three objects in a row


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory):
    """A root under which the three presets lie in their smallest size, 32 px."""
    root = tmp_path_factory.mktemp("scenes")
    for preset in PRESETS:
        generate(root, preset, image_size=32, sizes="smoke")
    return root


@pytest.fixture
def make_scene():
    """Scenes from words: ("large plain red circle", row, col), ..."""

    def make(*objects: tuple[str, int, int]) -> Scene:
        made = []
        for words, row, col in objects:
            size, texture, colour, shape = words.split()
            place = ((col + 0.5) / 3, (row + 0.5) / 3)
            made.append(Obj(shape, colour, size, texture, row, col, *place, DIAMETERS[size]))
        return Scene(tuple(made), 30)

    return make


@pytest.fixture
def make_pool():
    """A fresh evaluation pool of a preset for one generator seed."""

    def make(preset: str, seed: int, compositional: bool = False) -> ScenePool:
        return ScenePool(PRESETS[preset], Random(f"test {seed}"), set(), training=False, compositional=compositional)

    return make
