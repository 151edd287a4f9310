"""Captions as English: templates in both directions, and the parser that reads them back.

`realise(caption, template)` writes, `parse(text)` reads; every template of every form is unambiguous, so the parse of a
realised caption is that caption. Words are lower case without punctuation and `VOCABULARY` lists them all. No noun
phrase starts with a vowel, so a caption and the one with two words exchanged hold the same bag of words.
"""

import re
from functools import cache
from string import Formatter

from crossvit.data.scenes.graph import COLOURS, SHAPES, SIZES, TEXTURES, Scene
from crossvit.data.scenes.logic import (
    BY_SIZE,
    COMPARISONS,
    SPATIAL,
    WHICH,
    Across,
    And,
    Caption,
    Compare,
    Count,
    Exists,
    InImages,
    PairStatement,
    Phrase,
    Related,
    holds,
    holds_pair,
)

NUMBERS = ("one", "two", "three", "four", "five")
NOUN = "shape"  # the noun of a phrase that leaves the shape open

# {a} {b}: "a red circle"; {A} {B}: "red circle"; {As} {Bs}: "red circles".
_SPATIAL_TEMPLATES = (  # by turns: the subject first, the object first
    "{a} {short} {b}",
    "{b} with {a} {its}",
    "{a} is {short} {b}",
    "there is {b} with {a} {its}",
    "there is {a} {long} {b}",
    "{short} {b} there is {a}",
    "{a} is {long} {b}",
    "{b} has {a} {its}",
)
_SIZE_TEMPLATES = ("{a} {short} {b}", "{a} is {short} {b}", "there is {a} {short} {b}")
_NOT_RELATED_TEMPLATES = (
    "there is no {A} {short} {b}",
    "no {A} is {short} {b}",
    "the image contains no {A} {short} {b}",
)
_EXISTS_TEMPLATES = ("there is {a}", "{a} is present", "the image contains {a}")
_ABSENT_TEMPLATES = ("there is no {A}", "no {A} is present", "the image contains no {A}")
_COUNT_TEMPLATES = ("there {be} exactly {n}", "exactly {n} {be} present", "the image contains exactly {n}")
_COMPARE_TEMPLATES = (
    "there are {more} {As} {than} {Bs}",
    "the image contains {more} {As} {than} {Bs}",
    "{more} {As} {than} {Bs} are present",
)
RELATION_WORDS = {
    "left": {"short": "left of", "long": "to the left of", "its": "to its left"},
    "right": {"short": "right of", "long": "to the right of", "its": "to its right"},
    "above": {"short": "above", "long": "higher than", "its": "above it"},
    "below": {"short": "below", "long": "lower than", "its": "below it"},
    "larger": {"short": "larger than"},
    "smaller": {"short": "smaller than"},
}
_COMPARISON_WORDS = {
    "more": {"more": "more", "than": "than"},
    "fewer": {"more": "fewer", "than": "than"},
    "as many": {"more": "as many", "than": "as"},
}
_WHICH_WORDS = {
    "left": "in the left image",
    "right": "in the right image",
    "both": "in both images",
    "exactly one": "in exactly one image",
    "neither": "in neither image",
}
_ACROSS = "there are {more} {As} in the left image {than} in the right image"


def templates(caption: Caption | PairStatement) -> tuple[str, ...]:
    """The templates a caption can be written with; a caption made of parts has those of its last part."""
    match caption:
        case Related(negated=True):
            return _NOT_RELATED_TEMPLATES
        case Related(relation=relation):
            return _SPATIAL_TEMPLATES if relation in SPATIAL else _SIZE_TEMPLATES
        case Exists(negated=negated):
            return _ABSENT_TEMPLATES if negated else _EXISTS_TEMPLATES
        case Count():
            return _COUNT_TEMPLATES
        case Compare():
            return _COMPARE_TEMPLATES
        case And(second=inner) | InImages(caption=inner):
            return templates(inner)
        case Across():
            return (_ACROSS,)
    raise ValueError(f"not a caption: {caption!r}")


@cache
def noun_phrase(phrase: Phrase, plural: bool = False) -> str:
    """The words of a phrase without an article: "small red circle"."""
    noun = phrase.shape or NOUN
    if plural:
        noun += "es" if noun.endswith("s") else "s"
    return " ".join(word for word in (phrase.size, phrase.texture, phrase.colour, noun) if word)


def realise(caption: Caption | PairStatement, template: int = 0) -> str:
    """The caption in words.

    `template` counts modulo the number of templates of its form; a caption and its twin of the same form, written with
    the same template, differ only in the words of the change.
    """
    match caption:
        case And(first, second):
            return f"{realise(first)} and {realise(second, template)}"
        case InImages(which, inner):
            return f"{_WHICH_WORDS[which]} {realise(inner, template)}"
    choices = templates(caption)
    text = choices[template % len(choices)]
    match caption:
        case Related(subject, relation, other, _):
            a, b = noun_phrase(subject), noun_phrase(other)
            return text.format(a=f"a {a}", b=f"a {b}", A=a, **RELATION_WORDS[relation])
        case Exists(phrase, _):
            return text.format(a=f"a {noun_phrase(phrase)}", A=noun_phrase(phrase))
        case Count(phrase, number):
            counted = f"{NUMBERS[number - 1]} {noun_phrase(phrase, number > 1)}"
            return text.format(be="are" if number > 1 else "is", n=counted)
        case Compare(first, comparison, second):
            return text.format(
                As=noun_phrase(first, True), Bs=noun_phrase(second, True), **_COMPARISON_WORDS[comparison]
            )
        case Across(phrase, comparison):
            return text.format(As=noun_phrase(phrase, True), **_COMPARISON_WORDS[comparison])
    raise ValueError(f"not a caption: {caption!r}")


def _phrase_pattern(name: str, plural: bool) -> str:
    nouns = "|".join((*SHAPES, NOUN))
    return (
        f"(?:(?P<{name}_size>{'|'.join(SIZES)}) )?(?:(?P<{name}_texture>{'|'.join(TEXTURES)}) )?"
        f"(?:(?P<{name}_colour>{'|'.join(COLOURS)}) )?(?P<{name}_shape>{nouns})" + ("(?:es|s)" if plural else "")
    )


def _pattern(template: str, words: dict[str, str]) -> re.Pattern:
    slots = {
        "a": "a " + _phrase_pattern("a", False),
        "b": "a " + _phrase_pattern("b", False),
        "A": _phrase_pattern("a", False),
        "As": _phrase_pattern("a", True),
        "Bs": _phrase_pattern("b", True),
        "be": "(?:is|are)",
        "n": f"(?P<n>{'|'.join(NUMBERS)}) {_phrase_pattern('a', False)}(?:es|s)?",
        **words,
    }
    return re.compile(template.format(**slots))


def _read_phrase(match: re.Match, name: str) -> Phrase:
    shape = match[f"{name}_shape"]
    return Phrase(
        None if shape == NOUN else shape, match[f"{name}_colour"], match[f"{name}_size"], match[f"{name}_texture"]
    )


@cache
def _readers() -> list[tuple]:
    """(pattern, function from a match to a caption), for every template of every form about one image."""
    readers = []
    for relation in SPATIAL + BY_SIZE:
        words = RELATION_WORDS[relation]
        for negated in (False, True):
            for template in templates(Related(Phrase(), relation, Phrase(), negated)):

                def read(match, relation=relation, negated=negated):
                    return Related(_read_phrase(match, "a"), relation, _read_phrase(match, "b"), negated)

                readers.append((_pattern(template, words), read))
    for negated in (False, True):
        for template in templates(Exists(Phrase(), negated)):
            readers.append(
                (_pattern(template, {}), lambda match, negated=negated: Exists(_read_phrase(match, "a"), negated))
            )
    for template in _COUNT_TEMPLATES:
        readers.append(
            (_pattern(template, {}), lambda match: Count(_read_phrase(match, "a"), NUMBERS.index(match["n"]) + 1))
        )
    for comparison in COMPARISONS:
        for template in _COMPARE_TEMPLATES:

            def read(match, comparison=comparison):
                return Compare(_read_phrase(match, "a"), comparison, _read_phrase(match, "b"))

            readers.append((_pattern(template, _COMPARISON_WORDS[comparison]), read))
    return readers


@cache
def _across_readers() -> list[tuple]:
    return [(_pattern(_ACROSS, _COMPARISON_WORDS[comparison]), comparison) for comparison in COMPARISONS]


def parse(text: str) -> Caption | PairStatement:
    """The logical form of a caption of this grammar. Raises ValueError for any other text."""
    for which in WHICH:
        if text.startswith(_WHICH_WORDS[which] + " "):
            return InImages(which, parse(text.removeprefix(_WHICH_WORDS[which] + " ")))
    for pattern, comparison in _across_readers():
        if match := pattern.fullmatch(text):
            return Across(_read_phrase(match, "a"), comparison)
    first, joined, second = text.partition(" and ")
    if joined:
        return And(parse(first), parse(second))
    for pattern, read in _readers():
        if match := pattern.fullmatch(text):
            return read(match)
    raise ValueError(f"not a caption of the scenes grammar: {text!r}")


def oracle(text: str, scene: Scene, other: Scene | None = None) -> bool:
    """Whether a caption, read from its words alone, is true of a scene (of two scenes, left and right, if `other` is
    given).

    Raises ValueError where the text is not of this grammar, or speaks of another number of images.
    """
    caption = parse(text)
    return holds(scene, caption) if other is None else holds_pair(scene, other, caption)


def _vocabulary() -> list[str]:
    texts = [*SHAPES, *COLOURS, *SIZES, *TEXTURES, *NUMBERS, NOUN, "a is are", _ACROSS, "and", *_WHICH_WORDS.values()]
    texts += [noun_phrase(Phrase(shape), True) for shape in (*SHAPES, None)]
    for forms in (RELATION_WORDS, _COMPARISON_WORDS):
        texts += [words for form in forms.values() for words in form.values()]
    texts += _SPATIAL_TEMPLATES + _SIZE_TEMPLATES + _NOT_RELATED_TEMPLATES + _EXISTS_TEMPLATES + _ABSENT_TEMPLATES
    texts += _COUNT_TEMPLATES + _COMPARE_TEMPLATES
    literal = "".join(" " + part for text in texts for part, *_ in Formatter().parse(text))
    return sorted(set(literal.split()))


VOCABULARY: list[str] = _vocabulary()
"""Every word any caption of any preset can hold, sorted."""
