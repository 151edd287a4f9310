from itertools import combinations
from random import Random

import numpy as np
import pytest

from crossvit.data.scenes import Scene, render
from crossvit.data.scenes.graph import COLOURS, SHAPES
from crossvit.data.scenes.presets import PRESETS
from crossvit.data.scenes.render import RGB
from crossvit.data.scenes.sample import random_scene


@pytest.mark.parametrize("image_size", [32, 56, 64])
def test_pictures_have_the_size_asked_for_and_repeat(image_size):
    rng = Random(0)
    scenes = [random_scene(rng, PRESETS["hard"]) for _ in range(16)]
    pictures = render(scenes, image_size)
    assert pictures.shape == (16, image_size, image_size, 3)
    assert pictures.dtype == np.uint8
    assert np.array_equal(pictures, render(scenes, image_size))


def test_a_picture_does_not_depend_on_its_batch():
    rng = Random(1)
    scenes = [random_scene(rng, PRESETS["hard"]) for _ in range(8)]
    together = render(scenes, 32)
    assert all(np.array_equal(together[i], render([scene], 32)[0]) for i, scene in enumerate(scenes))


def test_objects_lie_where_the_symbols_say_in_their_colour(make_scene):
    scene = make_scene(("large plain red circle", 0, 2), ("large plain blue square", 2, 1))
    picture = render([scene], 33)[0]
    assert tuple(picture[5, 27]) == RGB["red"]
    assert tuple(picture[27, 16]) == RGB["blue"]
    assert tuple(picture[5, 5]) == (30, 30, 30)


@pytest.mark.parametrize("size", ["small", "large"])
def test_shapes_are_distinct_at_32_pixels(size, make_scene):
    ink = {shape: render([make_scene((f"{size} plain white {shape}", 1, 1))], 32)[0, ..., 0] - 30.0 for shape in SHAPES}
    for a, b in combinations(SHAPES, 2):
        assert np.abs(ink[a] - ink[b]).sum() >= 0.2 * np.maximum(ink[a], ink[b]).sum(), (a, b)


def test_colours_are_distinct():
    for a, b in combinations(COLOURS, 2):
        assert max(abs(x - y) for x, y in zip(RGB[a], RGB[b], strict=True)) >= 80, (a, b)


def test_stripes_and_size_change_the_picture(make_scene):
    plain, striped, small = render(
        [
            make_scene((words, 1, 1))
            for words in ("large plain red square", "large striped red square", "small plain red square")
        ],
        32,
    ).astype(int)
    assert np.abs(plain - striped)[12:20, 12:20].max() > 80
    assert (plain - 30).sum() > 1.8 * (small - 30).sum()


def test_striped_small_shapes_keep_most_of_their_brightness(make_scene):
    plain, striped = (
        render([make_scene((f"small {texture} white ring", 1, 1))], 32)[0].astype(int) - 30
        for texture in ("plain", "striped")
    )
    assert striped.sum() > 0.5 * plain.sum()


def test_one_object_scene_may_be_larger_than_a_cell(make_scene):
    scene = make_scene(("large plain red circle", 1, 1))
    big = Scene((scene.objects[0]._replace(diameter=0.55),), scene.background)
    assert (render([big], 32)[0, ..., 0] > 150).sum() > 2 * (render([scene], 32)[0, ..., 0] > 150).sum()
