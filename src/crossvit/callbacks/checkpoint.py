"""Checkpoints of a stage being trained: whole on disk before they count, and looked through before one is gone on from."""

import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from crossvit.errors import UserError
from crossvit.report.atomic import naming, sync

log = logging.getLogger(__name__)

FOLDER, LAST = "checkpoints", "last.ckpt"
PARTS = {"state_dict", "loops", "global_step"}  # of a checkpoint that training can go on from


class StageCheckpoint(ModelCheckpoint):
    """Keeps `<trainer.default_root_dir>/checkpoints/last.ckpt`, whatever the loggers are: an interrupted stage goes on from it.

    A stage's result is its last weights, so no best ones are kept. keep: how many checkpoints stay: `last.ckpt`, the one before as
    `last-1.ckpt`, and so on. A new one is written under a name of its own, brought to disk and read back before the others move on by a
    place and the oldest goes: a job killed while writing, or a full disk, leaves those before.

    One that would be due where validation or the end of the epoch follows is written behind these: a checkpoint between the two would go
    on without them.

    Raises UserError where it cannot be written and for two distances, ValueError for keep < 1.
    """

    def __init__(
        self, every_n_epochs: int | None = None, every_n_train_steps: int | None = None, keep: int = 2
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1")
        if every_n_epochs and every_n_train_steps:
            raise UserError(
                f"callbacks.checkpoint.every_n_train_steps={every_n_train_steps} takes the place of every_n_epochs={every_n_epochs}: "
                "set callbacks.checkpoint.every_n_epochs=null with it"
            )
        super().__init__(
            filename=Path(LAST).stem,
            enable_version_counter=False,
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
        )
        self.keep = keep
        self._due = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).resolve() / FOLDER)
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        every = self._every_n_train_steps
        if every > 0 and trainer.global_step % every == 0 and not self._should_skip_saving_checkpoint(trainer):
            self._due = True
        if self._due and at_rest(trainer):
            self.save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._due:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Writes one now, unless that of this step is there."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_checkpoint(trainer, str(Path(self.dirpath) / LAST))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        path, partial = Path(filepath), Path(f"{filepath}.partial")
        try:
            for logger in trainer.loggers:
                logger.save()  # else a resumed log lacks what was in memory
            super()._save_checkpoint(trainer, str(partial))
            if trainer.is_global_zero:
                self._settle(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise UserError(
                f"{path}: the checkpoint cannot be written ({error.strerror or error}); {_what_is_kept(path)}\n"
                "Make room, or give another place with paths.runs=DIR, and start the same command again."
            ) from error
        self._last_checkpoint_saved = filepath
        self._due = False

    def _settle(self, partial: Path, path: Path) -> None:
        """Makes a written file the last checkpoint."""
        reason = damage(partial)
        if reason is not None:
            raise OSError(f"read back, it is damaged: {reason}")
        for place in range(self.keep - 1, 0, -1):
            if (newer := before(path, place - 1)).exists():
                os.replace(newer, before(path, place))
        os.replace(partial, path)
        sync(path.parent)
        for old in olders(path)[self.keep - 1 :]:
            old.unlink()


class WholeFile(TorchCheckpointIO):
    """Writes straight into the file it is told and brings it to disk. Lightning's own builds a second copy in memory and moves it through
    the system's folder for temporary files."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), path.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch's writer hides what the system said
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            file.flush()
            os.fsync(file.fileno())


def at_rest(trainer: L.Trainer) -> bool:
    """Whether a batch has ended with a step of the optimizer and the next batch follows: a checkpoint from here resumes exactly.

    Before a validation or the end of an epoch it does not: Lightning would take these for done.
    """
    loop = trainer.fit_loop.epoch_loop
    return not (
        loop._should_accumulate()
        or loop._num_ready_batches_reached()
        or loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    )


def before(path: Path, place: int) -> Path:
    """Where the checkpoint `place` places before the last lies: `last.ckpt` itself, `last-1.ckpt`, ..."""
    return path if place == 0 else path.with_name(f"{path.stem}-{place}{path.suffix}")


def olders(path: Path) -> list[Path]:
    """The checkpoints before the last one, the newest first."""
    found = [p for p in path.parent.glob(f"{path.stem}-*{path.suffix}") if p.stem.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda p: int(p.stem.rpartition("-")[2]))


def newest_checkpoint(directory: Path) -> Path | None:
    """The checkpoint that the training below `directory` goes on from, None where there is no sound one.

    A damaged one is put aside as `<name>.damaged`, with a warning that names it and the one that is taken in its place.
    """
    last = directory / FOLDER / LAST
    damaged: list[str] = []
    for path in [last, *olders(last)]:
        if not path.exists():
            continue
        reason = damage(path)
        if reason is None:
            if damaged:
                log.warning("%s: going on from %s", "; ".join(damaged), path)
            return path
        damaged.append(f"checkpoint {path} is damaged ({reason})")
        os.replace(path, f"{path}.damaged")
    if damaged:
        log.warning("%s: the stage is trained from its start again", "; ".join(damaged))
    return None


def keep_last_only(directory: Path) -> None:
    """What a finished stage needs no more: the checkpoints before its last, what was put aside, what was half written."""
    for path in (directory / FOLDER).glob("*"):
        if path.name != LAST:
            path.unlink(missing_ok=True)


def forget_checkpoints(directory: Path) -> None:
    """For a training that there is nothing to go on from."""
    shutil.rmtree(directory / FOLDER, ignore_errors=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file, None where nothing is. Its parts carry checksums (zip's CRC-32), and all of them are read."""
    try:
        if path.stat().st_size == 0:
            return "it is empty"
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            return f"the checksum of {broken} does not hold"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return "it holds more than plain data, and is not loaded"
    except Exception as error:  # whatever a reader makes of bytes that are not what was written
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    missing = PARTS - set(content) if isinstance(content, dict) else PARTS
    return f"it lacks {', '.join(sorted(missing))}" if missing else None


def _what_is_kept(path: Path) -> str:
    there = [p for p in (path, *olders(path)) if p.exists()]
    return f"{there[0].name} there is that of an earlier step" if there else "there is none yet"
