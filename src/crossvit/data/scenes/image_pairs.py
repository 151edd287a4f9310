"""Balanced statements about two images, for the NLVR2 layout.

A set holds two statements and two pairs of pictures; statement i is true of pair j exactly where i == j, so text alone
and images alone are right half the time, and consistency (all pairs of one statement right) is defined as in NLVR2.
"""

from dataclasses import dataclass
from itertools import product

from crossvit.data.scenes.describe import NUM_TEMPLATES
from crossvit.data.scenes.graph import Scene
from crossvit.data.scenes.logic import WHICH, Across, Caption, InImages, PairStatement, Phrase, holds, holds_pair
from crossvit.data.scenes.quads import exchanged, make_quad, moved, quad_kinds, recoloured
from crossvit.data.scenes.sample import ScenePool

# Templates that read well after "in the left image": none that say "the image" again.
_TEMPLATES = tuple(range(0, NUM_TEMPLATES, 3))


@dataclass(frozen=True, slots=True)
class PairSet:
    """`statements[i]` is true of `pairs[j]` (left, right) exactly where i == j; both are written with `template`."""

    pairs: tuple[tuple[Scene, Scene], tuple[Scene, Scene]]
    statements: tuple[PairStatement, PairStatement]
    kind: str
    template: int


def _like(scene: Scene, caption: Caption, pool: ScenePool) -> Scene | None:
    """Another scene, one edit away, in which `caption` is as true or false as in `scene`."""
    edits = [
        *recoloured(scene, pool.preset, pool.rng),
        *moved(scene, pool.preset, pool.rng),
        *exchanged(scene, ("colour",)),
    ]
    pool.rng.shuffle(edits)
    truth = holds(scene, caption)
    return next((edit for edit in edits if pool.accepts(edit) and holds(edit, caption) == truth), None)


def _one_side(pool: ScenePool, kind: str, template: int) -> PairSet:
    """Both statements are about one side, and the captions are twins; the other side is the same in both pairs."""
    quad = make_quad(pool, kind)
    side, extra = pool.rng.choice(("left", "right")), pool.draw()
    pairs = tuple((scene, extra) if side == "left" else (extra, scene) for scene in quad.scenes)
    return PairSet(pairs, tuple(InImages(side, caption) for caption in quad.captions), kind, template)


def _quantified(pool: ScenePool, kind: str, template: int) -> PairSet | None:
    """One caption under two quantifiers ("both", "exactly one", ...), with pairs that tell them apart."""
    quad = make_quad(pool, kind)
    caption = quad.captions[0]
    true, false = quad.scenes
    also_true, also_false = _like(true, caption, pool), _like(false, caption, pool)
    if also_true is None or also_false is None:
        return None
    pairs = [(true, also_true), (false, also_false), (true, false), (false, true)]
    first, second = (InImages(which, caption) for which in pool.rng.sample(WHICH, 2))
    fitting = [
        (p, q)
        for p, q in product(pairs, pairs)
        if holds_pair(*p, first) and not holds_pair(*p, second) and holds_pair(*q, second) and not holds_pair(*q, first)
    ]
    return PairSet(pool.rng.choice(fitting), (first, second), "quantifier", template) if fitting else None


def _across(pool: ScenePool, kind: str, template: int) -> PairSet | None:
    """Which picture has more of something; the second pair is the first the other way round. It needs no twin."""
    left, right = pool.draw(), pool.draw()
    names = ("shape", "colour", "size", "texture")
    values = {(name, getattr(obj, name)) for scene in (left, right) for obj in scene.objects for name in names}
    phrases = [Phrase(**{name: value}) for name, value in sorted(values)]
    pool.rng.shuffle(phrases)
    for phrase in phrases:
        more, fewer = Across(phrase, "more"), Across(phrase, "fewer")
        if holds_pair(left, right, more):
            return PairSet(((left, right), (right, left)), (more, fewer), "comparison", template)
        if holds_pair(left, right, fewer):
            return PairSet(((right, left), (left, right)), (more, fewer), "comparison", template)
    return None


def make_pair_sets(pool: ScenePool, number: int) -> list[PairSet]:
    """`number` sets, in turn about one side, quantified and, where the preset has counts, comparing the pictures."""
    makers = [_one_side, _quantified]
    if "count" in pool.preset.forms:
        makers.append(_across)
    kinds = quad_kinds(pool.preset)
    sets: list[PairSet] = []
    while len(sets) < number:
        turn = len(sets)
        kind = kinds[turn // len(makers) % len(kinds)]
        made = makers[turn % len(makers)](pool, kind, pool.rng.choice(_TEMPLATES))
        if made is not None:
            pool.keep(*(scene for pair in made.pairs for scene in pair))
            sets.append(made)
    return sets
