"""Captions as small logical forms, and their truth in a scene.

A `Phrase` picks the objects that have every attribute it names. Noun phrases are existential: `Related(p, "left", q)`
is true when some p is left of some other q. Counts are exact. `InImages` and `Across` speak about two images (NLVR2).
"""

from dataclasses import dataclass
from typing import NamedTuple

from crossvit.data.scenes.graph import HELD_OUT_PAIRS, Obj, Scene

SPATIAL = ("left", "right", "above", "below")
BY_SIZE = ("larger", "smaller")
COMPARISONS = ("more", "fewer", "as many")
INVERSE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "larger": "smaller",
    "smaller": "larger",
    "more": "fewer",
    "fewer": "more",
    "as many": "as many",
}
WHICH = ("left", "right", "both", "exactly one", "neither")


class Phrase(NamedTuple):
    """A description of objects; None leaves an attribute open (no shape reads "shape")."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None

    def matches(self, obj: Obj) -> bool:
        """Whether the object has every attribute named here."""
        return (
            (self.shape is None or self.shape == obj.shape)
            and (self.colour is None or self.colour == obj.colour)
            and (self.size is None or self.size == obj.size)
            and (self.texture is None or self.texture == obj.texture)
        )

    @property
    def held_out(self) -> bool:
        """Whether it names a colour-shape pair of the compositional split."""
        return (self.colour, self.shape) in HELD_OUT_PAIRS


@dataclass(frozen=True, slots=True)
class Exists:
    """Some object fits `phrase`; with `negated`, none does."""

    phrase: Phrase
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Related:
    """Some `subject` stands in `relation` to some other `object`; with `negated`, none does."""

    subject: Phrase
    relation: str
    object: Phrase
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """Exactly `number` objects fit `phrase`."""

    phrase: Phrase
    number: int


@dataclass(frozen=True, slots=True)
class Compare:
    """More, fewer or as many objects fit `first` than (as) fit `second`."""

    first: Phrase
    comparison: str
    second: Phrase


@dataclass(frozen=True, slots=True)
class And:
    """Both parts hold."""

    first: Exists
    second: Related


Caption = Exists | Related | Count | Compare | And


@dataclass(frozen=True, slots=True)
class InImages:
    """`caption` holds in the left, the right, both, exactly one or neither of two images."""

    which: str
    caption: Caption


@dataclass(frozen=True, slots=True)
class Across:
    """The left image has more, fewer or as many objects that fit `phrase` than (as) the right one."""

    phrase: Phrase
    comparison: str


PairStatement = InImages | Across


def related(a: Obj, relation: str, b: Obj) -> bool:
    """Whether `a` stands in `relation` to `b`: places by grid column and row, sizes by the size attribute."""
    match relation:
        case "left":
            return a.col < b.col
        case "right":
            return a.col > b.col
        case "above":
            return a.row < b.row
        case "below":
            return a.row > b.row
        case "larger":
            return a.size == "large" and b.size == "small"
        case "smaller":
            return a.size == "small" and b.size == "large"
    raise ValueError(f"unknown relation {relation!r}")


def _number(scene: Scene, phrase: Phrase) -> int:
    return sum(map(phrase.matches, scene.objects))


def _compare(first: int, comparison: str, second: int) -> bool:
    if comparison == "as many":
        return first == second
    return first > second if comparison == "more" else first < second


def holds(scene: Scene, caption: Caption) -> bool:
    """Whether `caption` is true of `scene`."""
    objects = scene.objects
    match caption:
        case Related(subject, relation, other, negated):
            others = [b for b in objects if other.matches(b)]
            found = any(a is not b and related(a, relation, b) for a in objects if subject.matches(a) for b in others)
            return found is not negated
        case Exists(phrase, negated):
            return any(map(phrase.matches, objects)) is not negated
        case Count(phrase, number):
            return _number(scene, phrase) == number
        case Compare(first, comparison, second):
            return _compare(_number(scene, first), comparison, _number(scene, second))
        case And(first, second):
            return holds(scene, first) and holds(scene, second)
    raise ValueError(f"not a caption about one image: {caption!r}")


def holds_pair(left: Scene, right: Scene, statement: PairStatement) -> bool:
    """Whether `statement` is true of two images."""
    match statement:
        case InImages(which, caption):
            truths = (holds(left, caption), holds(right, caption))
            match which:
                case "left":
                    return truths[0]
                case "right":
                    return truths[1]
                case "both":
                    return all(truths)
                case "exactly one":
                    return truths[0] != truths[1]
                case "neither":
                    return not any(truths)
        case Across(phrase, comparison):
            return _compare(_number(left, phrase), comparison, _number(right, phrase))
    raise ValueError(f"not a statement about two images: {statement!r}")


def phrases(caption: Caption | PairStatement) -> tuple[Phrase, ...]:
    """The noun phrases of a caption, in logical order."""
    match caption:
        case Related(subject, _, other, _):
            return (subject, other)
        case Exists(phrase, _) | Count(phrase, _) | Across(phrase, _):
            return (phrase,)
        case Compare(first, _, second):
            return (first, second)
        case And(first, second):
            return phrases(first) + phrases(second)
        case InImages(_, inner):
            return phrases(inner)
    raise ValueError(f"not a caption: {caption!r}")


def mentions_held_out(caption: Caption | PairStatement) -> bool:
    """Whether the text names a colour-shape pair of the compositional split."""
    return any(phrase.held_out for phrase in phrases(caption))
