"""True and false statements from captions: each caption beside its own picture and beside another's, of which it is taken to be false."""

import logging
from typing import Any

import numpy as np

from crossvit.data.captions import CaptionIndex
from crossvit.data.coco import COCODataModule, find_captions, read_captions
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.annotations import text_id
from crossvit.data.sampler import Draw
from crossvit.data.vlr import Statement, StatementDataModule, build_index
from crossvit.errors import UserError

log = logging.getLogger(__name__)


class COCOStatementDataModule(StatementDataModule):
    """Matching pairs from COCO captions, in which neither side alone says anything of the answer.

    Every caption is true once and false once, and every picture as often as the other, so whoever sees one side is at chance; but for what
    `draw_false` leaves out and for damaged pictures. That a caption is false of the other picture is drawn and not checked: a few hold of
    both. The two statements of a caption are one sentence, which is right where both are.

    Args:
        draw_seed: what the false pairs are drawn by; not `seed`, so that all runs are tested on the same statements.
        kwargs: see PairDataModule.

    Raises:
        UserError: see PairDataModule; also a `draw_seed` that is no whole number from 0, and captions none of which can be drawn a picture.
    """

    LAYOUT = """\
  <root>/train2017/*.jpg    <root>/val2017/*.jpg            (or train2014/, val2014/)
  <root>/annotations/captions_train2017.json    <root>/annotations/captions_val2017.json"""
    DOWNLOAD = COCODataModule.DOWNLOAD

    def __init__(self, *, draw_seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(draw_seed, int) or draw_seed < 0:
            raise UserError(f"data.draw_seed={draw_seed} must be a whole number from 0.")
        self.draw_seed = draw_seed

    def _read_split(self, split: str) -> PairIndex:
        found = find_captions(self.root, split)
        if isinstance(found, str):
            raise self._layout_error(found)
        file, folder = found
        captions = read_captions(file, folder)
        own, other = draw_false(captions, self.draw_seed)
        if alone := int((other < 0).sum()):
            log.info("%s: %d captions are left out: no other picture was drawn that they are false of", file, alone)
        if len(own) and alone == len(own):
            raise UserError(
                f"{file}: no caption has another picture to be false of: it takes two, with captions of different words."
            )
        names, ids = list(captions.pictures.names), captions.caption_ids.tolist()
        statements = [
            Statement((names[picture],), text, label, sentence=str(caption_id))
            for text, caption_id, true_of, false_of in zip(captions.captions.texts, ids, own, other, strict=True)
            for picture, label in ((true_of, 1), (false_of, 0))
            if false_of >= 0
        ]
        return build_index(statements, [folder], file, captions.defects)


def draw_false(captions: CaptionIndex, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of c captions the picture that it was written for and one that it is taken to be false of, int64 (c,) each, as positions.

    The pictures' first captions go round in a circle of random order, one place each, their second captions in another, and so on, so that
    a picture gets as many false captions as it has true ones. -1, left out, for a caption that has no neighbour, and for one whose
    neighbour has a caption of the same words: that takes a true statement from one picture and a false one from another.
    """
    counts = np.diff(captions.captions.starts)
    own = np.arange(len(counts)).repeat(counts)
    rank = np.arange(len(own)) - captions.captions.starts[:-1].repeat(counts)
    other = own.copy()
    rng = np.random.default_rng((seed, Draw.FALSE_PAIRS))
    for k in range(counts.max(initial=0)):
        circle = rng.permutation(np.flatnonzero(rank == k))
        other[circle] = own[np.roll(circle, 1)]
    words = [text_id(text) for text in captions.captions.texts]
    told = set(zip(own.tolist(), words, strict=True))
    true_too = [pair in told for pair in zip(other.tolist(), words, strict=True)]
    return own, np.where(true_too, -1, other)
