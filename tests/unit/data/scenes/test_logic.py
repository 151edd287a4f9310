import pytest

from crossvit.data.scenes import oracle
from crossvit.data.scenes.logic import InImages, Phrase, Related, holds, holds_pair


@pytest.fixture
def scene(make_scene):
    """Red circle top left, blue square bottom middle, small striped red ring on the right of the bottom row."""
    return make_scene(
        ("large plain red circle", 0, 0), ("large plain blue square", 2, 1), ("small striped red ring", 2, 2)
    )


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("a red circle left of a blue square", True),
        ("a blue square left of a red circle", False),
        ("a blue square right of a red circle", True),
        ("a red circle above a blue square", True),
        ("a blue square above a red ring", False),
        ("a blue square below a red ring", False),  # the same row
        ("there is a blue square with a red circle to its left", True),
        ("a blue square has a red ring to its left", False),
        ("below a red circle there is a red shape", True),
        ("a red circle left of a red circle", False),  # nothing is left of itself
        ("a red ring is smaller than a blue square", True),
        ("a red circle larger than a blue square", False),
        ("no red ring is left of a blue square", True),
        ("there is no red circle left of a blue square", False),
        ("there is a small striped ring", True),
        ("the image contains a large red ring", False),
        ("no green shape is present", True),
        ("there are exactly two red shapes", True),
        ("there is exactly one red shape", False),
        ("exactly three shapes are present", True),
        ("there are more red shapes than blue squares", True),
        ("there are fewer red shapes than blue squares", False),
        ("the image contains as many rings as blue shapes", True),
        ("there is a red ring and a red circle left of a blue square", True),
        ("there is a green ring and a red circle left of a blue square", False),
    ],
)
def test_truth_of_one_scene(scene, caption, truth):
    assert oracle(caption, scene) is truth


@pytest.mark.parametrize(
    ("caption", "truth"),
    [
        ("in the left image there is a red circle", True),
        ("in the right image there is a red circle", False),
        ("in both images there is a blue square", True),
        ("in exactly one image there is a red circle", True),
        ("in exactly one image there is a blue square", False),
        ("in neither image there is a green ring", True),
        ("there are more red shapes in the left image than in the right image", True),
        ("there are fewer red shapes in the left image than in the right image", False),
        ("there are as many blue shapes in the left image as in the right image", True),
    ],
)
def test_truth_of_two_scenes(scene, make_scene, caption, truth):
    other = make_scene(("large plain blue square", 0, 0))
    assert oracle(caption, scene, other) is truth


def test_statements_about_another_number_of_images_are_refused(scene):
    caption = Related(Phrase("circle"), "left", Phrase("square"))
    with pytest.raises(ValueError, match="two images"):
        holds_pair(scene, scene, caption)
    with pytest.raises(ValueError, match="one image"):
        holds(scene, InImages("both", caption))
