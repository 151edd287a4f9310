"""The sizes that published datasets have, and which of them a folder holds."""

from collections.abc import Mapping
from typing import NamedTuple

from crossvit.data.sugarcrepe import SIZES

NEAR = 0.9
"""A split with this share of a published one, or more, is taken for a copy of it that lacks something."""


class Release(NamedTuple):
    """A published dataset. `splits`: sizes under the names of `SplitIndex.counts`, by split."""

    name: str
    source: str
    splits: dict[str, dict[str, int]]


def _sizes(**splits: int) -> dict[str, dict[str, int]]:
    return {split: {"samples": size} for split, size in splits.items()}


def _captioned(**splits: tuple[int, int]) -> dict[str, dict[str, int]]:
    return {split: {"samples": pictures, "captions": captions} for split, (pictures, captions) in splits.items()}


_COCO = "counted in the files of https://cocodataset.org/#download"
_KARPATHY = "Karpathy and Fei-Fei 2015, counted in the files of caption_datasets.zip"
_VSR = "counted in https://github.com/cambridgeltl/visual-spatial-reasoning"
_ARO = "Yuksekgonul et al. 2023, https://github.com/mertyg/vision-language-models-are-bows; an item is two statements"

# by the class that reads it, and its `source` or `part` where it has several
RELEASES: dict[str, tuple[Release, ...]] = {
    "ImageNetDataModule": (
        Release(
            "ImageNet ILSVRC2012",
            "Russakovsky et al. 2015, table 2",
            {"train": {"samples": 1_281_167, "classes": 1000}, "val": {"samples": 50_000, "classes": 1000}},
        ),
        Release(
            "Tiny ImageNet",
            "CS231n, http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            {"train": {"samples": 100_000, "classes": 200}, "val": {"samples": 10_000, "classes": 200}},
        ),
    ),
    "COCODataModule": (
        Release("COCO captions 2017", _COCO, _captioned(train=(118_287, 591_753), val=(5_000, 25_014))),
        Release("COCO captions 2014", _COCO, _captioned(train=(82_783, 414_113), val=(40_504, 202_654))),
    ),
    "KarpathyDataModule:coco": (
        Release(
            "Karpathy's splits of COCO, restval in train",
            _KARPATHY,
            _captioned(train=(113_287, 566_747), val=(5_000, 25_010), test=(5_000, 25_010)),
        ),
        Release(
            "Karpathy's splits of COCO, restval left out",
            _KARPATHY,
            _captioned(train=(82_783, 414_113), val=(5_000, 25_010), test=(5_000, 25_010)),
        ),
        Release(
            "Karpathy's splits of COCO, five captions a picture",
            _KARPATHY,
            _captioned(train=(113_287, 566_747), val=(5_000, 25_000), test=(5_000, 25_000)),
        ),
    ),
    "KarpathyDataModule:flickr30k": (
        Release(
            "Karpathy's splits of Flickr30k",
            _KARPATHY,
            _captioned(train=(29_000, 145_000), val=(1_014, 5_070), test=(1_000, 5_000)),
        ),
    ),
    "KarpathyDataModule:flickr8k": (
        Release(
            "Karpathy's splits of Flickr8k",
            _KARPATHY,
            _captioned(train=(6_000, 30_000), val=(1_000, 5_000), test=(1_000, 5_000)),
        ),
    ),
    "VSRDataModule": (
        Release("VSR, split random", _VSR, _sizes(train=7_680, dev=1_097, test=2_195)),
        Release("VSR, split zeroshot", _VSR, _sizes(train=3_489, dev=340, test=1_222)),
        Release("VSR, split zeroshot as its README counts", _VSR, _sizes(train=4_713, dev=231, test=616)),
    ),
    "NLVRDataModule": (
        Release(
            "NLVR",
            "Suhr et al. 2017, six orders of boxes each; dev counted in its file: 989 sentences, the paper has 990",
            _sizes(train=74_460, dev=6 * 989, test=5_934, hidden=5_910),
        ),
    ),
    "NLVR2DataModule": (
        Release(
            "NLVR2",
            "Suhr et al. 2019, and the parts counted in https://github.com/lil-lab/nlvr",
            _sizes(
                train=86_373,
                dev=6_982,
                test1=6_967,
                balanced_dev=2_300,
                balanced_test1=2_316,
                unbalanced_dev=3_562,
                unbalanced_test1=3_536,
            ),
        ),
    ),
    "SugarCrepeDataModule": (
        Release(
            "SugarCrepe",
            "Hsieh et al. 2023, counted in https://github.com/RAIVNLab/sugar-crepe; an item is two statements",
            _sizes(test=2 * sum(SIZES.values())),
        ),
    ),
    "WinogroundDataModule": (
        Release("Winoground", "Thrush et al. 2022; an example is four statements", _sizes(test=4 * 400)),
    ),
    "ARODataModule:relation": (Release("ARO, VG-Relation", _ARO, _sizes(test=2 * 23_937)),),
    "ARODataModule:attribution": (Release("ARO, VG-Attribution", _ARO, _sizes(test=2 * 28_748)),),
}


def releases_of(data: object) -> tuple[Release, ...]:
    """The published datasets that a DataModule may hold."""
    for kind in type(data).__mro__:
        part = getattr(data, "source", None) or getattr(data, "part", None)
        found = RELEASES.get(kind.__name__) or RELEASES.get(f"{kind.__name__}:{part}")
        if found:
            return found
    return ()


def nearest(releases: tuple[Release, ...], counts: Mapping[str, Mapping[str, int]]) -> Release | None:
    """The release that differs in the fewest splits, of those the one nearest in size; None where no split is known, or there is more
    of one than was ever published.

    Args:
        counts: sizes by split.
    """
    known = [release for release in releases if counts.keys() & release.splits.keys() and not _larger(release, counts)]

    def distance(release: Release) -> tuple[int, int]:
        both = [(release.splits[split], counts[split]) for split in counts.keys() & release.splits.keys()]
        differing = sum(differs(published, here) for published, here in both)
        return differing, sum(abs(published["samples"] - here["samples"]) for published, here in both)

    return min(known, key=distance, default=None)


def differs(published: Mapping[str, int], here: Mapping[str, int]) -> bool:
    """Whether a split has other sizes than were published."""
    return any(here.get(what) != size for what, size in published.items())


def _larger(release: Release, counts: Mapping[str, Mapping[str, int]]) -> bool:
    both = counts.keys() & release.splits.keys()
    return any(NEAR * counts[split]["samples"] > release.splits[split]["samples"] for split in both)
