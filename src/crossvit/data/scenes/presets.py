"""The three difficulties and how many samples each split holds."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from crossvit.data.scenes.graph import CLASSES, SIZES, TEXTURES
from crossvit.errors import UserError


@dataclass(frozen=True, slots=True)
class Preset:
    """What scenes and captions of one difficulty look like.

    forms: relative frequency of each caption form (`describe.FORMS`).
    kinds: the twins it makes (`twins.KINDS`).
    diagonal: evaluation splits mention only pairs in different rows and columns, so that reading order does not settle
    who is left of whom. Training splits mention the others too: on pairs of one row, which word means what is plain.
    grid: cells in a row and in a column, one object a cell at most.
    diameters: of the size words, as fractions of the image side.
    subject_first: spatial captions name the subject before the object.
    partial: phrases may leave attributes out and may name size and texture; otherwise they are colour and shape.
    counts: samples of a split, where they differ from DEFAULT_SIZES.
    """

    name: str
    min_objects: int
    max_objects: int
    forms: Mapping[str, float]
    kinds: tuple[str, ...]
    sizes: tuple[str, ...] = ("large",)
    textures: tuple[str, ...] = ("plain",)
    diagonal: bool = False
    partial: bool = False
    grid: int = 2
    diameters: Mapping[str, float] = field(default_factory=lambda: {"small": 0.28, "large": 0.40})
    subject_first: bool = False
    counts: Mapping[str, int] = field(default_factory=dict)


_RELATION_KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_att", "swap_obj")

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "easy",
            2,
            2,
            {"relation": 1.0},
            _RELATION_KINDS,
            subject_first=True,
        ),
        # Here and in "hard" a share of the scenes has two objects, and half the templates of "hard" are those of "easy": what a model
        # has learned stays right, and it goes on from it.
        Preset(
            "medium",
            2,
            4,
            {"relation": 1.0},
            _RELATION_KINDS,
            diagonal=True,
            subject_first=True,
            counts={"vsr_train": 24000},
        ),
        Preset(
            "hard",
            2,
            4,
            {
                "relation": 0.3,
                "size": 0.1,
                "not_related": 0.1,
                "and": 0.1,
                "exists": 0.1,
                "absent": 0.1,
                "count": 0.1,
                "compare": 0.1,
            },
            (*_RELATION_KINDS, "replace_count", "add_obj", "add_att", "negation"),
            sizes=SIZES,
            textures=TEXTURES,
            diagonal=True,
            partial=True,
            counts={"vsr_train": 24000},
        ),
    )
}

# ImageNet counts images a class, COCO images, VSR and NLVR2 statements.
DEFAULT_SIZES: dict[str, int] = {
    "imagenet_train": 60,
    "imagenet_val": 20,
    "coco_train": 8000,
    "coco_val": 500,
    "vsr_train": 12000,
    "vsr_dev": 500,
    "vsr_test": 1000,
    "vsr_test_compositional": 1000,
    "nlvr2_train": 1000,
    "nlvr2_dev": 200,
    "nlvr2_test1": 400,
}
SMOKE_SIZES: dict[str, int] = {
    "imagenet_train": 2,
    "imagenet_val": 1,
    "coco_train": 32,
    "coco_val": 16,
    "vsr_train": 80,
    "vsr_dev": 40,
    "vsr_test": 40,
    "vsr_test_compositional": 40,
    "nlvr2_train": 16,
    "nlvr2_dev": 8,
    "nlvr2_test1": 8,
}


def _suggest(word: str, choices) -> str:
    near = difflib.get_close_matches(str(word), list(choices), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def find_preset(name: str) -> Preset:
    """The preset called `name`. Raises UserError for any other name."""
    if name not in PRESETS:
        raise UserError(f"scenes preset {name!r} does not exist: {_suggest(name, PRESETS)}choose {', '.join(PRESETS)}.")
    return PRESETS[name]


def resolve_sizes(sizes: Mapping[str, int] | str | None, preset: Preset) -> dict[str, int]:
    """Counts of every split: those of the preset, the small set "smoke", or those of the preset with some replaced.

    Raises UserError for an unknown key, or a count that is not a positive integer (for VSR and NLVR2: a multiple of 4,
    because statements come in balanced groups of two captions by two pictures).
    """
    if isinstance(sizes, str):
        if sizes != "smoke":
            raise UserError(
                f"scenes sizes {sizes!r} is unknown: use 'smoke', or a mapping of {', '.join(DEFAULT_SIZES)}."
            )
        return dict(SMOKE_SIZES)
    resolved = {**DEFAULT_SIZES, **preset.counts}
    for key, count in (sizes or {}).items():
        if key not in DEFAULT_SIZES:
            hint = _suggest(key, DEFAULT_SIZES)
            raise UserError(f"scenes sizes has no key {key!r}: {hint}keys are {', '.join(DEFAULT_SIZES)}.")
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise UserError(f"scenes sizes.{key}={count!r}: give a whole number of at least 1.")
        if key.startswith(("vsr", "nlvr2")) and count % 4:
            raise UserError(
                f"scenes sizes.{key}={count}: give a multiple of 4 (statements come in balanced groups of 4)."
            )
        resolved[key] = count
    return resolved


def count_images(sizes: Mapping[str, int]) -> int:
    """How many pictures a corpus of these sizes holds."""
    imagenet = len(CLASSES) * (sizes["imagenet_train"] + sizes["imagenet_val"])
    coco = sizes["coco_train"] + sizes["coco_val"]
    vsr = sum(count for key, count in sizes.items() if key.startswith("vsr")) // 2
    nlvr2 = sum(count for key, count in sizes.items() if key.startswith("nlvr2"))
    return imagenet + coco + vsr + nlvr2
