"""`generate`: the whole corpus of one preset, written at once or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

from crossvit.data.scenes.layouts import write_coco, write_imagenet, write_nlvr2, write_vsr
from crossvit.data.scenes.manifest import FORMAT, Manifest, read_manifest
from crossvit.data.scenes.presets import Preset, count_images, find_preset, resolve_sizes
from crossvit.data.scenes.sample import ScenePool
from crossvit.data.scenes.write import CorpusWriter
from crossvit.errors import UserError

MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 24, 512


def generate(
    root: str | os.PathLike,
    preset: str = "easy",
    seed: int = 0,
    image_size: int = 56,
    sizes: Mapping[str, int] | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Make the scenes corpus `<root>/<preset>` in the ImageNet, COCO, VSR and NLVR2 layouts, and return its manifest.

    The same arguments give the same bytes. Where the folder already holds the corpus of these arguments, it is checked
    (hashes of annotations, number and bytes of pictures) and kept; a damaged one is made again. The folder appears
    when it is complete: a killed run leaves only a hidden `.partial` folder, which the next run removes, and of two
    runs at once the second waits.

    root: parent folder, created if needed.
    preset: "easy" (2 objects), "medium" (2 to 4, 2 mentioned) or "hard" (2 to 4, sizes, textures, counts, negation).
    image_size: side of the square pictures in pixels, 24 to 512.
    sizes: None for those of the preset, "smoke" for a few samples of everything, or a mapping that replaces some defaults.
    progress: called with (pictures written, pictures in all).

    Raises UserError for a wrong argument, for a folder that holds something else, and where the root cannot be written.
    """
    chosen = find_preset(preset)
    counts = resolve_sizes(sizes, chosen)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"scenes seed={seed!r}: give a whole number of at least 0.")
    if (
        isinstance(image_size, bool)
        or not isinstance(image_size, int)
        or not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE
    ):
        raise UserError(
            f"scenes image_size={image_size!r}: give a whole number from {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE}."
        )
    arguments = {"preset": preset, "seed": seed, "image_size": image_size, "sizes": counts, "format": FORMAT}
    root = Path(root)
    target = root / preset
    if (ready := _existing(target, arguments)) is not None:
        return ready
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f".{preset}.generate.lock"):
            if (ready := _existing(target, arguments)) is not None:  # another run has finished meanwhile
                return ready
            return _make(target, chosen, arguments, progress)
    except OSError as error:
        raise UserError(f"cannot write the scenes corpus {target}: {error.strerror or error}.") from error


def _existing(target: Path, arguments: dict) -> Manifest | None:
    """The manifest of an intact corpus of these arguments; None where it has to be made."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    manifest = read_manifest(target)
    if manifest is None:
        raise UserError(
            f"{target} exists and is no scenes corpus (no readable manifest.json): move it away, or give another root."
        )
    different = [key for key, value in arguments.items() if manifest.arguments.get(key) != value]
    if different:
        raise UserError(
            f"{target} holds a scenes corpus made with other arguments ({', '.join(different)}): "
            "remove that folder, or give another place (scenes.folder=NAME)."
        )
    return manifest if manifest.is_intact() else None


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock; the system drops it when the process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(target: Path, preset: Preset, arguments: dict, progress: Callable[[int, int], None] | None) -> Manifest:
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        sizes = arguments["sizes"]
        writer = CorpusWriter(partial, arguments["image_size"], count_images(sizes), progress)
        _write_layouts(writer, preset, arguments["seed"], sizes)
        Manifest(
            partial, arguments, dict(writer.counts), writer.annotations, dict(writer.folders), writer.images_sha256
        ).save()
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return read_manifest(target)


def _write_layouts(writer: CorpusWriter, preset: Preset, seed: int, sizes: dict[str, int]) -> None:
    reserved: set = set()

    def pool(split: str, compositional: bool = False) -> ScenePool:
        rng = Random(f"{seed}/{preset.name}/{split}")
        return ScenePool(preset, rng, reserved, training=split.endswith("train"), compositional=compositional)

    write_imagenet(writer, preset, Random(f"{seed}/{preset.name}/imagenet"), sizes)
    # Evaluation splits come first: they reserve their scenes, and the training splits avoid those.
    vsr = {split: pool(f"vsr/{split}") for split in ("dev", "test")}
    vsr["test_compositional"] = pool("vsr/test_compositional", compositional=True)
    write_coco(writer, pool("coco/val"), "val2017", sizes["coco_val"], first_id=sizes["coco_train"] + 1)
    write_nlvr2(writer, pool("nlvr2/dev"), "dev", sizes["nlvr2_dev"])
    write_nlvr2(writer, pool("nlvr2/test1"), "test1", sizes["nlvr2_test1"])
    write_vsr(writer, vsr | {"train": pool("vsr/train")}, sizes)
    write_coco(writer, pool("coco/train"), "train2017", sizes["coco_train"], first_id=1)
    write_nlvr2(writer, pool("nlvr2/train"), "train", sizes["nlvr2_train"])
