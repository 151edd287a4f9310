"""What an evaluation costs: retrieval for growing corpora, beside open_clip's, and pairs a second of the fused score.

    python benchmarks/evaluation.py [--images 1250 2500 5000] [--captions 5] [--width 512] [--threads 1] [--pairs 20000] [--out FILE]

Prints one json object. `retrieval`: both directions of `embedding_retrieval` among so many pictures with --captions captions each.
`one_caption`: the same with one caption a picture, which is what `open_clip_train.train.get_clip_metrics` can do, and that, in turns. Each
figure is from a process of its own: processor seconds, and how far its peak resident memory grew over what it held before, the embeddings
among that.
The fused score is that of model=tiny, untrained, on captions of 16 words. Embeddings are drawn.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from keeping import add_out, keep  # beside this file

from crossvit.config import compose
from crossvit.evaluation.subject import PAIRS_PER_CALL, take
from crossvit.metrics import ImageTextPairs, embedding_retrieval
from crossvit.metrics.pairs import IMAGE_TO_TEXT
from crossvit.stages.build import build_model


def peak_mebibytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def drawn(images: int, captions: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of pictures and of their captions."""
    torch.manual_seed(0)
    image = torch.randn(images, width)
    text = image.repeat_interleave(captions, dim=0) + 4 * torch.randn(images * captions, width)
    return tuple(torch.nn.functional.normalize(x, dim=1) for x in (image, text))


def open_clip_retrieval(images: int, captions: int, width: int) -> dict:
    """The same figures of open_clip's evaluation, which knows one caption a picture."""
    from open_clip_train.train import get_clip_metrics

    image, text = drawn(images, captions, width)
    before, started, busy = peak_mebibytes(), time.perf_counter(), time.process_time()
    found = get_clip_metrics(image, text, torch.tensor(100.0))
    return {
        "images": images,
        "texts": images,
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        "peak_rss_mib_before": before,
        "peak_rss_mib": peak_mebibytes(),
        "acc@1": {IMAGE_TO_TEXT: round(float(found["image_to_text_R@1"]), 4)},
    }


def alone(kind: str, *numbers: int) -> dict:
    """`retrieval` or `open_clip_retrieval` in a process of its own."""
    command = [sys.executable, __file__, "--one", kind, *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind}: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"growth_mib": found["peak_rss_mib"] - found["peak_rss_mib_before"]}


def beside_open_clip(sizes: list[int], width: int, threads: int) -> list[dict]:
    """With one caption a picture, and the ratios."""
    rows = []
    for images in sizes:
        ours, theirs = (alone(kind, images, 1, width, threads) for kind in ("retrieval", "open_clip_retrieval"))
        rows.append(
            {
                "images": images,
                **{f"{key}": ours[key] for key in ("cpu_seconds", "growth_mib", "acc@1")},
                "open_clip": {key: theirs[key] for key in ("cpu_seconds", "growth_mib", "acc@1")},
                "time_over_open_clip": round(ours["cpu_seconds"] / max(theirs["cpu_seconds"], 0.01), 3),
                "memory_over_open_clip": round(ours["growth_mib"] / max(theirs["growth_mib"], 1), 3),
            }
        )
    return rows


def retrieval(images: int, captions: int, width: int) -> dict:
    """Both directions of `embedding_retrieval`, captions near their own picture."""
    image, text = drawn(images, captions, width)
    owner = torch.arange(images)
    pairs = ImageTextPairs(owner, owner.repeat_interleave(captions))
    before, started, busy = peak_mebibytes(), time.perf_counter(), time.process_time()
    found = embedding_retrieval(image, text, pairs)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    accuracy = {direction: round(result.estimate(1).value, 4) for direction, result in found.items()}
    return {
        "images": images,
        "texts": images * captions,
        "width": width,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),  # of all threads: the figure to go by on a machine that others use
        "peak_rss_mib_before": before,
        "peak_rss_mib": peak_mebibytes(),
        "acc@1": accuracy,
    }


@torch.inference_mode()
def fused(count: int) -> dict:
    """Pairs a second of the fused score as the re-ranking asks for it: features of both sides at hand, in calls of 512 pairs."""
    cfg = compose(["model=tiny"], "train")
    model = build_model(cfg).eval()
    side = cfg.model.image_size
    visual = model.visual_features(torch.randn(256, 3, side, side))
    text = model.text_features(torch.randint(4, 20, (256, 16)), torch.ones(256, 16, dtype=torch.bool))
    rows = torch.randint(256, (2, count))
    started, busy = time.perf_counter(), time.process_time()
    for image, caption in zip(rows[0].split(PAIRS_PER_CALL), rows[1].split(PAIRS_PER_CALL), strict=True):
        model.match_score(visual[image], take(text, caption))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {
        "model": "tiny",
        "pairs": count,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(busy, 2),
        "pairs_per_second": round(count / seconds),
    }


def main() -> None:
    """Measures all and prints it."""
    if sys.argv[1:2] == ["--one"]:
        images, captions, width, threads = map(int, sys.argv[3:])
        torch.set_num_threads(threads)
        kinds = {"retrieval": retrieval, "open_clip_retrieval": open_clip_retrieval}
        print(json.dumps(kinds[sys.argv[2]](images, captions, width)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1250, 2500, 5000])
    for name, value in (("captions", 5), ("width", 512), ("threads", 1), ("pairs", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    add_out(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    report = {
        "one_caption": beside_open_clip(given.images, given.width, given.threads),
        "retrieval": [alone("retrieval", n, given.captions, given.width, given.threads) for n in given.images],
        "fused": fused(given.pairs),
        "threads": given.threads,
    }
    keep(report, given.out, ("torch", "open_clip_torch"))


if __name__ == "__main__":
    main()
