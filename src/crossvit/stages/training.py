"""The Lightning Trainer of a stage, built from its config."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from crossvit.config.validate import SHARDED
from crossvit.errors import UserError
from crossvit.launch import in_slurm_job, place
from crossvit.stages.build import CALLBACK, LOGGER, make


def build_trainer(cfg: DictConfig, directory: Path):
    """A Trainer that writes below `directory`: logs, `checkpoints/last.ckpt` and metrics.

    Raises UserError where Lightning does not take the settings, or the machine lacks the device.
    """
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

    from crossvit.callbacks.checkpoint import WholeFile
    from crossvit.callbacks.interrupt import Interrupt
    from crossvit.callbacks.preempted import Preempted
    from crossvit.callbacks.rank_watch import RankWatch
    from crossvit.callbacks.resume import Resume
    from crossvit.callbacks.steps import StepCount
    from crossvit.spawning import end_spawned
    from crossvit.tasks.synced_norm import SyncedNorm

    # torch's own deprecation, raised inside Lightning at every stage
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")

    # refused below
    warnings.filterwarnings("ignore", message=r".*AMP with fp16 is not supported on CPU.*")

    settings = OmegaConf.to_container(cfg.trainer, resolve=True)
    settings.pop("_target_", None)
    synced = [SyncedNorm()] if settings.pop("sync_batchnorm", False) else []
    settings["enable_checkpointing"] = (
        cfg.callbacks.get("checkpoint") is not None
    )  # else Lightning puts in one of its own
    around = surroundings(settings["strategy"])
    settings["strategy"] = around.strategy
    if settings["strategy"] == SHARDED:
        from crossvit.sharding import ShardedStrategy

        settings["strategy"] = ShardedStrategy()
    if cfg.callbacks.get("progress_bar") is None:
        settings["enable_progress_bar"] = False  # else Lightning puts a bar of its own in the place of the one left out
    callbacks = [make(node, CALLBACK) for node in cfg.callbacks.values() if node is not None]
    interrupt = Preempted() if in_slurm_job() else Interrupt()
    loggers = [make(node, LOGGER) for node in cfg.logger.values() if node is not None]
    try:
        trainer = L.Trainer(
            **settings,
            default_root_dir=str(directory),
            callbacks=[Resume(), StepCount(), *callbacks, RankWatch(cfg.collective_timeout), interrupt],
            plugins=[WholeFile(), around.environment, *synced],
            logger=loggers,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split())
        if any(word in reason.lower() for word in ("backend", "accelerator", "device", "gpu")):
            reason = f"{reason} (trainer=auto takes what this machine has)"
        raise UserError(f"trainer: {reason}") from error
    if cfg.trainer.precision == "16-mixed" and trainer.precision_plugin.precision != "16-mixed":
        raise UserError("trainer.precision=16-mixed: a CPU has no use for it; set trainer.precision=bf16-mixed or 32")
    if place().launcher is None and isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        raise UserError(
            f"trainer.devices={cfg.trainer.devices} finds {trainer.num_devices} devices here, and trainer.strategy={cfg.trainer.strategy} "
            "would start the whole command once for each: name the strategy, e.g. trainer=ddp, or set trainer.devices=1"
        )
    end_spawned(trainer.strategy)
    set_timeout(trainer.strategy, cfg.collective_timeout)
    return trainer


def set_timeout(strategy, seconds: float) -> None:
    """How long a process of several waits for the others in a collective; all of Lightning's strategies keep it under this name."""
    if hasattr(strategy, "_timeout"):
        strategy._timeout = timedelta(seconds=seconds)


class Surroundings(NamedTuple):
    """A Trainer's strategy in the place of its process, and the plugin that tells its rank."""

    strategy: Any
    environment: Any


def surroundings(strategy: Any) -> Surroundings:
    """What a Trainer is told of the place of its process. One that was started from outside spawns no others; within a job of SLURM that
    has one task nobody else's ranks count."""
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    # an installed srun is no reason to use it
    warnings.filterwarnings("ignore", message=r"The `srun` command is available.*")
    found = {
        "srun": lambda: SLURMEnvironment(auto_requeue=False),  # see callbacks/preempted.py
        "torchrun": TorchElasticEnvironment,
        None: LightningEnvironment,
    }
    launcher = place().launcher
    if launcher is not None and isinstance(strategy, str) and strategy.startswith("ddp_"):
        for method in ("_spawn", "_forkserver", "_fork", "_notebook"):
            strategy = strategy.replace(method, "")
    return Surroundings(strategy, found[launcher]())
