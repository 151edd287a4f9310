"""Writes the embedded corpus where a stage asks for it and it is not there yet: it needs no download."""

from pathlib import Path

from omegaconf import DictConfig


def prepare_corpus(cfg: DictConfig) -> None:
    """Generates `scenes` when the stage's data lie below `paths.scenes`. Does nothing for any other root."""
    if "root" in cfg.data and Path(cfg.data.root).resolve().is_relative_to(Path(cfg.paths.scenes).resolve()):
        make_scenes(cfg)


def make_scenes(cfg: DictConfig):
    """Writes, or verifies, the corpus of `cfg.scenes` below `paths.scenes` and returns its manifest. One process writes at a time."""
    from filelock import FileLock

    from crossvit.data import scenes

    root = Path(cfg.paths.scenes)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{cfg.scenes.preset}.lock"):
        return scenes.generate(
            root, preset=cfg.scenes.preset, seed=cfg.scenes.seed, image_size=cfg.scenes.image_size, sizes=cfg.scenes.sizes
        )
