"""What an evaluation costs: retrieval among 5,000 pictures and 25,000 captions, and pairs a second of the fused score.

    python benchmarks/evaluation.py [--images 5000] [--captions 5] [--width 512] [--threads 2] [--pairs 20000]

Prints one json object. Embeddings are drawn; the fused score is that of model=tiny, untrained, on captions of 16 words.
"""

import argparse
import json
import platform
import resource
import sys
import time

import torch

from crossvit.config import compose
from crossvit.evaluation.subject import PAIRS_PER_CALL, take
from crossvit.metrics import ImageTextPairs, embedding_retrieval
from crossvit.stages.build import build_model


def peak_mebibytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def retrieval(images: int, captions: int, width: int) -> dict:
    """Both directions of `embedding_retrieval`, captions near their own picture."""
    image = torch.randn(images, width)
    text = image.repeat_interleave(captions, dim=0) + 4 * torch.randn(images * captions, width)
    image, text = (torch.nn.functional.normalize(x, dim=1) for x in (image, text))
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
    """Measures both and prints them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("images", 5000), ("captions", 5), ("width", 512), ("threads", 2), ("pairs", 20_000)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    report = {
        "retrieval": retrieval(given.images, given.captions, given.width),
        "fused": fused(given.pairs),
        "threads": given.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "machine": platform.machine(),
        "command": " ".join(["python", *sys.argv]),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
