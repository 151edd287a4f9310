"""The LightningDataModule that all datasets share."""

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from crossvit.data.batches import ImageBatch, PairBatch
from crossvit.data.datasets import Loaded
from crossvit.data.loader import EpochLoader
from crossvit.data.reading.annotations import release_free_memory
from crossvit.data.reading.bad_samples import BadRecord, BadSamples
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import EpochSampler
from crossvit.data.tokenizer import Tokenizer
from crossvit.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    Fit,
    Normalize,
    Preprocess,
    TrainTransform,
)
from crossvit.errors import UserError

log = logging.getLogger(__name__)


def per_device(batch_size: int, devices: int) -> int:
    """The share of one device in the batch over all of them. Raises UserError, with the nearest that divides, for one that does not."""
    if batch_size % devices:
        near = max(1, round(batch_size / devices)) * devices
        raise UserError(
            f"data.batch_size={batch_size} is the batch over all devices and does not divide by {devices}: try {near}."
        )
    return batch_size // devices


class SplitIndex(Protocol):
    """What a dataset's reader returns for one split.

    Attributes:
        pictures: the files.
        files: annotation files that were read.
        defects: records that could not be used.
        counts: sizes by name, `samples` among them.
    """

    pictures: Pictures
    files: list[Path]
    defects: list[BadRecord]
    counts: dict[str, int]


class Position(NamedTuple):
    """Where training stands: `start` batches of `epoch` are done."""

    epoch: int
    start: int


class CrossViTDataModule(LightningDataModule):
    """Order, augmentation, damaged samples and resume, the same for every dataset.

    Batches leave the loaders as uint8 and become normalised floats on the device in `on_after_batch_transfer`; without
    a trainer call `normalize`. The loaders also work without a trainer (as rank 0 of 1) and without `setup`.

    Args:
        root: folder of the dataset, laid out as the class says.
        image_size: side of the pictures in pixels.
        batch_size: samples of a training step over all devices.
        eval_batch_size: samples of an evaluation step over all devices; None: `batch_size`.
        num_workers: worker processes for each loader.
        seed: seed of the order and the augmentation.
        mean, std: channel statistics in [0, 1].
        train_scale: share of a picture's area that training crops keep; [1, 1] keeps the whole picture.
        flip: mirror pictures in training. Pictures whose caption says left or right are never mirrored.
        fit: how a picture becomes square: `crop` (centre) or `squash` (whole).
        cache: keep the decoded pictures in memory; all must be of one size.
        max_bad_fraction: largest share of damaged samples in a split.
        bad_samples_dir: folder for `bad_samples.jsonl`; None: the trainer's `default_root_dir`.
        train_split, val_split, test_split: names of the splits; None where a dataset lacks one.
        tokenizer: makes the tokens of image-text data (PairDataModule); it must be the one of the text encoder.

    Raises:
        UserError: a value out of range (named as `data.<key>`).
    """

    # in evaluation a rank may have fewer batches than another, or none
    allow_zero_length_dataloader_with_multiple_devices = True

    LAYOUT: str
    """The expected tree, shown when something is not found."""
    DOWNLOAD: str = ""
    """Where it comes from, how large it is and under which licence; shown beside the tree where there is nothing yet."""

    def __init__(
        self,
        root: str | Path,
        image_size: int,
        batch_size: int,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        train_scale: tuple[float, float] = (0.5, 1.0),
        flip: bool = True,
        fit: Fit = "crop",
        cache: bool = False,
        max_bad_fraction: float = 0.01,
        bad_samples_dir: str | Path | None = None,
        train_split: str | None = "train",
        val_split: str | None = "val",
        test_split: str | None = "val",
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        for key, value in {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "image_size": image_size,
        }.items():
            if value is not None and value < 1:
                raise UserError(f"data.{key}={value} must be at least 1.")
        if num_workers < 0 or seed < 0:
            raise UserError(f"data.num_workers={num_workers} and data.seed={seed} must not be negative.")
        try:
            self.normalize = Normalize(mean, std)
            self.preprocess = Preprocess(image_size, fit, mean, std)
            self._train_transform = TrainTransform(image_size, tuple(train_scale), flip=flip, fit=fit)
            self._eval_transform = EvalTransform(image_size, fit)
        except ValueError as error:
            raise UserError(f"data: {error}") from None
        self.root = Path(root)
        self.image_size = image_size
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.cache = cache
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split
        self.tokenizer = tokenizer
        self.bad_samples = BadSamples(max_bad_fraction, bad_samples_dir)
        self.truncated_texts = 0
        self._indices: dict[str, SplitIndex] = {}
        self._manifests: dict[tuple[str, ...], dict[str, Any]] = {}

    # what a dataset defines -----------------------------------------------------------------------------------------

    @abstractmethod
    def _read_split(self, split: str) -> SplitIndex:
        """Read the annotations of a split. Raises UserError where the layout is wrong."""

    @abstractmethod
    def _train_dataset(self, split: str) -> Dataset:
        """The training samples of a split."""

    @abstractmethod
    def eval_loaders(self, split: str) -> EpochLoader | list[EpochLoader]:
        """The loaders that an evaluation of a split takes, each sample once, in the dataset's order."""

    # the surface ----------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Check everything that can be checked without decoding, before anything long starts.

        Raises:
            UserError: the root, a split, an annotation file or too many pictures are missing or damaged, or the batch
                size does not fit.
        """
        for split in self._splits():
            self.check_split(split)
        if self.train_split is not None:
            self._train_batches(self._train_length(self.train_split))

    def check_split(self, split: str) -> None:
        """`validate` of one split, named in the config or not; raises the same."""
        index = self.index(split)
        self._record(split, len(index.pictures), index.pictures.missing())

    def manifest(self, also: Sequence[str] = ()) -> dict[str, Any]:
        """What the data are: counts by split, and a SHA-256 over the annotation files and the names and sizes of the
        pictures.

        Paths above the root stay out, so a copy elsewhere has the same manifest. also: further splits that are read.
        """
        splits = tuple(dict.fromkeys([*self._splits(), *also]))
        if splits not in self._manifests:
            digest = hashlib.sha256()
            for split in splits:
                index = self.index(split)
                digest.update(split.encode())
                for file in index.files:
                    name = file.name.encode("utf-8", "surrogateescape")
                    digest.update(name + b"\0" + hashlib.sha256(file.read_bytes()).digest())
                for line in index.pictures.described():
                    digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
            counts = {split: self.index(split).counts for split in splits}
            self._manifests[splits] = {"dataset": type(self).__name__, "splits": counts, "sha256": digest.hexdigest()}
        return self._manifests[splits]

    def index(self, split: str) -> SplitIndex:
        """The annotations of a split, read once."""
        if split not in self._indices:
            self._check_root()
            index = self._read_split(split)
            release_free_memory()
            if index.counts["samples"] == 0:
                raise self._layout_error(f"Split '{split}' of {self.root} holds no usable sample.", index.defects)
            self._indices[split] = index
            log.info("%s %s: %s", type(self).__name__, split, ", ".join(f"{n:,} {k}" for k, n in index.counts.items()))
            self._record(split, index.counts["samples"] + len(index.defects), index.defects)
        return self._indices[split]

    def setup(self, stage: str) -> None:
        """Read the splits of a trainer stage."""
        names = {"fit": (self.train_split, self.val_split), "validate": (self.val_split,), "test": (self.test_split,)}
        for split in names.get(stage, ()):
            if split is not None:
                self.index(split)

    def train_dataloader(self) -> EpochLoader:
        """Training batches, beginning where the trainer's progress stands."""
        split = self._named("train_split")
        dataset = self._train_dataset(split)
        batch_size = self._train_batches(self._train_length(split))
        sampler = self._train_sampler(dataset, *self._rank_and_world_size())
        sampler.seek(*self._position())
        return self._loader(split, dataset, sampler, batch_size, self.num_workers)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """`eval_loaders` of the validation split."""
        return [] if self.val_split is None else self.eval_loaders(self.val_split)

    def test_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """`eval_loaders` of the test split."""
        return self.eval_loaders(self._named("test_split"))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Normalise the pictures on the device they have just reached."""
        if isinstance(batch, ImageBatch | PairBatch):
            return batch._replace(image=self.normalize(batch.image))
        return batch

    @property
    def bad_samples_dir(self) -> Path | None:
        """Folder of `bad_samples.jsonl`; may be set until loading begins."""
        return self.bad_samples.directory

    @bad_samples_dir.setter
    def bad_samples_dir(self, directory: str | Path) -> None:
        self.bad_samples.directory = Path(directory)
        self.bad_samples.flush()

    @property
    def bad_count(self) -> int:
        """Damaged samples met by this process so far, each counted once."""
        return self.bad_samples.count.total()

    # for the datasets -----------------------------------------------------------------------------------------------

    def _pictures(self, split: str, transform: TrainTransform | EvalTransform) -> Pictures:
        pictures = self.index(split).pictures
        if self.cache:
            pictures.keep_in_memory(transform.min_side)
        return pictures

    def _train_length(self, split: str) -> int:
        """Samples of a training epoch."""
        return self.index(split).counts["samples"]

    def _train_sampler(self, dataset: Dataset, rank: int, world_size: int) -> EpochSampler:
        """The order of a training epoch."""
        return EpochSampler(len(dataset), self.batch_size, seed=self.seed, rank=rank, world_size=world_size)

    def _eval_loader(self, split: str, dataset: Dataset, num_workers: int) -> EpochLoader:
        rank, world_size = self._rank_and_world_size()
        batch_size = max(1, self.eval_batch_size // world_size)
        sampler = EpochSampler(
            len(dataset), batch_size * world_size, rank=rank, world_size=world_size, shuffle=False, drop_last=False
        )
        return self._loader(split, dataset, sampler, batch_size, num_workers)

    def _layout_error(self, problem: str, defects: list[BadRecord] | None = None) -> UserError:
        first = f" The first record left out: {defects[0].path}: {defects[0].reason}." if defects else ""
        return UserError(f"{problem}{first} Expected:\n{self.LAYOUT}")

    # inside ---------------------------------------------------------------------------------------------------------

    def _check_root(self) -> None:
        if not self.root.is_dir():
            raise self._absent(f"data.root={self.root} is not a folder.")
        if not any(self.root.iterdir()):
            raise self._absent(f"data.root={self.root} is empty.")

    def _absent(self, problem: str) -> UserError:
        """`_layout_error` with the way to the data: nothing is downloaded on its own."""
        where = f"\nDownload and unpack there:\n{self.DOWNLOAD}" if self.DOWNLOAD else ""
        return UserError(f"{self._layout_error(problem)}{where}")

    def _loader(
        self, split: str, dataset: Dataset, sampler: EpochSampler, batch_size: int, num_workers: int
    ) -> EpochLoader:
        return EpochLoader(
            dataset,
            sampler=sampler,
            report=partial(self._report, split, sampler.drop_last),
            batch_size=batch_size,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _report(self, split: str, training: bool, loaded: Loaded) -> None:
        self.truncated_texts += loaded.truncated
        if loaded.bad:
            self._locate_bad_samples()
            self.bad_samples.record(split, len(self.index(split).pictures), loaded.bad)
        if training and loaded.batch is None:
            raise UserError(
                f"Split '{split}' under {self.root}: no readable sample was found for a whole batch. Repair the files, "
                "or lower data.max_bad_fraction to stop earlier."
            )

    def _record(self, split: str, size: int, records: list[BadRecord]) -> None:
        """Count what every rank finds; one rank writes it."""
        self._locate_bad_samples()
        self.bad_samples.record(split, size, records, write=self._rank_and_world_size()[0] == 0)

    def _locate_bad_samples(self) -> None:
        if self.bad_samples.directory is None and self.trainer is not None:
            self.bad_samples_dir = self.trainer.default_root_dir

    def _splits(self) -> list[str]:
        return list(dict.fromkeys(s for s in (self.train_split, self.val_split, self.test_split) if s is not None))

    def _named(self, key: str) -> str:
        split = getattr(self, key)
        if split is None:
            raise UserError(f"data.{key} is null: name the split to use.")
        return split

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _train_batches(self, size: int) -> int:
        """Check the global batch against devices and data; returns the batch of one device."""
        _, world_size = self._rank_and_world_size()
        if size < self.batch_size:
            raise UserError(f"data.batch_size={self.batch_size} is more than the {size} training samples: lower it.")
        return per_device(self.batch_size, world_size)

    def _position(self) -> Position:
        """Where training stands by the trainer's own progress, which a checkpoint restores before it asks for loaders.

        Lightning counts `started` when an epoch begins and `processed` when it ends, so they are equal between epochs;
        the batch progress is then still that of the epoch before. A checkpoint can also fall between an epoch's last
        batch and its end.
        """
        if self.trainer is None:
            return Position(0, 0)
        epochs = self.trainer.fit_loop.epoch_progress.current
        batches = self.trainer.fit_loop.epoch_loop.batch_progress
        if epochs.started == epochs.processed:
            return Position(epochs.processed, 0)
        if batches.is_last_batch and batches.current.processed == batches.current.ready:
            return Position(epochs.processed + 1, 0)
        return Position(epochs.processed, batches.current.processed)

    def __str__(self) -> str:  # Lightning's builds all loaders
        return f"{type(self).__name__}(root={self.root}, splits={self._splits()})"
