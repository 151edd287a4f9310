"""COCO-Order and Flickr30k-Order of ARO: the caption among others of its own words in another order."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.karpathy import KarpathyDataModule
from crossvit.errors import UserError

Tokens = list[str]
Tagged = list[tuple[str, str]]  # word and its part of speech in the Penn Treebank's tags

_TOKEN = re.compile(r"\w+(?:['\u2019-]\w+)*|[^\w\s]")
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACED = re.compile(r"[-/\s]+")
_NOUNS = ("NN", "NNS", "NNP", "NNPS")
_ADJECTIVES = ("JJ", "JJR", "JJS")
MAX_WORDS = 30


class Choice(NamedTuple):
    """An image, its caption, and captions that are false of it."""

    image_id: int
    caption: str
    false: tuple[str, ...]


class OrderDataModule(KarpathyDataModule):
    """Every caption of a split of Karpathy's with one shuffled caption for each of `kinds` (Yuksekgonul et al. 2023).

    Captions are lower-cased, without punctuation marks, of at most 30 words, as in the release. Its shuffles were not seeded, so the
    false captions are not those that others saw; here they depend on `shuffle_seed`, caption and kind alone.

    Args:
        kinds: of `KINDS`; those with nouns need spaCy and its model en_core_web_sm.
        shuffle_seed: seed of the shuffles.
        kwargs: see KarpathyDataModule.

    Raises:
        UserError: see KarpathyDataModule; also an unknown kind, and spaCy or its model not installed.
    """

    def __init__(self, *, kinds: Sequence[str] | None = None, shuffle_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kinds = tuple(KINDS) if kinds is None else tuple(kinds)
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise UserError(f"data.kinds={list(self.kinds)}: name some of {', '.join(KINDS)}.")
        self.shuffle_seed = shuffle_seed

    def validate(self) -> None:
        super().validate()
        if self._tags:
            _tagger()

    def choices(self, split: str) -> list[Choice]:
        """One for each caption, in the order of `text_loader`."""
        captions = self.captions(split)
        texts = [text for _, _, text in captions]
        read = tag(texts) if self._tags else [[(token, "") for token in _TOKEN.findall(text)] for text in texts]
        found = []
        for (caption_id, image_id, text), tokens in zip(captions, read, strict=True):
            false = []
            for kind in self.kinds:
                rng = np.random.default_rng((self.shuffle_seed, list(KINDS).index(kind), abs(caption_id)))
                false.append(plain(" ".join(KINDS[kind](tokens, rng))))
            found.append(Choice(image_id, plain(text), tuple(false)))
        return found

    @property
    def _tags(self) -> bool:
        return any("nouns" in kind for kind in self.kinds)


def plain(text: str) -> str:
    """Lower case, no punctuation marks, at most 30 words."""
    words = _SPACED.sub(" ", _DROPPED.sub("", text.lower())).split()
    return " ".join(words[:MAX_WORDS])


def shuffle_nouns_and_adj(tokens: Tagged, rng: np.random.Generator) -> Tokens:
    """Nouns change places among themselves, and so do adjectives."""
    words = [word for word, _ in tokens]
    for tags in (_NOUNS, _ADJECTIVES):
        _exchange(words, [i for i, (_, kind) in enumerate(tokens) if kind in tags], rng)
    return words


def shuffle_allbut_nouns_and_adj(tokens: Tagged, rng: np.random.Generator) -> Tokens:
    """All words but nouns and adjectives change places."""
    words = [word for word, _ in tokens]
    _exchange(words, [i for i, (_, kind) in enumerate(tokens) if kind not in (*_NOUNS, *_ADJECTIVES)], rng)
    return words


def shuffle_within_trigrams(tokens: Tagged, rng: np.random.Generator) -> Tokens:
    """Each three words in a row change places."""
    return [word for three in _trigrams(tokens) for word in rng.permutation(three).tolist()]


def shuffle_trigrams(tokens: Tagged, rng: np.random.Generator) -> Tokens:
    """Groups of three words in a row change places."""
    threes = _trigrams(tokens)
    return [word for i in rng.permutation(len(threes)).tolist() for word in threes[i]]


KINDS: dict[str, Callable[[Tagged, np.random.Generator], Tokens]] = {
    "shuffle_nouns_and_adj": shuffle_nouns_and_adj,
    "shuffle_allbut_nouns_and_adj": shuffle_allbut_nouns_and_adj,
    "shuffle_within_trigrams": shuffle_within_trigrams,
    "shuffle_trigrams": shuffle_trigrams,
}
"""The release's four ways to shuffle a caption."""


def tag(texts: Iterable[str]) -> list[Tagged]:
    """Words with their tags, by spaCy's en_core_web_sm. Raises UserError where it is not installed."""
    return [[(token.text, token.tag_) for token in document] for document in _tagger().pipe(texts)]


def _tagger():
    try:
        import spacy

        return spacy.load("en_core_web_sm", disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        raise UserError(
            "data.kinds: shuffling nouns needs spaCy and its model: pip install 'crossvit[aro]', python -m spacy download en_core_web_sm; "
            "or set data.kinds=[shuffle_within_trigrams,shuffle_trigrams]"
        ) from None


def _exchange(words: Tokens, places: list[int], rng: np.random.Generator) -> None:
    for place, word in zip(places, [words[i] for i in rng.permutation(places).tolist()], strict=True):
        words[place] = word


def _trigrams(tokens: Tagged) -> list[Tokens]:
    words = [word for word, _ in tokens]
    return [words[i : i + 3] for i in range(0, len(words), 3)]
