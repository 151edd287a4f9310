"""Memory and time of the contrastive loss over a large global batch: tiled, with the whole matrix, and as open_clip computes it.

    python benchmarks/contrastive_memory.py [--sizes 4096 16384] [--ranks 1] [--tile 256] [--kinds tiled whole open_clip] [--out FILE]

Prints one json object. Each figure is from a process of its own (gloo processes on this machine for --ranks 2), one thread each: the growth
of its peak resident memory over what it held before the loss, and its processor time, forward and backward on embeddings that are there.
open_clip runs its ClipLoss, between ranks with local_loss and gather_with_grad. A loss over several ranks is the average of theirs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from keeping import add_out, keep  # beside this file
from torch import Tensor
from torch.nn import functional as F

KINDS = ("tiled", "whole", "open_clip")


def embeddings(size: int, width: int, rank: int, ranks: int) -> tuple[Tensor, Tensor]:
    """This rank's rows of the same global batch whatever the number of ranks; captions near their own picture."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(size, width, generator=generator)
    text = image + 2 * torch.randn(size, width, generator=generator)
    return tuple(F.normalize(x, dim=1)[rank::ranks].clone().requires_grad_() for x in (image, text))


def compute(kind: str, image: Tensor, text: Tensor, scale: Tensor, tile: int, rank: int, ranks: int) -> Tensor:
    """This rank's loss."""
    if kind == "open_clip":
        from open_clip.loss import ClipLoss

        shared = {"local_loss": True, "gather_with_grad": True, "rank": rank, "world_size": ranks} if ranks > 1 else {}
        return ClipLoss(**shared)(image, text, scale)
    from crossvit.distributed import gather_with_grad, global_rows
    from crossvit.objectives.contrastive import contrastive_loss
    from crossvit.objectives.tiled import list_positives, tiled_contrastive_loss

    ids = torch.arange(len(image) * ranks)
    rows = global_rows(len(image))
    if kind == "tiled":
        positives = list_positives(rows, ids, ids, torch.ones_like(ids, dtype=torch.bool))
        return tiled_contrastive_loss(image, gather_with_grad(text), scale, positives, tile=tile)
    own = rows[:, None] == ids[None, :]
    return contrastive_loss(image, text, gather_with_grad(image), gather_with_grad(text), scale, own, own)


def peak() -> float:
    """Most memory held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(kind: str, size: int, width: int, tile: int, rank: int, ranks: int, place: str) -> dict:
    """The figures of one process."""
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=ranks)
    scale = torch.tensor(14.3, requires_grad=True)
    compute(kind, *embeddings(64 * ranks, width, rank, ranks), scale, tile, rank, ranks).backward()  # imports, threads
    image, text = embeddings(size, width, rank, ranks)
    before, started = peak(), time.process_time()
    loss = compute(kind, image, text, scale, tile, rank, ranks)
    loss.backward()
    return {"loss": loss.item(), "cpu_seconds": time.process_time() - started, "peak_mib": peak() - before}


def measure(kind: str, size: int, width: int, ranks: int, tile: int) -> dict:
    """One row: `one` in `ranks` fresh processes; the greatest memory, the mean time and the loss of all."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", kind, str(size), str(width), str(tile)]
        running = [
            subprocess.Popen([*command, str(rank), str(ranks), str(Path(folder, "meet"))], stdout=subprocess.PIPE)
            for rank in range(ranks)
        ]
        found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    return {
        "kind": kind,
        "global_batch": size,
        "ranks": ranks,
        "loss": round(sum(f["loss"] for f in found) / ranks, 6),
        "cpu_seconds": round(sum(f["cpu_seconds"] for f in found) / ranks, 2),
        "peak_mib": round(max(f["peak_mib"] for f in found), 1),
    }


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        kind, size, width, tile, rank, ranks, place = sys.argv[2:]
        print(json.dumps(one(kind, *map(int, (size, width, tile, rank, ranks)), place)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    add_out(parser)
    asked = parser.parse_args()
    rows = [measure(kind, size, asked.width, asked.ranks, asked.tile) for size in asked.sizes for kind in asked.kinds]
    for row in rows:
        peer = next((r for r in rows if r["kind"] == "open_clip" and r["global_batch"] == row["global_batch"]), None)
        if peer:
            row["memory_over_open_clip"] = round(row["peak_mib"] / peer["peak_mib"], 3)
            row["time_over_open_clip"] = round(row["cpu_seconds"] / peer["cpu_seconds"], 3)
    report = {
        "rows": rows,
        "width": asked.width,
        "tile": asked.tile,
    }
    keep(report, asked.out)


if __name__ == "__main__":
    main()
