"""Training on a GPU: pairs a second, model FLOPs utilisation, memory, and where the time goes.

    python benchmarks/gpu.py [--models r18_small r18_base] [--batch 512] [--steps 20] [--workers 16] [--out FILE]
    python benchmarks/gpu.py --device cpu --models tiny --batch 8 --steps 2 --workers 0 --pictures 16     # to try it out

Of each model, contrastive and matching terms (objective=itc_itm), bf16 autocast, channels_last, fused AdamW, clipped gradients, captions of
32 tokens, five ways: `synthetic` (one batch that lies on the device), `synthetic, compile`, `shards` (JPEGs of short side 256 from tars,
decoded, cropped, resized to the model's size and flipped by this project's loader in --workers processes), `shards, compile`, and
`loader` (the same batches as they arrive on the device, nothing trained). Where a batch does not fit, it is halved until it does; the
json says so.

Utilisation is the counted FLOPs of forward and backward (torch's FlopCounterMode: matrix products, convolutions, attention) over the rate
of a bf16 matrix product of 8192 x 8192 that is measured here. Prints one json object, with the kernels that take most of a step. Ends with
code 2 where there is no GPU.
"""

import argparse
import contextlib
import gc
import io
import os
import platform
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from keeping import add_out, keep  # beside this file
from PIL import Image, ImageFilter

from crossvit.callbacks.compute import flop_counter
from crossvit.config import compose
from crossvit.data.batches import PairBatch
from crossvit.stages.build import build_data, build_task, build_tokenizer

TOKENS = 32
WORDS = "a man woman dog cat sits on near the table street red two people large small"
WAYS = ("synthetic", "synthetic, compile", "shards", "shards, compile")
GOALS = {"utilisation": 0.40, "pairs_per_second": 6000, "shards_over_synthetic": 0.90}


class Run:
    """A task on the device that takes training steps."""

    def __init__(self, model: str, device: torch.device, compiled: bool, settings: list[str]) -> None:
        torch.manual_seed(0)
        mode = "default" if compiled else "null"
        own = ["stage=coco", f"model={model}", "objective=itc_itm", "channels_last=true", f"compile={mode}"]
        self.cfg = compose([*own, *settings], "train")
        self.device = device
        self.task = build_task(self.cfg).to(device).train()
        self.task.configure_model()
        self.optimizer = self.task.configure_optimizers()["optimizer"]

    def synthetic(self, size: int) -> PairBatch:
        """A batch on the device: every caption of 32 tokens, all different."""
        side, vocabulary = self.cfg.model.image_size, self.task.model.text_encoder.vocab_size
        rows = torch.arange(size, device=self.device)
        tokens = torch.randint(4, vocabulary - 2, (size, TOKENS), device=self.device)
        tokens[:, -1] = vocabulary - 1  # CLIP's end of text
        mask = torch.ones_like(tokens, dtype=torch.bool)
        return PairBatch(torch.randn(size, 3, side, side, device=self.device), tokens, mask, rows, rows, rows)

    def loss(self, batch: PairBatch) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.task(batch, lambda n, stream=0: torch.rand(n, device=self.device))[0]

    def step(self, batch: PairBatch) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.task.parameters(), 1.0)
        self.optimizer.step()

    def flops(self, batch: PairBatch) -> int:
        """Of forward and backward."""
        with flop_counter() as counter:
            self.loss(batch).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """FLOP/s of a square bf16 matrix product, the best of five turns."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    count, best = (20 if device.type == "cuda" else 1), float("inf")
    for _ in range(5):
        wait(device)
        started = time.perf_counter()
        for _ in range(count):
            left @ right
        wait(device)
        best = min(best, (time.perf_counter() - started) / count)
    return 2 * size**3 / best


def timed(run: Run, batches: Iterator[PairBatch], steps: int, work: Callable[[PairBatch], None]) -> float:
    """Seconds of `steps` steps by the clock."""
    wait(run.device)
    started = time.perf_counter()
    for _ in range(steps):
        work(next(batches))
    wait(run.device)
    return time.perf_counter() - started


def measure(
    model: str, device: torch.device, size: int, steps: int, data: "Shards", settings: list[str], ways=WAYS
) -> dict:
    """Figures of a model by way. The batch is halved until a step of every way fits."""
    while True:
        with contextlib.suppress(torch.OutOfMemoryError):
            return measure_batch(model, device, size, steps, data, settings, ways)
        gc.collect()
        torch.cuda.empty_cache()
        size //= 2
        if size < 2:
            raise SystemExit(f"{model}: not even a batch of 2 fits on {device}")


def measure_batch(
    model: str, device: torch.device, size: int, steps: int, data: "Shards", settings: list[str], ways=WAYS
) -> dict:
    """The same with this batch. Raises torch.OutOfMemoryError where it does not fit."""
    on_gpu, flops, found = device.type == "cuda", None, {}
    rate = matmul_rate(device, 8192 if on_gpu else 512)
    for way in ways:
        source, _, compiled = way.partition(", ")
        run = Run(model, device, bool(compiled), settings)
        batch = run.synthetic(size)
        if flops is None:  # before anything is compiled
            flops = run.flops(batch)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        first = timed(run, repeat(batch), 1, run.step)
        with data.batches(run, size) if source == "shards" else contextlib.nullcontext(repeat(batch)) as batches:
            timed(run, batches, 3, run.step)  # warms up: the choice of kernels, the workers
            seconds = timed(run, batches, steps, run.step)
            found[way] = {
                "pairs_per_second": round(size * steps / seconds, 1),
                "utilisation": round(flops * steps / seconds / rate, 4),
                "seconds_a_step": round(seconds / steps, 5),
                "seconds_of_the_first_step": round(first, 2),
                "peak_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if on_gpu else None,
            }
            if way == "shards":
                seconds = timed(run, batches, steps, lambda batch: None)
                found["loader"] = {"pairs_per_second": round(size * steps / seconds, 1)}
        if source == "synthetic":
            found[way]["profile"] = profile(run, batch)
        elif (base := found.get(way.replace("shards", "synthetic"))) is not None:
            found[way]["over_synthetic"] = round(found[way]["pairs_per_second"] / base["pairs_per_second"], 3)
    return {
        "batch": size,
        "gflops_of_a_pair": round(flops / size / 1e9, 4),
        "matmul_tflops_per_second": round(rate / 1e12, 3),
        "parameters": sum(p.numel() for p in run.task.parameters() if p.requires_grad),
        "ways": found,
    }


def profile(run: Run, batch: PairBatch, steps: int = 3, most: int = 15) -> list[dict]:
    """The kernels (operators on a CPU) that take most of the time of a step, with their share of all of it."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = run.device.type == "cuda"
    with profiler(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as watched:
        for _ in range(steps):
            run.step(batch)
        wait(run.device)
    kernels = [event for event in watched.key_averages() if not on_gpu or event.device_type.name == "CUDA"]

    def time_of(event) -> float:
        return event.self_device_time_total if on_gpu else event.self_cpu_time_total

    total = sum(map(time_of, kernels))
    kernels.sort(key=time_of, reverse=True)
    return [
        {
            "kernel": event.key[:100],
            "share": round(time_of(event) / total, 4),
            "us_a_step": round(time_of(event) / steps, 1),
            "calls_a_step": event.count // steps,
        }
        for event in kernels[:most]
    ]


class Shards:
    """Tars of drawn pictures and captions, written on the fly, and their batches on a device."""

    def __init__(self, folder: Path, pictures: int, copies: int, workers: int) -> None:
        self.folder, self.workers = folder, workers
        rng = random.Random(0)
        with tarfile.open(folder / "train-00000.tar", "w") as tar:
            drawn = [jpeg(number) for number in range(min(pictures, 256))]
            for number in range(pictures):
                caption = " ".join(rng.choices(WORDS.split(), k=TOKENS - 2))
                for ending, data in (("jpg", drawn[number % len(drawn)]), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        for number in range(1, copies):
            os.link(folder / "train-00000.tar", folder / f"train-{number:05d}.tar")

    @contextlib.contextmanager
    def batches(self, run: Run, size: int) -> Iterator[Iterator[PairBatch]]:
        """Training batches without end, on the device and normalised there."""
        cfg = run.cfg.copy()
        node = compose(["stage=coco", "data=shards", f"model={cfg.model.name}"], "train").data
        replaced = {"root": self.folder, "batch_size": size, "num_workers": self.workers, "val_split": None}
        data = build_data(node, build_tokenizer(cfg), image_size=cfg.model.image_size, test_split=None, **replaced)
        data.setup("fit")
        loader = data.train_dataloader()

        def on_device(batch: PairBatch) -> PairBatch:
            moved = [x.to(run.device, non_blocking=True) if torch.is_tensor(x) else x for x in batch]
            return data.on_after_batch_transfer(PairBatch(*moved), 0)

        yield map(on_device, chain.from_iterable(repeat(loader)))


def jpeg(number: int) -> bytes:
    """Soft blobs with some grain, 341 x 256, JPEG of quality 90."""
    rng = np.random.default_rng(number)
    blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (341, 256), Image.Resampling.BICUBIC
    )
    grain = Image.fromarray(rng.integers(0, 256, (256, 341, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(1))
    file = io.BytesIO()
    Image.blend(blobs, grain, 0.3).save(file, "JPEG", quality=90)
    return file.getvalue()


def driver() -> str | None:
    """Of the GPU, where the machine says."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["r18_small", "r18_base"])
    for name, value in (("batch", 512), ("steps", 20), ("workers", 16), ("pictures", 4096)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--set", nargs="*", default=[], help="overrides of the config")
    add_out(parser)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py: no GPU: torch.cuda.is_available() is False here", file=sys.stderr)
        sys.exit(2)
    torch.set_float32_matmul_precision("high")
    device = torch.device(given.device)
    with tempfile.TemporaryDirectory() as folder:
        need = given.batch * (2 * given.steps + 8)
        data = Shards(Path(folder), given.pictures, -(-need // given.pictures), given.workers)
        figures = {
            model: measure(model, device, given.batch, given.steps, data, given.set, given.ways)
            for model in given.models
        }
    on_gpu = device.type == "cuda"
    report = {
        "figures": figures,
        "goals": GOALS,
        "tokens": TOKENS,
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "driver": driver() if on_gpu else None,
        },
    }
    keep(report, given.out, ("torch", "torchvision", "timm", "lightning"))


if __name__ == "__main__":
    main()
