from random import Random

import pytest

from crossvit.data.scenes.describe import FORMS, NUM_TEMPLATES, describe
from crossvit.data.scenes.grammar import VOCABULARY, parse, realise, templates
from crossvit.data.scenes.image_pairs import make_pair_sets
from crossvit.data.scenes.logic import Across, InImages, Phrase, Related
from crossvit.data.scenes.presets import PRESETS
from crossvit.data.scenes.sample import random_scene
from crossvit.data.scenes.twins import form_of

RED, BLUE = Phrase("circle", "red"), Phrase("square", "blue")


def hard_captions(form, number=40):
    rng, preset = Random(form), PRESETS["hard"]
    found = []
    while len(found) < number:
        caption = describe(random_scene(rng, preset), preset, rng, (form,))
        if caption is not None:
            found.append(caption)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_template_of_every_form_reads_back_as_what_was_written(form):
    for caption in hard_captions(form):
        assert form_of(caption) == form
        assert NUM_TEMPLATES % len(templates(caption)) == 0
        for template in range(len(templates(caption))):
            text = realise(caption, template)
            assert parse(text) == caption, text
            assert set(text.split()) <= set(VOCABULARY)


def test_statements_about_two_images_read_back(make_pool):
    sets = make_pair_sets(make_pool("hard", 0), 60)
    assert {type(statement) for made in sets for statement in made.statements} == {InImages, Across}
    for made in sets:
        for statement in made.statements:
            text = realise(statement, made.template)
            assert parse(text) == statement, text
            assert set(text.split()) <= set(VOCABULARY)


def test_paraphrases_name_the_objects_in_both_orders():
    texts = [realise(Related(RED, "left", BLUE), template) for template in range(8)]
    assert len(set(texts)) == 8
    assert "a red circle left of a blue square" in texts
    assert "there is a blue square with a red circle to its left" in texts
    first = [text.index("red circle") < text.index("blue square") for text in texts]
    assert 3 <= sum(first) <= 5


def test_vocabulary_is_sorted_unique_plain_words():
    assert sorted(set(VOCABULARY)) == VOCABULARY
    assert all(word.isalpha() and word.islower() for word in VOCABULARY)


@pytest.mark.parametrize(
    "text", ["", "a dog on a mat", "a red circle", "a red circle left of", "an red circle above it"]
)
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="grammar"):
        parse(text)
