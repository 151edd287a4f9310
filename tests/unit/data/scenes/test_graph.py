import json

from crossvit.data.scenes.graph import CLASSES, COLOURS, HELD_OUT_PAIRS, SHAPES, Scene


def test_classes_are_24_allowed_pairs_that_cover_every_colour_and_shape():
    assert len(set(CLASSES)) == 24
    assert not HELD_OUT_PAIRS & set(CLASSES)
    assert {colour for colour, _ in CLASSES} == set(COLOURS)
    assert {shape for _, shape in CLASSES} == set(SHAPES)


def test_every_colour_and_shape_is_seen_in_training_and_held_out_in_some_pair():
    assert len(HELD_OUT_PAIRS) == 12
    assert {colour for colour, _ in HELD_OUT_PAIRS} == set(COLOURS)
    assert {shape for _, shape in HELD_OUT_PAIRS} == set(SHAPES)


def test_key_ignores_order_jitter_and_background_and_nothing_else(make_scene):
    a, b = ("large plain red circle", 0, 0), ("small plain blue square", 1, 2)
    scene = make_scene(a, b)
    moved = scene.objects[0]._replace(x=0.2, y=0.15, diameter=0.31)
    assert Scene((scene.objects[1], moved), 60).key == scene.key
    assert make_scene(("large plain red circle", 0, 1), b).key != scene.key
    assert make_scene(("large striped red circle", 0, 0), b).key != scene.key


def test_scene_survives_json(make_scene):
    scene = make_scene(("large plain red circle", 0, 0), ("small striped blue square", 1, 2))
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
