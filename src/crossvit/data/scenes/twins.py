"""Minimal twins: a caption changed in one respect so that it is false of its scene.

The taxonomy is SugarCrepe's (Hsieh et al., 2023), replace / swap / add of objects, attributes and relations, with
counts and negation besides. "obj" is the noun (shape), "att" colour, size or texture. A swap twin holds the same words
as its caption.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random

from crossvit.data.scenes.grammar import NUMBERS
from crossvit.data.scenes.graph import VALUES, Scene
from crossvit.data.scenes.logic import (
    BY_SIZE,
    COMPARISONS,
    SPATIAL,
    And,
    Caption,
    Compare,
    Count,
    Exists,
    Phrase,
    Related,
    holds,
    phrases,
)
from crossvit.data.scenes.presets import Preset

_ADJECTIVES = ("colour", "size", "texture")

# The caption forms (`describe.FORMS`) each kind of twin can start from.
FORMS_OF_KIND: dict[str, tuple[str, ...]] = {
    "replace_obj": ("relation", "size", "not_related", "and", "exists", "absent", "count", "compare"),
    "replace_att": ("relation", "size", "not_related", "and", "exists", "absent", "count", "compare"),
    "replace_rel": ("relation", "size", "and", "compare"),
    "replace_count": ("count",),
    "swap_att": ("relation", "size", "not_related", "and"),
    "swap_obj": ("relation", "size", "not_related", "and", "compare"),
    "add_obj": ("relation",),
    "add_att": ("relation", "size", "and", "exists"),
    "negation": ("relation", "size", "not_related", "exists", "absent"),
}
KINDS = tuple(FORMS_OF_KIND)
# These twins entail their caption, so no scene makes the twin true and the caption false.
ENTAILING_KINDS = ("add_obj", "add_att")


def with_phrases(caption: Caption, changed: tuple[Phrase, ...]) -> Caption:
    """The caption with its noun phrases (in the order of `logic.phrases`) replaced."""
    match caption:
        case Related(relation=relation, negated=negated):
            return Related(changed[0], relation, changed[1], negated)
        case Exists(negated=negated):
            return Exists(changed[0], negated)
        case Count(number=number):
            return Count(changed[0], number)
        case Compare(comparison=comparison):
            return Compare(changed[0], comparison, changed[1])
        case And(first, second):
            return And(with_phrases(first, changed[:1]), with_phrases(second, changed[1:]))
    raise ValueError(f"not a caption about one image: {caption!r}")


def _replaced(caption: Caption, names: tuple[str, ...], preset: Preset, *, present: bool) -> Iterator[Caption]:
    """Change (or, with `present` False, add) one attribute of one phrase."""
    old = phrases(caption)
    shown = {"shape": VALUES["shape"], "colour": VALUES["colour"], "size": preset.sizes, "texture": preset.textures}
    for i, phrase in enumerate(old):
        for name in names:
            value = getattr(phrase, name)
            if (value is not None) is not present:
                continue
            if name == "size" and isinstance(caption, Related) and caption.relation in BY_SIZE:
                continue
            for other in shown[name]:
                if other != value:
                    yield with_phrases(caption, (*old[:i], phrase._replace(**{name: other}), *old[i + 1 :]))


def _related_otherwise(caption: Caption) -> Iterator[Caption]:
    match caption:
        case Related(relation=relation):
            for other in SPATIAL if relation in SPATIAL else BY_SIZE:
                if other != relation:
                    yield replace(caption, relation=other)
        case Compare(comparison=comparison):
            for other in COMPARISONS:
                if other != comparison:
                    yield replace(caption, comparison=other)
        case And(first, second):
            for other in _related_otherwise(second):
                yield And(first, other)


def _swapped_attributes(caption: Caption) -> Iterator[Caption]:
    *rest, a, b = phrases(caption)
    if a.shape == b.shape:  # that would be swap_obj
        return
    for name in _ADJECTIVES:
        first, second = getattr(a, name), getattr(b, name)
        if first is not None and second is not None and first != second:
            yield with_phrases(caption, (*rest, a._replace(**{name: second}), b._replace(**{name: first})))


def _candidates(caption: Caption, kind: str, preset: Preset) -> Iterator[Caption]:
    match kind:
        case "replace_obj":
            yield from _replaced(caption, ("shape",), preset, present=True)
        case "replace_att":
            yield from _replaced(caption, _ADJECTIVES, preset, present=True)
        case "replace_rel":
            yield from _related_otherwise(caption)
        case "replace_count":
            for number in (caption.number - 1, caption.number + 1):
                if 1 <= number <= len(NUMBERS):
                    yield replace(caption, number=number)
        case "swap_att":
            yield from _swapped_attributes(caption)
        case "swap_obj":
            *rest, a, b = phrases(caption)
            if a != b:
                yield with_phrases(caption, (*rest, b, a))
        case "add_obj":
            for shape in VALUES["shape"]:
                for colour in VALUES["colour"]:
                    yield And(Exists(Phrase(shape, colour)), caption)
        case "add_att":
            yield from _replaced(caption, _ADJECTIVES, preset, present=False)
        case "negation":
            yield replace(caption, negated=not caption.negated)
        case _:
            raise ValueError(f"unknown kind of twin {kind!r}; one of {', '.join(KINDS)}")


def twin(
    caption: Caption, kind: str, scene: Scene, preset: Preset, rng: Random, allowed: Callable[[Caption], bool]
) -> Caption | None:
    """A caption one step of `kind` away that is false of `scene` and passes `allowed`; None if there is none.

    `caption` must have a form listed in FORMS_OF_KIND[kind].
    """
    candidates = list(_candidates(caption, kind, preset))
    rng.shuffle(candidates)
    for candidate in candidates:
        if allowed(candidate) and not holds(scene, candidate):
            return candidate
    return None


def kinds_for(caption: Caption, preset: Preset) -> tuple[str, ...]:
    """The kinds of twin the preset can make of this caption."""
    form = form_of(caption)
    return tuple(kind for kind in preset.kinds if form in FORMS_OF_KIND[kind])


def form_of(caption: Caption) -> str:
    """The name of the caption's form, as in `describe.FORMS`."""
    match caption:
        case Related(negated=True):
            return "not_related"
        case Related(relation=relation):
            return "relation" if relation in SPATIAL else "size"
        case Exists(negated=negated):
            return "absent" if negated else "exists"
        case Count():
            return "count"
        case Compare():
            return "compare"
        case And():
            return "and"
    raise ValueError(f"not a caption about one image: {caption!r}")
