"""`crossvit data make scenes`: writes the embedded corpus in the official layouts."""

from omegaconf import DictConfig

from crossvit.stages.corpus import make_scenes


def run(cfg: DictConfig) -> None:
    """Generates or verifies the corpus and prints where it lies."""
    manifest = make_scenes(cfg, cfg.scenes.preset)
    for split, counts in manifest.counts.items():
        print(f"{split:24} {', '.join(f'{count:,} {what}' for what, count in counts.items())}")
    print(f"scenes, preset {cfg.scenes.preset}: {manifest.path}")
