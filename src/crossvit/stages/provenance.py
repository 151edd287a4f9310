"""Where a result comes from: code, libraries, command."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from crossvit.redaction import redact

LIBRARIES = ("crossvit", "torch", "torchvision", "lightning", "timm", "open_clip_torch", "hydra-core", "numpy")


def environment() -> dict[str, Any]:
    """git_commit (with `+` where files differ from it, None outside of a checkout), versions, command (without secrets).

    To be asked for before the work begins: a checkout may move on while a process that has read its code still runs.
    """
    return {
        "git_commit": git_commit(),
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in LIBRARIES}},
        "command": shlex.join([Path(sys.argv[0]).name, *map(redact, sys.argv[1:])]),
    }


def timestamp() -> str:
    """Now, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def git_commit(directory: Path = Path(__file__).parent) -> str | None:
    """The commit of the checkout that `directory` lies in."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or not (Path(top) / "src" / "crossvit").is_dir():  # some other project's checkout
        return None
    commit = git("rev-parse", "HEAD")
    return commit and commit + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
