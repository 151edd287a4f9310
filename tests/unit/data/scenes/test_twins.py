from collections import Counter
from random import Random

import pytest

from crossvit.data.scenes import oracle
from crossvit.data.scenes.describe import describe
from crossvit.data.scenes.grammar import realise
from crossvit.data.scenes.logic import And, Count, phrases
from crossvit.data.scenes.presets import PRESETS
from crossvit.data.scenes.sample import random_scene
from crossvit.data.scenes.twins import ENTAILING_KINDS, FORMS_OF_KIND, KINDS, kinds_for, twin


def draw_twins(preset_name, kind, number=60):
    """(scene, caption, twin) of one kind."""
    preset, rng = PRESETS[preset_name], Random(f"{preset_name} {kind}")
    found = []
    while len(found) < number:
        scene = random_scene(rng, preset)
        caption = describe(scene, preset, rng, FORMS_OF_KIND[kind])
        if caption is None:
            continue
        false = twin(caption, kind, scene, preset, rng, lambda _: True)
        if false is not None:
            found.append((scene, caption, false))
    return found


@pytest.mark.parametrize(("preset", "kind"), [(name, kind) for name in PRESETS for kind in PRESETS[name].kinds])
def test_caption_is_true_and_its_twin_false_in_words(preset, kind):
    for template, (scene, caption, false) in enumerate(draw_twins(preset, kind)):
        assert oracle(realise(caption, template), scene)
        assert not oracle(realise(false, template), scene)


def test_the_hardest_preset_makes_every_kind():
    assert set(PRESETS["hard"].kinds) == set(KINDS)


@pytest.mark.parametrize("kind", ["swap_att", "swap_obj"])
@pytest.mark.parametrize("preset", PRESETS)
def test_swaps_keep_the_words_and_change_their_order(preset, kind):
    for template, (_, caption, false) in enumerate(draw_twins(preset, kind)):
        text, twin_text = realise(caption, template), realise(false, template)
        assert Counter(text.split()) == Counter(twin_text.split())
        assert text != twin_text


@pytest.mark.parametrize(("kind", "field"), [("replace_obj", "shape"), ("replace_att", None)])
def test_replacements_change_one_attribute_of_one_phrase(kind, field):
    for _, caption, false in draw_twins("hard", kind):
        changed = [
            name
            for old, new in zip(phrases(caption), phrases(false), strict=True)
            for name in old._fields
            if getattr(old, name) != getattr(new, name)
        ]
        assert len(changed) == 1
        assert changed[0] == field if field else changed[0] != "shape"


def test_counts_change_by_one():
    for _, caption, false in draw_twins("hard", "replace_count"):
        assert isinstance(false, Count)
        assert abs(caption.number - false.number) == 1


@pytest.mark.parametrize("kind", ENTAILING_KINDS)
def test_added_words_entail_the_caption(kind):
    for _, caption, false in draw_twins("hard", kind):
        if kind == "add_obj":
            assert isinstance(false, And) and false.second == caption
        else:
            assert all(
                old_value in (None, new_value)
                for old, new in zip(phrases(caption), phrases(false), strict=True)
                for old_value, new_value in zip(old, new, strict=True)
            )


def test_kinds_for_agrees_with_the_forms_listed():
    for kind in PRESETS["hard"].kinds:
        for _, caption, _ in draw_twins("hard", kind, 10):
            assert kind in kinds_for(caption, PRESETS["hard"])
