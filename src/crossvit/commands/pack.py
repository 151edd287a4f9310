"""`crossvit data pack`: writes a dataset into shards."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from crossvit.data.shards.pack import MANIFEST, Pack
from crossvit.data.tokenizer import WordTokenizer
from crossvit.stages.build import build_data
from crossvit.stages.corpus import prepare_corpus


def run(cfg: DictConfig) -> dict:
    """Writes what is missing, with a progress bar, and prints what lies there."""
    from rich.progress import Progress

    prepare_corpus(cfg, cfg.data)
    out = Path(cfg.out)
    keys = ("train_split", "val_split", "test_split")
    named = OmegaConf.to_container(cfg.splits) if cfg.splits is not None else [cfg.data[key] for key in keys]
    splits = list(dict.fromkeys(split for split in named if split is not None))
    others = {key: None for key in keys if cfg.data[key] not in splits}  # need not be there
    data = build_data(cfg.data, WordTokenizer(), **others)
    pack = Pack(data, out, splits, cfg.samples_per_shard, cfg.shuffle)
    with Progress(transient=True) as bar:
        task = bar.add_task("shards", total=None)
        manifest = pack.run(cfg.workers, lambda done, total: bar.update(task, completed=done, total=total))
    for split, written in manifest["splits"].items():
        counts = f"{written['samples']:,} samples, {written['captions']:,} captions, {len(written['shards']):,} shards"
        print(f"{split:24} {counts}, {written['left_out']:,} left out")
    print(f"shards: {out / MANIFEST}")
    return manifest
