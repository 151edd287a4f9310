"""Finished stages on disk, each under its fingerprint, and the right to train one.

    <root>/<fingerprint>/           weights.safetensors, config.yaml, provenance.json, complete.json, and what training left there
    <root>/.partial-<fingerprint>/  a stage being trained, or one whose job was killed
    <root>/.damaged-<fingerprint>-<n>/

A stage becomes visible by one rename, after its files are on disk: what a killed job leaves never looks finished. Its directory keeps
its name, so that the next job goes on from the checkpoint in it.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossvit.report.atomic import naming, sync
from crossvit.stages.provenance import environment, timestamp

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

WEIGHTS, CONFIG, PROVENANCE, MARKER = "weights.safetensors", "config.yaml", "provenance.json", "complete.json"


@dataclass(frozen=True)
class StoredStage:
    """A finished stage: its directory, its fingerprint and the record of how it came to be."""

    path: Path
    fingerprint: str
    provenance: dict[str, Any] = field(hash=False)

    @property
    def weights(self) -> Path:
        """The trained weights, safetensors."""
        return self.path / WEIGHTS

    @property
    def config(self) -> Path:
        """The resolved config, yaml."""
        return self.path / CONFIG

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file: two stages with the same one have the same weights to the last bit."""
        return json.loads((self.path / MARKER).read_text(encoding="utf-8"))[WEIGHTS]


class StageClaim:
    """The right to train one stage, held by one process.

    stored: the finished stage, where another job trained it in the meantime; else None. directory: where to train; checkpoints in
    it are those of a job that was killed.
    """

    def __init__(self, store: "StageStore", fingerprint: str, stored: StoredStage | None) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self.stored = stored
        self.directory = store.root / f".partial-{fingerprint}"
        if stored is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._environment = environment()

    def commit(self, weights: "Mapping[str, Tensor]", config: str, provenance: Mapping[str, Any]) -> StoredStage:
        """Writes the result into the working directory and makes it the stored stage.

        weights: name -> tensor. config: the resolved config as yaml. provenance: json values; code version, library versions and command
        of the time of the claim are added. Raises ValueError where the stage is stored already.
        """
        if self.stored is not None:
            raise ValueError(f"stage {self._fingerprint} is stored already")
        _write(self.directory / CONFIG, config)
        _write_weights(self.directory / WEIGHTS, weights)
        record = {"fingerprint": self._fingerprint, **self._environment, "finished": timestamp(), **provenance}
        _write(self.directory / PROVENANCE, json.dumps(record, indent=2, default=str))
        marker = {name: _sha256(self.directory / name) for name in (WEIGHTS, CONFIG, PROVENANCE)}
        _write(self.directory / MARKER, json.dumps(marker, indent=2))
        final = self._store.root / self._fingerprint
        os.replace(self.directory, final)
        sync(self._store.root)
        self.stored = StoredStage(final, self._fingerprint, record)
        return self.stored


class StageStore:
    """The stages below `root`. Several processes, on one machine or on a shared disk, may use one store."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).resolve()

    def get(self, fingerprint: str) -> StoredStage | None:
        """The finished stage, or None.

        One whose files do not match their hashes is put aside with a warning, so that it is trained again.
        """
        path = self.root / fingerprint
        if not path.is_dir():
            return None
        try:
            return open_stage(path)
        except DamagedStage as error:
            self._put_aside(path, str(error))
            return None

    @contextlib.contextmanager
    def claim(self, fingerprint: str, label: str = "stage") -> Iterator[StageClaim]:
        """Waits until no other process trains this stage, then holds the right to do so while the context lasts.

        The system takes the right back from a process that dies. label: what to call the stage in messages.
        """
        from filelock import FileLock, Timeout

        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / f".lock-{fingerprint}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s (%s): another job is training it, waiting", label, fingerprint)
            lock.acquire()
        try:
            yield StageClaim(self, fingerprint, self.get(fingerprint))
        finally:
            lock.release()

    def _put_aside(self, path: Path, reason: str) -> None:
        for number in range(1000):
            aside = self.root / f".damaged-{path.name}-{number}"
            if aside.exists():
                continue
            try:
                path.rename(aside)
            except FileNotFoundError:  # another process was faster
                return
            log.warning(
                "stored stage %s is damaged (%s): moved to %s, it will be trained again", path.name, reason, aside
            )
            return


class DamagedStage(Exception):
    """What is wrong with a stage's directory."""


def open_stage(path: Path) -> StoredStage:
    """The finished stage in a directory, which is left as it is. Raises DamagedStage where a file does not match its hash."""
    reason = _damage(path)
    if reason is not None:
        raise DamagedStage(reason)
    return StoredStage(path, path.name, json.loads((path / PROVENANCE).read_text()))


def _damage(path: Path) -> str | None:
    """What is wrong with a stage directory, None where nothing is."""
    try:
        marker = json.loads((path / MARKER).read_text())
        expected = {name: marker[name] for name in (WEIGHTS, CONFIG, PROVENANCE)}
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MARKER} is missing or unreadable"
    for name, digest in expected.items():
        try:
            if _sha256(path / name) != digest:
                return f"{name} has changed"
        except OSError:
            return f"{name} cannot be read"
    return None


def _write_weights(path: Path, weights: "Mapping[str, Tensor]") -> None:
    from safetensors.torch import save

    seen: set[int] = set()
    separate = {}
    for name, value in weights.items():
        value = value.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:  # tied weights: safetensors wants one storage a name
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        separate[name] = value
    with naming(path):  # safetensors' own writer tells a full disk in words only
        path.write_bytes(save(separate))
        sync(path)


def _write(path: Path, text: str) -> None:
    with naming(path):
        path.write_text(text, encoding="utf-8")
        sync(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
