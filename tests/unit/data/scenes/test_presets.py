from collections import Counter

import pytest

from crossvit.data.scenes.presets import DEFAULT_SIZES, PRESETS, SMOKE_SIZES, find_preset, resolve_sizes
from crossvit.data.scenes.quads import make_quads
from crossvit.errors import UserError


def test_sizes_are_the_defaults_with_some_replaced():
    easy, medium = PRESETS["easy"], PRESETS["medium"]
    assert resolve_sizes(None, easy) == DEFAULT_SIZES
    assert resolve_sizes("smoke", medium) == SMOKE_SIZES
    assert resolve_sizes({"vsr_train": 8}, easy) == {**DEFAULT_SIZES, "vsr_train": 8}
    assert resolve_sizes({"coco_val": 8}, medium) == {**DEFAULT_SIZES, **medium.counts, "coco_val": 8}
    assert set(medium.counts) <= set(DEFAULT_SIZES)
    assert set(SMOKE_SIZES) == set(DEFAULT_SIZES)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vsr_trian": 8}, "did you mean 'vsr_train'"),
        ({"vsr_train": 6}, "multiple of 4"),
        ({"coco_val": 0}, "at least 1"),
        ({"coco_val": 1.5}, "whole number"),
        ("smol", "'smoke'"),
    ],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(UserError, match=message):
        resolve_sizes(sizes, PRESETS["easy"])


def test_wrong_preset_is_named_with_a_suggestion():
    with pytest.raises(UserError, match="did you mean 'medium'"):
        find_preset("meduim")


def test_medium_is_easy_with_more_objects(make_pool):
    """What a model has learned on easy must hold on medium, or it starts from nothing and stays there."""
    easy, medium = PRESETS["easy"], PRESETS["medium"]
    for name in ("forms", "kinds", "sizes", "textures", "partial", "grid", "diameters", "subject_first"):
        assert getattr(easy, name) == getattr(medium, name)
    quads = make_quads(make_pool("medium", 0), 300)
    numbers = Counter(len(scene.objects) for quad in quads for scene in quad.scenes)
    assert set(numbers) == {2, 3, 4}
    assert min(numbers[3], numbers[4]) > 2 * numbers[2] > 2 * 0.05 * numbers.total()
