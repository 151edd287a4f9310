"""What COCO's training split costs before the first batch and while it is read: 118,287 pictures with five captions each.

    python benchmarks/coco_scale.py [--reader coco] [--images 118287] [--captions 5] [--workers 2] [--batches 200] [--batch-size 256]

Writes annotations of that size with a picture of 32 px for each (one file, many names; --folder DIR keeps them for the next time), starts
`python` anew, and measures there: seconds to the first batch (from the start of the process, and from where the libraries are imported),
the memory of every worker at the first batch, half-way and at the last, and that of the main process. Readers: coco (captions json),
karpathy, caption_list (ALBEF's json lists), table (csv), caption_folder (a .txt beside each picture). --batches 0: all.
Prints one json object.
"""

import argparse
import csv
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from keeping import keep  # beside this file

WORDS = "a man woman dog cat sits stands on near the table street red blue with two people riding large small"
PER_CLASS = {
    "coco": "crossvit.data.coco.COCODataModule",
    "karpathy": "crossvit.data.karpathy.KarpathyDataModule",
    "caption_list": "crossvit.data.caption_list.CaptionListDataModule",
    "table": "crossvit.data.table.CaptionTableDataModule",
    "caption_folder": "crossvit.data.caption_folder.CaptionFolderDataModule",
}
OPTIONS = {"karpathy": {"source": "coco"}, "table": {"annotations": "{split}.csv"}}


def main() -> None:
    """Makes the data, runs the measurement in a fresh process and prints what it says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", choices=PER_CLASS, default="coco")
    for name, value in (("images", 118_287), ("captions", 5), ("workers", 2), ("batches", 200), ("batch-size", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--folder", type=Path, help="keep the data here, and use them again")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = (given.folder or Path(temporary)) / f"{given.reader}-{given.images}x{given.captions}"
        if not (root / "done").is_file():
            write(given.reader, root, given.images, given.captions)
            (root / "done").touch()
        read_once(root)
        started = time.time()
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(root)]
        environment = os.environ | {"CROSSVIT_STARTED": repr(started)}
        measured = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        )
    report = {
        "reader": given.reader,
        "images": given.images,
        "captions": given.images * given.captions,
        "workers": given.workers,
        "batch_size": given.batch_size,
        **measured,
    }
    keep(report)


def measure(root: Path, given: argparse.Namespace) -> dict:
    """In a fresh process: load the training split as a stage does, and watch the workers."""
    started = float(os.environ["CROSSVIT_STARTED"])
    import torch
    from hydra.utils import get_object

    from crossvit.data.tokenizer import WordTokenizer

    reader = get_object(PER_CLASS[given.reader])
    imported, busy = time.time(), time.process_time()
    torch.set_num_threads(1)
    data = reader(
        root=root,
        image_size=32,
        batch_size=given.batch_size,
        num_workers=given.workers,
        val_split=None,
        test_split=None,
        max_bad_fraction=0.0,
        tokenizer=WordTokenizer("scenes"),
        **OPTIONS.get(given.reader, {}),
    )
    data.validate()
    validated, busy = time.time(), time.process_time() - busy
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    first = time.time()
    workers = [worker.pid for worker in batches.gi_frame.f_locals["loaded_batches"]._workers] if given.workers else []
    total = given.batches or len(loader)
    watched = {1: [memory(pid) for pid in workers]}
    for count, _ in enumerate(batches, start=2):
        if count in (total // 2, total):
            watched[count] = [memory(pid) for pid in workers]
        if count == total:
            break
    half, last = watched[total // 2], watched[total]
    return {
        "seconds_of_imports": round(imported - started, 2),
        "seconds_of_reading": round(validated - imported, 2),
        "seconds_from_imports_to_first_batch": round(first - imported, 2),
        "seconds_from_start_to_first_batch": round(first - started, 2),
        "cpu_seconds_of_reading": round(
            busy, 2
        ),  # of the main process: the figure to go by on a machine that others use
        "batches": total,
        "worker_mib_at_batch": watched,
        "worker_growth_in_second_half_mib": [
            round(b["private"] - a["private"], 1) for a, b in zip(half, last, strict=True)
        ],
        "main_process_mib": memory(os.getpid()),
        "main_process_peak_mib": peak(),
    }


def memory(pid: int) -> dict[str, float]:
    """MiB of a process: resident, its share of it (shared pages divided), and what it alone holds."""
    kib = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        kib[name.rstrip(":")] = int(value)
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return {k: round(v / 1024, 1) for k, v in {"rss": kib["Rss"], "pss": kib["Pss"], "private": private}.items()}


def peak() -> float:
    """MiB, the most this process has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)


def read_once(root: Path) -> None:
    """Bring the annotations into the page cache, so that the disk is not what is measured."""
    for path in root.rglob("*.json"):
        path.read_bytes()


def write(reader: str, root: Path, images: int, captions: int) -> None:
    """The annotations in the reader's official schema, and a picture under every name."""
    rng, words = random.Random(0), WORDS.split()
    names = [f"{i:012d}.jpg" for i in range(1, images + 1)]
    texts = [[" ".join(rng.choices(words, k=rng.randint(8, 13))) for _ in range(captions)] for _ in names]
    folder = {"coco": "train2017", "karpathy": "train2014", "caption_folder": "train"}.get(reader, "images")
    (root / folder).mkdir(parents=True)
    picture = root / "picture.jpg"
    picture.write_bytes(small_jpeg())
    for name in names:
        os.symlink(f"../{picture.name}", root / folder / name)
    if reader == "coco":
        (root / "annotations").mkdir()
        url = "http://images.cocodataset.org/train2017/"
        content = {
            "info": {},
            "licenses": [],
            "images": [
                {
                    "license": 3,
                    "file_name": name,
                    "coco_url": url + name,
                    "height": 427,
                    "width": 640,
                    "date_captured": "2013-11-14 16:28:13",
                    "flickr_url": "http://farm7.staticflickr.com/6116/6255196340_da26cf2c9e_z.jpg",
                    "id": i,
                }
                for i, name in enumerate(names, 1)
            ],
            "annotations": [
                {"image_id": i, "id": captions * i + k, "caption": texts[i - 1][k]}
                for k in range(captions)
                for i in range(1, images + 1)
            ],
        }
        (root / "annotations/captions_train2017.json").write_text(json.dumps(content))
    elif reader == "karpathy":
        records = [
            {
                "filepath": folder,
                "sentids": [captions * i + k for k in range(captions)],
                "filename": name,
                "imgid": i,
                "split": "train" if i % 4 else "restval",
                "sentences": [
                    {"tokens": text.split(), "raw": text, "imgid": i, "sentid": captions * i + k}
                    for k, text in enumerate(texts[i])
                ],
                "cocoid": i,
            }
            for i, name in enumerate(names)
        ]
        (root / "dataset_coco.json").write_text(json.dumps({"images": records, "dataset": "coco"}))
    elif reader == "caption_list":
        rows = [
            {"caption": text, "image": f"{folder}/{name}", "image_id": f"coco_{i}"}
            for i, name in enumerate(names)
            for text in texts[i]
        ]
        (root / "train.json").write_text(json.dumps(rows))
    elif reader == "table":
        with (root / "train.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["image", "caption"])
            lines.writerows(
                (f"{folder}/{name}", text) for name, group in zip(names, texts, strict=True) for text in group
            )
    else:
        for name, group in zip(names, texts, strict=True):
            (root / folder / name).with_suffix(".txt").write_text("\n".join(group) + "\n")


def small_jpeg() -> bytes:
    """A grey picture of 32 px."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (120, 120, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
