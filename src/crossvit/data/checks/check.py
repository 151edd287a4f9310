"""The report on a dataset: what it holds by split, and findings, of which some are faults."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.captions import CaptionIndex
from crossvit.data.checks.look_alikes import NearPairs, same
from crossvit.data.checks.published import NEAR, differs, nearest, releases_of
from crossvit.data.checks.scan import Prints, scan, thumbnails
from crossvit.data.mixture import MixtureDataModule
from crossvit.data.module import CrossViTDataModule, SplitIndex
from crossvit.data.reading.annotations import text_id
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.pictures import CroppedPictures
from crossvit.data.shards.stream import StreamDataModule
from crossvit.errors import UserError

FAULTS = {
    "counts": "a split has nearly, but not quite, the size of a published one",
    "records": "records that cannot be used",
    "missing": "pictures whose file is missing",
    "undecodable": "pictures that do not decode",
    "ids": "ids that are used twice",
    "empty": "empty captions",
    "contradictions": "equal pictures and texts with different labels",
    "leaks": "pictures of one split that another holds byte for byte",
    "look_alike_leaks": "pictures of one split that look like one of another",
}
NOTES = {
    "size": "a split has another size than what was published",
    "duplicates": "pictures of a split that it holds more than once",
    "look_alikes": "pictures of a split that look like another one of it",
    "repeated_pairs": "equal pictures with equal texts",
    "shared_captions": "captions of one split that another holds, word for word",
    "one_label": "all labels of a split are the same",
    "incomplete": "not all pictures could be compared by their look",
}
EXAMPLES = 5
MAX_LOOKED_AT = 20_000
"""Pictures that are decoded again to be looked at side by side."""
MAX_PAIRS = 2_000_000
"""Pairs that are looked at."""

Progress = Callable[[str, int, int], None]


class Finding(NamedTuple):
    """One thing found. `check` is a key of FAULTS or NOTES; `split` one split, or two as "train, val"."""

    check: str
    split: str
    count: int
    text: str
    fault: bool
    examples: list[str]


class Split(NamedTuple):
    """What is kept of one split: 18 bytes a picture and 12 a caption, beside its index."""

    name: str
    index: SplitIndex
    prints: Prints | None
    bad: list[BadRecord]
    texts: np.ndarray  # int64 (captions,), see `text_id`
    words: np.ndarray  # int32 (captions,)


def check(
    data: CrossViTDataModule,
    splits: Sequence[str],
    decode: bool = True,
    workers: int = 1,
    allow: Collection[str] = (),
    progress: Progress = lambda split, done, total: None,
) -> dict[str, Any]:
    """Check a dataset and compare its splits.

    Args:
        data: any dataset but a mixture; its `max_bad_fraction` should be 1, or it stops at the first damaged share.
        splits: names of splits.
        decode: read every picture; False looks at the annotations, and at whether the files exist.
        workers: processes that read pictures.
        allow: keys of FAULTS that count as notes.
        progress: called with a split, the number of its pictures that are done, and of all.

    Returns:
        Plain json values: `dataset`, `root`, `release` (name, source, counts of each split; None where nothing is known), `splits` (by
        name), `findings` (a list, see Finding) and `faults`, their number.

    Raises:
        UserError: the layout is wrong, so that there is nothing to check, or a key of `allow` is not known.
    """
    if unknown := sorted(set(allow) - FAULTS.keys()):
        raise UserError(f"allow={unknown[0]} is not one of {', '.join(FAULTS)}.")
    if isinstance(data, StreamDataModule) and data.train_split in splits:
        raise UserError(
            "data=stream: its training split has no end to check; fetch the tars and check them by data=shards."
        )
    if isinstance(data, MixtureDataModule):
        raise UserError("data=mixture: check each of its sources by itself, e.g. data=coco.")
    read = [_read(data, name, decode, workers, progress) for name in splits]
    counts = {split.name: split.index.counts for split in read}
    release = nearest(releases_of(data), counts)
    findings = _sizes(release.splits if release else {}, counts)
    for split in read:
        findings += [*_damage(split), *_ids(split), *_texts(split), *_labels(split)]
    findings += _shared_captions(read)
    if decode:
        findings += _copies(read)
        findings += _look_alikes(read, workers)
    findings = [found._replace(fault=found.check in FAULTS and found.check not in allow) for found in findings]
    return {
        "dataset": type(data).__name__,
        "root": str(data.root),
        "release": None if release is None else release._asdict(),
        "splits": {split.name: _statistics(split) for split in read},
        "findings": [found._asdict() for found in sorted(findings, key=lambda found: not found.fault)],
        "faults": sum(found.fault for found in findings),
    }


def _finding(
    check: str, split: str, count: int, text: str | None = None, examples: Sequence[str] = ()
) -> list[Finding]:
    """A list of one finding, of none where nothing was counted."""
    text = f"{count:,} {(FAULTS | NOTES)[check]}" if text is None else text
    return [Finding(check, split, count, text, False, list(examples[:EXAMPLES]))] if count else []


def _read(data: CrossViTDataModule, name: str, decode: bool, workers: int, progress: Progress) -> Split:
    index = data.index(name)
    total, done = len(index.pictures), 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        progress(name, done, total)

    prints, bad = scan(index.pictures, workers, step) if decode else (None, index.pictures.missing())
    data.bad_samples.record(name, total, bad)
    texts = index.captions.texts if hasattr(index, "captions") else ()
    ids, words = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int32)
    for position, text in enumerate(texts):
        ids[position], words[position] = text_id(text), len(text.split())
    return Split(name, index, prints, bad, ids, words)


# one split -----------------------------------------------------------------------------------------------------------


def _sizes(published: dict[str, dict[str, int]], counts: dict[str, dict[str, int]]) -> list[Finding]:
    found = []
    for split in (split for split in counts if split in published):
        here, there = counts[split], published[split]
        if differs(there, here):
            share = here["samples"] / there["samples"]
            nearly = NEAR <= share <= 1 / NEAR
            text = f"{_listed({what: here.get(what, 0) for what in there})}; published are {_listed(there)}"
            found += _finding("counts" if nearly else "size", split, abs(there["samples"] - here["samples"]) or 1, text)
    return found


def _damage(split: Split) -> list[Finding]:
    missing = [record.path for record in split.bad if record.reason == "missing file"]
    damaged = [f"{path}: {reason}" for path, reason in split.bad if reason != "missing file"]
    records = [f"{path}: {reason}" for path, reason in split.index.defects]
    return [
        *_finding("records", split.name, len(records), examples=records),
        *_finding("missing", split.name, len(missing), examples=missing),
        *_finding("undecodable", split.name, len(damaged), examples=damaged),
    ]


def _ids(split: Split) -> list[Finding]:
    """Names of pictures, and ids of pictures and captions, that occur again. Most readers leave such records out: see `records`."""
    index, found = split.index, []
    if not isinstance(index.pictures, CroppedPictures):
        path, count = index.pictures.path, len(index.pictures)
        again = _repeats(np.fromiter((_hash(path(i)) for i in range(count)), np.uint64, count))
        paths = [path(int(i)) for i in again[:EXAMPLES]]
        found += _finding("ids", split.name, len(again), f"{len(again):,} pictures are listed again", paths)
    if isinstance(index, CaptionIndex):
        for what, ids in (("picture", index.image_ids), ("caption", index.caption_ids)):
            again = _repeats(ids)
            text = f"{len(again):,} {what} ids are used again"
            found += _finding("ids", split.name, len(again), text, [str(i) for i in ids[again[:EXAMPLES]]])
    return found


def _texts(split: Split) -> list[Finding]:
    empty = np.flatnonzero(split.words == 0)
    found = _finding("empty", split.name, len(empty), examples=[f"caption {i}" for i in empty[:EXAMPLES]])
    if not len(split.texts):
        return found
    sample, picture = _pairs(split)
    usable = picture != 0
    pair = picture[usable] * np.uint64(0x9E3779B97F4A7C15) + split.texts[usable].astype(np.uint64)
    again = np.flatnonzero(usable)[_repeats(pair)]
    texts = split.index.captions.texts
    examples = [texts[int(i)] for i in again[:EXAMPLES]]
    found += _finding("repeated_pairs", split.name, len(again), examples=examples)
    labels = getattr(split.index, "labels", None)
    if labels is not None:
        place = np.flatnonzero(usable)
        found += _contradictions(split, pair, labels[sample[place]], lambda i: texts[int(place[i])])
    return found


def _labels(split: Split) -> list[Finding]:
    labels = getattr(split.index, "labels", None)
    if labels is None:
        return []
    found = _finding("one_label", split.name, int(len(np.unique(labels)) == 1))
    if not len(split.texts) and split.prints is not None:  # classes of pictures
        whole = np.flatnonzero(split.prints.whole)
        path = split.index.pictures.path
        found += _contradictions(split, split.prints.content[whole], labels[whole], lambda i: path(int(whole[i])))
    return found


def _contradictions(split: Split, things: np.ndarray, labels: np.ndarray, name: Callable[[int], str]) -> list[Finding]:
    """Equal things with labels that differ; `name` names a thing by its position."""
    order = np.lexsort((labels, things))
    clash = np.flatnonzero((np.diff(things[order]) == 0) & (np.diff(labels[order]) != 0))
    examples = [name(i) for i in order[clash[:EXAMPLES] + 1].tolist()]
    return _finding("contradictions", split.name, len(clash), examples=examples)


def _pairs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """For each caption its sample, int64, and its picture (two: both), uint64, equal for equal files; 0 for a picture not to be read."""
    starts = split.index.captions.starts
    sample = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    if split.prints is None:
        known = np.arange(1, len(split.index.pictures) + 1, dtype=np.uint64)
    else:
        known = np.where(split.prints.whole, split.prints.content | np.uint64(1), np.uint64(0))
    rows = known[split.index.rows[sample]]
    if rows.ndim == 1:
        return sample, rows
    both = rows[:, 0] * np.uint64(0xD6E8FEB86659FD93) + rows[:, 1]
    return sample, np.where((rows == 0).any(axis=1), np.uint64(0), both)


def _statistics(split: Split) -> dict[str, Any]:
    index = split.index
    missing = sum(record.reason == "missing file" for record in split.bad)
    about: dict[str, Any] = {
        "counts": dict(index.counts),
        "pictures": len(index.pictures),
        "missing": missing,
        "undecodable": None if split.prints is None else len(split.bad) - missing,
        "unusable_records": len(index.defects),
    }
    if len(split.texts):
        distinct = len(np.unique(split.texts))
        about["captions"] = {
            "count": len(split.texts),
            "empty": int((split.words == 0).sum()),
            "duplicated": len(split.texts) - distinct,
            "words": _spread(split.words),
            "per_sample": _spread(np.diff(index.captions.starts)),
        }
    labels = getattr(index, "labels", None)
    if labels is not None:
        values, counts = np.unique(labels, return_counts=True)
        about["labels"] = {
            "values": len(values),
            "samples_of_a_label": _spread(counts),
            "largest_share": round(float(counts.max() / counts.sum()), 4),
        }
    if getattr(index, "relations", None) and any(index.relations):
        about["relations"] = dict(Counter(index.relations).most_common())
    return about


# between splits ------------------------------------------------------------------------------------------------------


def _shared_captions(splits: list[Split]) -> list[Finding]:
    found = []
    for a, b in _couples(splits):
        shared = np.flatnonzero(np.isin(b.texts, a.texts))
        examples = [b.index.captions.texts[int(i)] for i in shared[:EXAMPLES]]
        text = f"{len(shared):,} captions of {b.name} are in {a.name} too"
        found += _finding("shared_captions", f"{a.name}, {b.name}", len(shared), text, examples)
    return found


def _copies(splits: list[Split]) -> list[Finding]:
    found = []
    for split in splits:
        whole = np.flatnonzero(split.prints.whole)
        again = whole[_repeats(split.prints.content[whole])]
        paths = [split.index.pictures.path(int(i)) for i in again[:EXAMPLES]]
        found += _finding("duplicates", split.name, len(again), examples=paths)
    for a, b in _couples(splits):
        whole = np.flatnonzero(b.prints.whole)
        inside = a.prints.content[a.prints.whole]
        shared = whole[np.isin(b.prints.content[whole], inside)]
        paths = [b.index.pictures.path(int(i)) for i in shared[:EXAMPLES]]
        text = f"{len(shared):,} of {len(b.index.pictures):,} pictures of {b.name} are in {a.name}, byte for byte"
        found += _finding("leaks", f"{a.name}, {b.name}", len(shared), text, paths)
    return found


def _look_alikes(splits: list[Split], workers: int) -> list[Finding]:
    """Candidates by their looks, told from others by thumbnails. Copies are left out: they are counted already."""
    content = np.concatenate([split.prints.content for split in splits])
    looks = np.concatenate([split.prints.look for split in splits])
    of_split = np.repeat(np.arange(len(splits)), [len(split.index.pictures) for split in splits])
    place = np.concatenate([np.arange(len(split.index.pictures)) for split in splits])
    usable = np.flatnonzero(np.concatenate([split.prints.has_look for split in splits]))
    once = np.unique(np.stack([content[usable], of_split[usable].astype(np.uint64)]), axis=1, return_index=True)[1]
    usable = usable[np.sort(once)]
    near = NearPairs(looks[usable])
    pairs, complete = _candidates(near, usable, content)
    involved, back = np.unique(pairs, return_inverse=True)
    seen = thumbnails([(splits[of_split[i]].index.pictures, int(place[i])) for i in involved.tolist()], workers)
    back = back.reshape(-1, 2)
    alike = np.zeros(len(pairs), dtype=bool)
    for start in range(0, len(pairs), 4096):
        first, second = back[start : start + 4096].T
        alike[start : start + 4096] = same(seen[first], seen[second])
    pairs = pairs[alike]
    found = []
    for b, later in enumerate(splits):
        for a, earlier in enumerate(splits[: b + 1]):
            chosen = pairs[(of_split[pairs] == (a, b)).all(axis=1)]
            _, first = np.unique(chosen[:, 1], return_index=True)
            paths = [
                " ~ ".join(splits[of_split[i]].index.pictures.path(int(place[i])) for i in pair)
                for pair in chosen[first[:EXAMPLES]].tolist()
            ]
            if a == b:
                found += _finding("look_alikes", later.name, len(first), examples=paths)
            else:
                text = f"{len(first):,} of {len(later.index.pictures):,} pictures of {later.name} look like one of "
                text += f"{earlier.name} and are not the same file"
                found += _finding("look_alike_leaks", f"{earlier.name}, {later.name}", len(first), text, paths)
    if not complete or near.crowded:
        names = ", ".join(split.name for split in splits)
        text = f"so many pictures have nearly the same look that not all were compared: {NOTES['look_alikes']} are at least so many"
        found += _finding("incomplete", names, max(1, near.crowded), text)
    return found


def _candidates(near: NearPairs, usable: np.ndarray, content: np.ndarray) -> tuple[np.ndarray, bool]:
    """Pairs of pictures that are worth a look, int64 (p, 2), and whether these are all."""
    kept = [np.empty((0, 2), dtype=np.int64)]
    involved = np.zeros(len(content), dtype=bool)
    for some in near:
        pairs = usable[some]
        kept.append(pairs[content[pairs[:, 0]] != content[pairs[:, 1]]])
        involved[kept[-1]] = True
        if involved.sum() > MAX_LOOKED_AT or sum(map(len, kept)) > MAX_PAIRS:
            involved[np.flatnonzero(involved)[MAX_LOOKED_AT:]] = False
            pairs = np.concatenate(kept)
            return pairs[involved[pairs].all(axis=1)][:MAX_PAIRS], False
    return np.concatenate(kept), True


def _couples(splits: list[Split]) -> list[tuple[Split, Split]]:
    return [(a, b) for i, b in enumerate(splits) for a in splits[:i]]


def _repeats(values: np.ndarray) -> np.ndarray:
    """Positions of the values that have stood before."""
    _, first = np.unique(values, return_index=True)
    again = np.ones(len(values), dtype=bool)
    again[first] = False
    return np.flatnonzero(again)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())


def _spread(values: np.ndarray) -> dict[str, float]:
    mean, median = round(float(values.mean()), 2), float(np.median(values))
    return {"min": int(values.min()), "median": median, "mean": mean, "max": int(values.max())}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items())
