"""Balanced statements: two captions by two pictures, as in Winoground.

In a quad the first caption is true of the first picture and false of the second, the second caption the other way
round. So every caption is true and false equally often and every picture has as many true as false statements: whoever
sees only the text, or only the image, is right exactly half the time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from crossvit.data.scenes.describe import describe, draw_template, on_diagonal
from crossvit.data.scenes.graph import VALUES, Scene
from crossvit.data.scenes.logic import SPATIAL, And, Caption, Related, holds, related
from crossvit.data.scenes.presets import Preset
from crossvit.data.scenes.sample import ScenePool, diameter_of, move
from crossvit.data.scenes.twins import ENTAILING_KINDS, FORMS_OF_KIND, twin

_MAX_DRAWS = 20_000


@dataclass(frozen=True, slots=True)
class Quad:
    """`captions[i]` is true of `scenes[j]` exactly where i == j; both are written with `template`."""

    scenes: tuple[Scene, Scene]
    captions: tuple[Caption, Caption]
    kind: str
    template: int


def _with_object(scene: Scene, i: int, obj) -> Scene:
    return Scene((*scene.objects[:i], obj, *scene.objects[i + 1 :]), scene.background)


def recoloured(scene: Scene, preset: Preset, rng: Random) -> Iterator[Scene]:
    """Every scene that differs in one attribute of one object."""
    shown = {"shape": VALUES["shape"], "colour": VALUES["colour"], "size": preset.sizes, "texture": preset.textures}
    for i, obj in enumerate(scene.objects):
        for name, values in shown.items():
            for value in values:
                if value != getattr(obj, name):
                    changed = obj._replace(**{name: value})
                    if name == "size":
                        changed = changed._replace(diameter=diameter_of(value, preset, rng))
                    yield _with_object(scene, i, changed)


def moved(scene: Scene, preset: Preset, rng: Random) -> Iterator[Scene]:
    """Every scene in which one object stands in another free cell."""
    taken = {(obj.row, obj.col) for obj in scene.objects}
    free = [(row, col) for row in range(preset.grid) for col in range(preset.grid) if (row, col) not in taken]
    for i, obj in enumerate(scene.objects):
        for cell in free:
            yield _with_object(scene, i, move(obj, cell, preset, rng))


def exchanged(scene: Scene, names: tuple[str, ...]) -> Iterator[Scene]:
    """Every scene in which two objects have exchanged the attributes `names`."""
    for i, a in enumerate(scene.objects):
        for j in range(i + 1, len(scene.objects)):
            b = scene.objects[j]
            first = a._replace(**{name: getattr(b, name) for name in names})
            second = b._replace(**{name: getattr(a, name) for name in names})
            yield _with_object(_with_object(scene, i, first), j, second)


def _edits(scene: Scene, kind: str, caption: Caption, preset: Preset, rng: Random) -> Iterator[Scene]:
    place = ("row", "col", "x", "y")
    spatial = isinstance(caption, And) or (isinstance(caption, Related) and caption.relation in SPATIAL)
    if kind == "swap_att":
        for names in (("colour",), ("size", "diameter"), ("texture",)):
            yield from exchanged(scene, names)
    elif kind in ("swap_obj", "replace_rel") and spatial:
        yield from exchanged(scene, place)
        if kind == "replace_rel":
            yield from moved(scene, preset, rng)
    else:
        yield from recoloured(scene, preset, rng)
        yield from exchanged(scene, ("size", "diameter"))
        yield from moved(scene, preset, rng)


def _reading_order_safe(scene: Scene, caption: Caption) -> bool:
    """Whether a spatial caption is borne out by two objects that share neither row nor column."""
    inner = caption.second if isinstance(caption, And) else caption
    if not isinstance(inner, Related) or inner.negated or inner.relation not in SPATIAL:
        return True
    return any(
        on_diagonal(a, b) and related(a, inner.relation, b)
        for a in scene.objects
        if inner.subject.matches(a)
        for b in scene.objects
        if a is not b and inner.object.matches(b)
    )


def counterpart(scene: Scene, caption: Caption, other: Caption, kind: str, pool: ScenePool) -> Scene | None:
    """A scene one edit away in which `other` is true and `caption` false; None if the pool accepts none."""
    candidates = list(_edits(scene, kind, caption, pool.preset, pool.rng))
    pool.rng.shuffle(candidates)
    for candidate in candidates:
        if (
            holds(candidate, other)
            and not holds(candidate, caption)
            and (not pool.preset.diagonal or _reading_order_safe(candidate, other))
            and pool.accepts(candidate)
        ):
            return candidate
    return None


def make_quad(pool: ScenePool, kind: str) -> Quad:
    """A quad whose captions differ by a twin of `kind`."""
    forms = FORMS_OF_KIND[kind]
    for _ in range(_MAX_DRAWS):
        scene = pool.draw()
        caption = describe(scene, pool.preset, pool.rng, forms)
        if caption is None or not pool.mentions_well(caption):
            continue
        other = twin(caption, kind, scene, pool.preset, pool.rng, pool.mentions_well)
        if other is None:
            continue
        second = counterpart(scene, caption, other, kind, pool)
        if second is not None:
            pool.keep(scene, second)
            return Quad((scene, second), (caption, other), kind, draw_template(pool.preset, pool.rng))
    raise RuntimeError(
        f"no {kind} quad in {_MAX_DRAWS} draws of preset {pool.preset.name}: too many scenes are reserved"
    )


def quad_kinds(preset: Preset) -> tuple[str, ...]:
    """The kinds of twin a quad of the preset can be made of."""
    return tuple(kind for kind in preset.kinds if kind not in ENTAILING_KINDS)


def make_quads(pool: ScenePool, number: int) -> list[Quad]:
    """`number` quads, the preset's kinds in turn."""
    kinds = quad_kinds(pool.preset)
    return [make_quad(pool, kinds[i % len(kinds)]) for i in range(number)]
