"""The Lightning Trainer of a stage, built from its config."""

import warnings
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from crossvit.stages.build import make


def build_trainer(cfg: DictConfig, directory: Path):
    """A Trainer that writes below `directory`: logs, `checkpoints/last.ckpt` and metrics."""
    import lightning as L

    # torch's own deprecation, raised inside Lightning at every stage
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")

    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings.pop("_target_", None)
    return L.Trainer(
        **settings,
        default_root_dir=str(directory),
        callbacks=[make(node) for node in cfg.callbacks.values() if node is not None],
        logger=[make(node) for node in cfg.logger.values() if node is not None],
        use_distributed_sampler=False,
    )
