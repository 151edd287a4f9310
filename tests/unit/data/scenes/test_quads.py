from collections import Counter
from itertools import product

import pytest

from crossvit.data.scenes import oracle
from crossvit.data.scenes.grammar import realise
from crossvit.data.scenes.graph import ATTRIBUTES
from crossvit.data.scenes.image_pairs import make_pair_sets
from crossvit.data.scenes.logic import holds, mentions_held_out
from crossvit.data.scenes.presets import PRESETS
from crossvit.data.scenes.quads import make_quad, make_quads, quad_kinds

SEEDS = range(5)


@pytest.mark.parametrize("compositional", [False, True])
@pytest.mark.parametrize(("preset", "seed"), list(product(PRESETS, SEEDS)))
def test_text_alone_and_picture_alone_settle_nothing_for_any_seed(preset, seed, compositional, make_pool):
    quads = make_quads(make_pool(preset, seed, compositional), 2 * len(quad_kinds(PRESETS[preset])))
    of_text, of_picture = Counter(), Counter()
    for quad in quads:
        assert quad.scenes[0].key != quad.scenes[1].key
        for i, j in product(range(2), range(2)):
            text = realise(quad.captions[i], quad.template)
            truth = oracle(text, quad.scenes[j])
            assert truth is (i == j), text
            of_text[text] += 1 if truth else -1
            of_picture[quad.scenes[j]] += 1 if truth else -1
    assert set(of_text.values()) == {0}
    assert set(of_picture.values()) == {0}


@pytest.mark.parametrize(("preset", "seed"), list(product(PRESETS, SEEDS)))
def test_two_image_statements_are_balanced_for_any_seed(preset, seed, make_pool):
    sets = make_pair_sets(make_pool(preset, seed), 12)
    assert len({made.kind for made in sets}) > 2
    for made in sets:
        for i, j in product(range(2), range(2)):
            assert oracle(realise(made.statements[i], made.template), *made.pairs[j]) is (i == j)


@pytest.mark.parametrize("preset", PRESETS)
def test_held_out_pairs_are_shown_and_named_in_the_compositional_split_only(preset, make_pool):
    for compositional in (False, True):
        for quad in make_quads(make_pool(preset, 0, compositional), 20):
            assert all(scene.has_held_out_pair is compositional for scene in quad.scenes)
            assert all(mentions_held_out(caption) is compositional for caption in quad.captions)


@pytest.mark.parametrize("kind", ["swap_att", "swap_obj"])
@pytest.mark.parametrize("preset", PRESETS)
def test_swaps_cannot_be_told_by_bags_of_words_and_attributes(preset, kind, make_pool):
    pool = make_pool(preset, 0)
    for quad in [make_quad(pool, kind) for _ in range(40)]:
        words = [Counter(realise(caption, quad.template).split()) for caption in quad.captions]
        assert words[0] == words[1]
        if preset != "hard":  # there a swap may also be of numbers ("more circles than squares")
            seen = [Counter(getattr(o, name) for o in scene.objects for name in ATTRIBUTES) for scene in quad.scenes]
            assert seen[0] == seen[1]


@pytest.mark.parametrize("order", [("row", "col"), ("col", "row")])
def test_reading_order_is_no_short_cut_for_swapped_objects(order, make_pool):
    """A model that only sees which object comes first must not solve `medium`: that is what `diagonal` is for."""
    pool = make_pool("medium", 0)
    right = total = 0
    for quad in [make_quad(pool, "swap_obj") for _ in range(300)]:
        for scene in quad.scenes:
            ranked = sorted(scene.objects, key=lambda obj: tuple(getattr(obj, name) for name in order))

            def guess(caption, ranked=ranked):
                first = min(i for i, obj in enumerate(ranked) if caption.subject.matches(obj))
                second = min(i for i, obj in enumerate(ranked) if caption.object.matches(obj))
                return (first < second) == (caption.relation in ("left", "above"))

            for caption in quad.captions:
                right += guess(caption) == holds(scene, caption)
                total += 1
    assert 0.68 < right / total < 0.82  # one axis is always given away, the other never


def test_evaluation_pool_never_draws_a_scene_twice(make_pool):
    scenes = [scene.key for quad in make_quads(make_pool("easy", 0), 100) for scene in quad.scenes]
    assert len(set(scenes)) == len(scenes)
