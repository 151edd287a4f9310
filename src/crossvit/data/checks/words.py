"""A report of `check` for people to read."""

from collections.abc import Iterator
from typing import Any


def lines(report: dict[str, Any]) -> Iterator[str]:
    """What it is, a few lines for each split, then the findings, faults first."""
    yield f"{report['dataset']}: {report['root']}"
    yield f"release: {_release(report)}"
    for name, split in report["splits"].items():
        yield f"{name}: {_counts(split['counts'])}"
        damaged = "not read" if split["undecodable"] is None else f"{split['undecodable']:,} do not decode"
        yield (
            f"  pictures  {split['pictures']:,}; {split['missing']:,} missing, {damaged}; "
            f"{split['unusable_records']:,} records cannot be used"
        )
        if "captions" in split:
            texts = split["captions"]
            yield (
                f"  captions  {texts['count']:,}, {_spread(texts['per_sample'])} a sample; {_spread(texts['words'])} words; "
                f"{texts['empty']:,} empty, {texts['duplicated']:,} are repetitions"
            )
        if "labels" in split:
            labels = split["labels"]
            yield (
                f"  labels    {labels['values']:,}, {_spread(labels['samples_of_a_label'])} samples each; "
                f"the largest has {100 * labels['largest_share']:.1f} %"
            )
    for found in report["findings"]:
        yield f"{'FAULT' if found['fault'] else 'note '} [{found['check']}] {found['split']}: {found['text']}"
        yield from (f"        {example}" for example in found["examples"])
    yield f"{report['faults']} faults" if report["faults"] else "no fault"


def _release(report: dict[str, Any]) -> str:
    release = report["release"]
    if release is None:
        return "none is known of this dataset"
    differing = {found["split"] for found in report["findings"] if found["check"] in ("counts", "size")}
    checked = [split for split in report["splits"] if split in release["splits"]]
    if not differing:
        return f"{release['name']} ({', '.join(checked)} as published)"
    return f"none; the nearest is {release['name']} ({release['source']})"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.items())


def _spread(values: dict[str, float]) -> str:
    if values["min"] == values["max"]:
        return f"{values['min']:,}"
    return f"{values['min']:,} to {values['max']:,} (mean {values['mean']:,})"
