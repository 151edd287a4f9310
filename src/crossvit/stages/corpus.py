"""Writes the embedded corpus where a stage asks for it and it is not there yet: it needs no download."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def prepare_corpus(cfg: DictConfig, data: DictConfig) -> None:
    """Generates `scenes` when `data` lies below `paths.scenes`. Does nothing for any other root."""
    if Path(data.root).resolve().is_relative_to(Path(cfg.paths.scenes).resolve()):
        make_scenes(cfg)


def make_scenes(cfg: DictConfig):
    """Writes, or verifies, the corpus of `cfg.scenes` below `paths.scenes`, with a progress bar, and returns its manifest."""
    from rich.progress import Progress

    from crossvit.data import scenes

    sizes = OmegaConf.to_container(cfg.scenes.sizes) if OmegaConf.is_config(cfg.scenes.sizes) else cfg.scenes.sizes
    with Progress(transient=True) as bar:
        task = bar.add_task(f"scenes, {cfg.scenes.preset}", total=None)
        return scenes.generate(
            Path(cfg.paths.scenes),
            preset=cfg.scenes.preset,
            seed=cfg.scenes.seed,
            image_size=cfg.scenes.image_size,
            sizes=sizes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
