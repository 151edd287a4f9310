"""Writing a dataset into shards: tars in webdataset form."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from crossvit.data.datasets import Captions
from crossvit.data.imagenet import CLASSES
from crossvit.data.module import CrossViTDataModule
from crossvit.data.pairs import PairIndex
from crossvit.data.reading.bad_samples import BadRecord
from crossvit.data.reading.decoding import BadSample, decode_bytes, encode_png
from crossvit.data.reading.pictures import Pictures
from crossvit.data.sampler import Draw
from crossvit.data.shards.tars import MAX_PICTURE_BYTES
from crossvit.errors import UserError

MANIFEST = "manifest.json"
_UNFINISHED = ".packing"  # folder of what a finished pack does not have
_PLAN = "plan.json"
_KINDS = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))


@dataclass
class Packing:
    """The samples of a split as they are written, n of them.

    Attributes:
        pictures: the files.
        rows: int64 (n,): the picture of each sample.
        captions: one group a sample, or None where there are classes alone.
        labels: int64 (n,): classes, or whether a statement is true; or None.
        image_ids: int64 (n,), or None.
        relations: the kind of relation of each statement, or None.
    """

    pictures: Pictures
    rows: np.ndarray
    captions: Captions | None = None
    labels: np.ndarray | None = None
    image_ids: np.ndarray | None = None
    relations: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def members(self, sample: int) -> dict[str, bytes]:
        """Contents by extension. Raises BadSample where the picture cannot be read."""
        position = int(self.rows[sample])
        content, kind = _picture(self.pictures, position)
        record: dict[str, Any] = {}
        members = {kind: content}
        if self.captions is not None:
            texts = [self.captions.texts[i] for i in self.captions.group(sample)]
            record["caption"] = texts[0] if len(texts) == 1 else texts
            members["txt"] = texts[0].encode("utf-8", "replace")
        elif self.labels is not None:
            members["cls"] = str(int(self.labels[sample])).encode()
        for key, values in (("label", self.labels), ("image_id", self.image_ids)):
            if values is not None:
                record[key] = int(values[sample])
        if self.relations is not None:
            record["relation"] = self.relations[sample]
        return members | {"json": json.dumps(record, ensure_ascii=False).encode("utf-8", "replace")}


class Shard(NamedTuple):
    """A tar that was written."""

    name: str
    samples: int
    captions: int
    bytes: int
    sha256: str
    left_out: list[BadRecord]


class Job(NamedTuple):
    """A tar that has to be written, with these samples of a split."""

    name: str
    split: str
    samples: np.ndarray


class Pack:
    """A dataset on its way into shards `<split>-00000.tar`, ... of a folder.

    A tar appears whole or not at all, beside a record of what it holds, so a pack that was cut off goes on where it was. The same data and
    arguments give the same bytes.

    Args:
        data: the dataset.
        out: the folder.
        splits: names of its splits.
        samples_per_shard: of each tar but the last of a split.
        shuffle: write the training split in an order drawn by the dataset's seed.

    Raises:
        UserError: the folder holds something else, or the dataset is wrong or has two pictures a sample.
    """

    def __init__(
        self, data: CrossViTDataModule, out: Path, splits: Sequence[str], samples_per_shard: int, shuffle: bool
    ) -> None:
        if samples_per_shard < 1:
            raise UserError(f"samples_per_shard={samples_per_shard} must be at least 1.")
        self.data = data
        self.out = out
        self.splits = list(splits)
        self.samples_per_shard = samples_per_shard
        self.shuffle = shuffle
        self.packings = {split: packing(data, split) for split in self.splits}

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What decides the bytes."""
        source = self.data.manifest(self.splits)
        settings = {"samples_per_shard": self.samples_per_shard, "shuffle": self.shuffle, "seed": self.data.seed}
        return {"format": 1, "source": source, "written": self.splits, **settings}

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of a finished pack, or None."""
        return _read_json(self.out / MANIFEST)

    def jobs(self) -> list[Job]:
        """Every tar."""
        return [
            Job(f"{split}-{number:05d}.tar", split, part)
            for split in self.splits
            for number, part in enumerate(self._parts(split))
        ]

    def run(self, workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Write what is missing and return the manifest.

        Args:
            workers: processes.
            progress: called with the samples done and all samples.

        Raises:
            UserError: too many pictures cannot be read (`data.max_bad_fraction`), or the disk is full.
        """
        manifest = self._existing()
        if manifest is not None and self._is_whole(manifest):
            return manifest
        self._begin()
        jobs, total, done = self.jobs(), sum(map(len, self.packings.values())), 0
        shards: dict[str, Shard] = {}
        try:
            for job, shard in self._results(jobs, workers):
                shards[job.name] = shard
                done += len(job.samples)
                self.data.bad_samples.record(job.split, len(self.packings[job.split]), shard.left_out)
                progress(done, total)
            manifest = self._manifest(jobs, shards)
            self._write_classes()
            _write_json(self.out / MANIFEST, manifest)
        except OSError as error:
            raise UserError(f"{error.filename or self.out}: {error.strerror}. The same command goes on here.") from None
        shutil.rmtree(self.out / _UNFINISHED)
        return manifest

    def _existing(self) -> dict[str, Any] | None:
        """The manifest of the folder, if there is one. Raises UserError where the folder holds anything else than this pack."""
        manifest = self.manifest
        found = manifest or _read_json(self.out / _UNFINISHED / _PLAN)
        if found is None and self.out.is_dir() and any(self.out.iterdir()):
            raise UserError(f"out={self.out} is not empty: give a new folder.")
        different = [] if found is None else [key for key, value in self.plan.items() if found.get(key) != value]
        if different:
            raise UserError(
                f"out={self.out} holds shards of other data or settings ({', '.join(different)}): give a new folder, "
                "or remove that one."
            )
        return manifest

    def _begin(self) -> None:
        unfinished = self.out / _UNFINISHED
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            _write_json(unfinished / _PLAN, self.plan)
            for file in unfinished.glob("*.part"):  # of a process that was killed
                file.unlink()
            if self.data.bad_samples_dir is None:
                (self.out / self.data.bad_samples.FILE_NAME).unlink(missing_ok=True)
                self.data.bad_samples_dir = self.out
        except OSError as error:
            raise UserError(f"out={self.out}: {error.strerror}.") from None

    def _is_whole(self, manifest: dict[str, Any]) -> bool:
        """Whether every tar of a manifest is there."""
        shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]
        paths = [(self.out / shard["name"], shard["bytes"]) for shard in shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def _results(self, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Shard]]:
        """What was written before, and then what is written now."""
        waiting = []
        for job in jobs:
            shard = _finished(self.out, job.name)
            if shard is None:
                waiting.append(job)
            else:
                yield job, shard
        if workers <= 1 or len(waiting) <= 1:
            yield from ((job, write_shard(self.out, job, self.packings[job.split])) for job in waiting)
            return
        with ProcessPoolExecutor(workers, initializer=_start, initargs=(self.out, self.packings)) as pool:
            futures = {pool.submit(_write, job): job for job in waiting}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _parts(self, split: str) -> list[np.ndarray]:
        count = len(self.packings[split])
        order = np.arange(count)
        if self.shuffle and split == self.data.train_split:
            order = np.random.default_rng((self.data.seed, Draw.PACKING)).permutation(count)
        return [order[start : start + self.samples_per_shard] for start in range(0, count, self.samples_per_shard)]

    def _manifest(self, jobs: Sequence[Job], shards: dict[str, Shard]) -> dict[str, Any]:
        splits = {}
        for split in self.splits:
            written = [shards[job.name] for job in jobs if job.split == split]
            splits[split] = {
                "samples": sum(shard.samples for shard in written),
                "captions": sum(shard.captions for shard in written),
                "left_out": sum(len(shard.left_out) for shard in written),
                "shards": [{key: getattr(s, key) for key in ("name", "samples", "bytes", "sha256")} for s in written],
            }
        return {**self.plan, "splits": splits}

    def _write_classes(self) -> None:
        classes = getattr(self.data, "classes", None)
        if classes is not None:
            lines = "".join(f"{wnid} {name}\n" for wnid, name in classes)
            (self.out / CLASSES).write_text(lines, encoding="utf-8")


def packing(data: CrossViTDataModule, split: str) -> Packing:
    """What `Pack` writes of a split. Raises UserError where the dataset is wrong, or where a sample has two pictures."""
    data.check_split(split)
    index = data.index(split)
    if not hasattr(index.pictures, "encoded"):
        raise UserError(f"{type(data).__name__} holds no files of its own: pack each of its sources.")
    if not isinstance(index, PairIndex):
        return Packing(index.pictures, np.arange(len(index.pictures)), labels=index.labels)
    if index.rows.ndim > 1:
        raise UserError(f"{type(data).__name__} has two pictures a sample: shards hold one.")
    return Packing(index.pictures, index.rows, index.captions, index.labels, index.image_ids, index.relations)


def write_shard(out: Path, job: Job, source: Packing) -> Shard:
    """Write one tar and its record. Keys are the numbers of the samples in the dataset."""
    unfinished = out / _UNFINISHED
    part = unfinished / f"{job.name}.part"
    left_out: list[BadRecord] = []
    samples = captions = 0
    with open(part, "wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in job.samples.tolist():
            try:
                members = source.members(sample)
            except BadSample as error:
                left_out.append(BadRecord(error.path, error.reason))
                continue
            for kind, content in members.items():
                info = tarfile.TarInfo(f"{sample:09d}.{kind}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            samples += 1
            captions += 0 if source.captions is None else len(source.captions.group(sample))
    with open(part, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    shard = Shard(job.name, samples, captions, part.stat().st_size, sha256, left_out)
    _write_json(unfinished / f"{job.name}.json", shard._asdict())
    os.replace(part, out / job.name)
    return shard


def _finished(out: Path, name: str) -> Shard | None:
    """The record of a tar that is there; the record is written first."""
    record = _read_json(out / _UNFINISHED / f"{name}.json")
    path = out / name
    if record is None or not path.is_file() or path.stat().st_size != record["bytes"]:
        return None
    return Shard(**{**record, "left_out": [BadRecord(*row) for row in record["left_out"]]})


def _picture(pictures: Pictures, position: int) -> tuple[bytes, str]:
    """Content and extension. What is neither JPEG, PNG nor WebP becomes PNG."""
    content = pictures.encoded(position)
    kind = next((kind for start, kind in _KINDS if content.startswith(start)), None)
    if kind is None and content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        kind = "webp"
    if kind is None:
        content, kind = encode_png(decode_bytes(content, pictures.path(position))), "png"
    if len(content) > MAX_PICTURE_BYTES:
        raise BadSample(pictures.path(position), f"{len(content):,} bytes: more than {MAX_PICTURE_BYTES:,}")
    return content, kind


_work: tuple[Path, dict[str, Packing]]


def _start(out: Path, packings: dict[str, Packing]) -> None:
    global _work
    _work = (out, packings)


def _write(job: Job) -> Shard:
    out, packings = _work
    return write_shard(out, job, packings[job.split])


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="surrogateescape"
    )
    os.replace(part, path)
