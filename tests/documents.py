"""The documents of this repository as tests see them: their code blocks and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ((?:src|conf)/\S+)\n")


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document that name a language."""
    return [Block(*found) for found in _FENCE.findall(document.read_text(encoding="utf-8"))]


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every `crossvit ...` line in a bash block, comments left out and continued lines joined."""
    for block in blocks(document):
        if block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["crossvit"]:
                    yield words[1:]


def files(document: Path) -> dict[str, str]:
    """The blocks whose first line names a file of the checkout: path -> text."""
    found = [(_FILE.match(block.text), block.text) for block in blocks(document)]
    return {match.group(1): text for match, text in found if match}
