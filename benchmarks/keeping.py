"""How every benchmark ends: what it found as json, with the versions, the machine, the commit and the command that it comes from."""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from crossvit.stages.provenance import git_commit


def add_out(parser: argparse.ArgumentParser) -> None:
    """The option that `keep` takes."""
    parser.add_argument("--out", type=Path, help="file for the json as well")


def keep(found: dict, out: Path | None = None, packages: Sequence[str] = ("torch",)) -> None:
    """Prints `found` and where it comes from, and writes the same to `out`. packages: whose versions are told; those that `found` holds
    under `versions` stand beside them."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    about = {"machine": platform.machine(), "git_commit": git_commit(), "command": " ".join(["python", *sys.argv])}
    text = json.dumps({**found, "versions": versions | found.get("versions", {}), **about}, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"{text}\n")
