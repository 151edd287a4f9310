"""Writes the embedded corpus where a stage or a test asks for it and it is not there yet: it needs no download."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf


def prepare_corpus(cfg: DictConfig, data: DictConfig) -> None:
    """Generates the preset of `scenes` that `data.root` lies in (paths.scenes/<preset>/...), for a mixture that of every source's root.

    Does nothing for any other root.
    """
    if "sources" in data:
        for source in filter(None, data.sources.values()):
            prepare_corpus(cfg, source.data)
        return
    scenes, root = Path(cfg.paths.scenes).resolve(), Path(data.root).resolve()
    if root.is_relative_to(scenes) and root != scenes:
        make_scenes(cfg, root.relative_to(scenes).parts[0])


def make_scenes(cfg: DictConfig, preset: str):
    """Writes, or verifies, a preset of the corpus below `paths.scenes`, with a progress bar, and returns its manifest.

    Seed, picture size and counts are those of `cfg.scenes`.
    """
    from rich.progress import Progress

    from crossvit.data import scenes

    sizes = OmegaConf.to_container(cfg.scenes.sizes) if OmegaConf.is_config(cfg.scenes.sizes) else cfg.scenes.sizes
    with Progress(transient=True) as bar:
        task = bar.add_task(f"scenes, {preset}", total=None)
        return scenes.generate(
            Path(cfg.paths.scenes),
            preset=preset,
            seed=cfg.scenes.seed,
            image_size=cfg.scenes.image_size,
            sizes=sizes,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
