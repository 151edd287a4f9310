"""Files of a corpus: pictures rendered in batches, annotations as json; every byte is hashed on its way out."""

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from crossvit.data.scenes.graph import Scene
from crossvit.data.scenes.render import render

_BATCH = 256
_FORMATS = {
    ".png": {"format": "PNG", "compress_level": 1},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
}


class CorpusWriter:
    """Writes below `root` and keeps what the manifest needs. Paths are relative, with forward slashes.

    `progress(done, total)` is called after each batch of pictures.
    """

    def __init__(self, root: Path, image_size: int, total: int, progress: Callable[[int, int], None] | None = None):
        self.root = root
        self.image_size = image_size
        self.total = total
        self.progress = progress
        self.counts: dict[str, dict[str, int]] = defaultdict(dict)
        self.annotations: dict[str, dict] = {}
        self.folders: dict[str, dict[str, int]] = defaultdict(lambda: {"files": 0, "bytes": 0})
        self._digests: dict[str, str] = {}

    def images(self, pictures: list[tuple[str, Scene]]) -> None:
        """Render and write (path, scene) pairs; the format follows the ending of the path."""
        for folder in {path.rpartition("/")[0] for path, _ in pictures}:
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for start in range(0, len(pictures), _BATCH):
            batch = pictures[start : start + _BATCH]
            for (path, _), pixels in zip(batch, render([scene for _, scene in batch], self.image_size), strict=True):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, **_FORMATS[Path(path).suffix.lower()])
                self._write_image(path, buffer.getvalue())
            if self.progress is not None:
                self.progress(len(self._digests), self.total)

    def _write_image(self, path: str, data: bytes) -> None:
        (self.root / path).write_bytes(data)
        self._digests[path] = hashlib.sha256(data).hexdigest()
        folder = self.folders[path.rpartition("/")[0]]
        folder["files"] += 1
        folder["bytes"] += len(data)

    def text(self, path: str, text: str) -> None:
        """Write an annotation file."""
        data = text.encode()
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        self.annotations[path] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}

    def json(self, path: str, data: object) -> None:
        """Write data as one json document."""
        self.text(path, json.dumps(data, separators=(",", ":")))

    def json_lines(self, path: str, rows: list[dict]) -> None:
        """Write one json object a line."""
        self.text(path, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def images_sha256(self) -> str:
        """The digest `Manifest.images_sha256` describes."""
        lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(self._digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()
