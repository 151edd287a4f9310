"""What `crossvit data verify` costs at a million captions, and at a tenth of that.

    python benchmarks/check_memory.py [--images 200000] [--captions 5] [--workers 2]

Annotations in COCO's schema with a picture for each record (one file of 32 px, many names), checked in a fresh process that decodes every
picture; and the search for look-alikes among as many drawn looks. Memory is that of the main process: with the libraries, with the index
that training holds too, and the most that the check and the search hold (Linux only). Prints one json object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from keeping import keep  # beside this file


def main() -> None:
    """Writes the annotations, checks both sizes and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 200_000), ("captions", 5), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.workers)))
        return
    from coco_scale import write  # beside this file

    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for images in (given.images // 10, given.images):
            root = Path(folder) / str(images)
            write("coco", root, images, given.captions)
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(root)]
            sizes.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    report = {
        "sizes": sizes,
        "bytes_a_caption": round(
            2**20 * (sizes[1]["check_mib"] - sizes[0]["check_mib"]) / (0.9 * sizes[1]["captions"])
        ),
        "workers": given.workers,
    }
    keep(report)


def measure(root: Path, workers: int) -> dict:
    """In a fresh process: the index alone, then the check, then looks alone."""
    import numpy as np
    import torch

    from crossvit.data.checks.check import check
    from crossvit.data.checks.look_alikes import NearPairs
    from crossvit.data.coco import COCODataModule
    from crossvit.data.tokenizer import WordTokenizer

    torch.set_num_threads(1)
    settings = {"val_split": None, "test_split": None, "max_bad_fraction": 1.0, "tokenizer": WordTokenizer()}
    libraries = status("VmRSS")
    data = COCODataModule(root=root, image_size=32, batch_size=1, **settings)
    data.index("train")
    indexed, started = status("VmRSS"), time.perf_counter()
    forget_peak()
    report = check(data, ["train"], workers=workers)
    checked, seconds = status("VmHWM"), time.perf_counter() - started
    looks = np.random.default_rng(0).integers(0, 2**64, len(data.index("train").pictures), dtype=np.uint64)
    forget_peak()
    before, started = status("VmRSS"), time.process_time()
    pairs = sum(map(len, NearPairs(looks)))
    return {
        "pictures": report["splits"]["train"]["pictures"],
        "captions": report["splits"]["train"]["captions"]["count"],
        "libraries_mib": libraries,
        "with_index_mib": indexed,
        "peak_of_check_mib": checked,
        "check_mib": round(checked - indexed, 1),
        "seconds": round(seconds, 1),
        "look_alikes": {
            "pairs": pairs,
            "cpu_seconds": round(time.process_time() - started, 2),
            "mib": round(status("VmHWM") - before, 1),
        },
    }


def status(key: str) -> float:
    """MiB of this process: VmRSS, what it holds, or VmHWM, the most it has held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return round(int(line.split()[1]) / 1024, 1)


def forget_peak() -> None:
    """VmHWM begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
