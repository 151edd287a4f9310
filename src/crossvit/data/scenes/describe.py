"""True captions of a scene, by form."""

from random import Random

from crossvit.data.scenes.graph import ATTRIBUTES, VALUES, Obj, Scene
from crossvit.data.scenes.logic import (
    BY_SIZE,
    SPATIAL,
    And,
    Caption,
    Compare,
    Count,
    Exists,
    Phrase,
    Related,
    holds,
    related,
)
from crossvit.data.scenes.presets import Preset

NUM_TEMPLATES = 24  # a common multiple of the template counts of all forms, so a uniform draw is uniform for each


def draw_template(preset: Preset, rng: Random) -> int:
    """Which of a form's templates a caption is written with."""
    return rng.randrange(0, NUM_TEMPLATES, 2 if preset.subject_first else 1)


def on_diagonal(a: Obj, b: Obj) -> bool:
    """Whether two objects share neither row nor column."""
    return a.row != b.row and a.col != b.col


def _phrase(obj: Obj, preset: Preset, rng: Random) -> Phrase:
    if not preset.partial:
        return Phrase(obj.shape, obj.colour)
    dropped = rng.choice(("shape", "colour", None, None, None, None))
    return Phrase(
        None if dropped == "shape" else obj.shape,
        None if dropped == "colour" else obj.colour,
        obj.size if rng.random() < 0.3 else None,
        obj.texture if rng.random() < 0.3 else None,
    )


def _ordered_pair(scene: Scene, preset: Preset, rng: Random) -> tuple[Obj, Obj] | None:
    pairs = [
        (a, b)
        for a in scene.objects
        for b in scene.objects
        if a is not b and (not preset.diagonal or on_diagonal(a, b))
    ]
    return rng.choice(pairs) if pairs else None


def _relation(scene: Scene, preset: Preset, rng: Random, relations=SPATIAL, negated: bool = False) -> Caption | None:
    pair = _ordered_pair(scene, preset, rng)
    if pair is None:
        return None
    a, b = pair
    fitting = [relation for relation in relations if related(a, relation, b) is not negated]
    if not fitting:
        return None
    first, second = _phrase(a, preset, rng), _phrase(b, preset, rng)
    return Related(first, rng.choice(fitting), second, negated)


def _size(scene: Scene, preset: Preset, rng: Random) -> Caption | None:
    caption = _relation(scene, preset, rng, BY_SIZE)
    if caption is None:
        return None
    return Related(caption.subject._replace(size=None), caption.relation, caption.object._replace(size=None))


def _exists(scene: Scene, preset: Preset, rng: Random) -> Caption:
    return Exists(_phrase(rng.choice(scene.objects), preset, rng))


def _near_miss(scene: Scene, preset: Preset, rng: Random) -> Phrase:
    phrase = _phrase(rng.choice(scene.objects), preset, rng)
    named = [name for name in ATTRIBUTES if getattr(phrase, name) is not None]
    name = rng.choice(named)
    return phrase._replace(**{name: rng.choice([value for value in VALUES[name] if value != getattr(phrase, name)])})


def _count(scene: Scene, preset: Preset, rng: Random) -> Caption:
    obj = rng.choice(scene.objects)
    name = rng.choice((*ATTRIBUTES, None))
    phrase = _phrase(obj, preset, rng) if name is None else Phrase(**{name: getattr(obj, name)})
    return Count(phrase, sum(map(phrase.matches, scene.objects)))


def _compare(scene: Scene, preset: Preset, rng: Random) -> Caption | None:
    name = rng.choice((*ATTRIBUTES, None))
    a, b = rng.sample(scene.objects, 2)
    if name is None:
        first, second = Phrase(a.shape, a.colour), Phrase(b.shape, b.colour)
    else:
        first = Phrase(**{name: getattr(a, name)})
        second = Phrase(**{name: rng.choice([value for value in VALUES[name] if value != getattr(a, name)])})
    if first == second:
        return None
    return next(
        caption
        for comparison in ("more", "fewer", "as many")
        if holds(scene, caption := Compare(first, comparison, second))
    )


def _and(scene: Scene, preset: Preset, rng: Random) -> Caption | None:
    second = _relation(scene, preset, rng)
    return None if second is None else And(_exists(scene, preset, rng), second)


FORMS = {
    "relation": _relation,
    "size": _size,
    "not_related": lambda scene, preset, rng: _relation(scene, preset, rng, negated=True),
    "and": _and,
    "exists": _exists,
    "absent": lambda scene, preset, rng: Exists(_near_miss(scene, preset, rng), negated=True),
    "count": _count,
    "compare": _compare,
}


def describe(scene: Scene, preset: Preset, rng: Random, forms: tuple[str, ...] | None = None) -> Caption | None:
    """A true caption of a form drawn by the preset's weights (among `forms`, if given), or None."""
    names = [name for name in preset.forms if forms is None or name in forms]
    name = rng.choices(names, [preset.forms[name] for name in names])[0] if len(names) > 1 else names[0]
    caption = FORMS[name](scene, preset, rng)
    return caption if caption is not None and holds(scene, caption) else None
