"""Can this stage be trained at all? Asked of every stage of a chain that the store lacks, before the first of them is trained."""

import os
import shutil
from pathlib import Path

from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm

from crossvit.config import StageConfig
from crossvit.config.validate import SHARDED
from crossvit.data.module import per_device
from crossvit.errors import UserError


def check_stage(config: StageConfig, data) -> None:
    """Builds the stage's task and trainer once and throws them away. Raises UserError, naming the stage, for what does not fit."""
    from crossvit.stages.build import build_task
    from crossvit.stages.training import build_trainer
    from crossvit.tasks.base import parameter_groups

    cfg = config.cfg
    try:
        check_data(cfg, data)
        trainer = build_trainer(cfg, Path(cfg.paths.run_dir))
        devices = trainer.num_devices * trainer.num_nodes
        per_device(cfg.data.batch_size, devices)
        task = build_task(cfg, num_classes=len(data.classes) if hasattr(data, "classes") else None)
        check_optimizer(cfg, parameter_groups(task.network, 1.0, cfg.optimizer.lr_scale or {}))
        check_monitors(cfg, task.validation_figures(data))
        check_execution(cfg, task)
        check_batch_norm(cfg, task, devices)
        if cfg.stage.task == "cross_modal":
            check_terms(task.terms, data)
    except UserError as error:
        raise UserError(f"stage {config.name}: {error}") from None


def check_optimizer(cfg: DictConfig, groups: list[dict]) -> None:
    """Raises UserError where the optimizer does not take its settings."""
    from crossvit.stages.build import OPTIMIZER, make

    try:
        make(cfg.optimizer.algorithm, OPTIMIZER)(groups)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise UserError(f"optimizer.algorithm: {str(error).splitlines()[0]}") from None


def check_execution(cfg: DictConfig, task) -> None:
    """Raises UserError where a way to run the network does not go with what is trained."""
    teacher = getattr(task, "teacher", None) is not None
    if cfg.trainer.precision == "bf16-true" and teacher:
        raise UserError(
            "trainer.precision=bf16-true: bf16 cannot hold the small steps of a momentum teacher's average; "
            "set trainer.precision=bf16-mixed"
        )
    if cfg.trainer.strategy == SHARDED:
        for part in ("patch_encoder", "text_encoder"):
            if part in cfg and cfg[part].get("remember"):
                raise UserError(
                    f"{part}.remember needs the encoder's weights whole: set it to 0 under trainer.strategy={SHARDED}"
                )
    if cfg.compile is not None and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError(
            f"compile={cfg.compile} needs a C++ compiler, and there is no g++ here: install one, or set compile=null"
        )
    if cfg.compile in ("reduce-overhead", "max-autotune") and (teacher or task.runs_again):
        raise UserError(
            f"compile={cfg.compile} keeps the buffers of one pass, and micro_batch, an adversary or a momentum teacher makes "
            "several in a step: set compile=default"
        )


def check_batch_norm(cfg: DictConfig, task, devices: int) -> None:
    """Raises UserError where a BatchNorm that is trained would see a part of the batch: its result would be another than that of the
    whole batch on one device, under the same name in the store."""
    norms = (module for module in task.network.train().modules() if isinstance(module, _BatchNorm))
    if not any(norm.training for norm in norms):
        return
    whole = "or keep its statistics: patch_encoder.freeze_norm=true"
    if cfg.stage.task == "cross_modal" and cfg.micro_batch is not None and cfg.micro_batch < cfg.data.batch_size:
        raise UserError(
            f"micro_batch={cfg.micro_batch}: BatchNorm would see parts of the batch: leave it null, {whole}"
        )
    if devices > 1 and not cfg.trainer.sync_batchnorm:
        raise UserError(
            f"trainer.sync_batchnorm=false on {devices} devices: BatchNorm would see parts of the batch: set it to true (GPUs only), "
            f"{whole}"
        )


def check_data(cfg: DictConfig, data) -> None:
    """Raises UserError where the task learns something that the data do not hold."""
    name, task = type(data).__name__, cfg.stage.task
    if task == "cross_modal" and not hasattr(data, "pair_loader"):
        raise UserError(
            f"{name} holds no texts, which stage.task={task} needs: choose another data=..., e.g. data=coco"
        )
    if task != "cross_modal" and not hasattr(data, "classes"):
        raise UserError(
            f"{name} holds no classes, which stage.task={task} learns: choose another data=..., e.g. data=imagenet"
        )


def check_monitors(cfg: DictConfig, figures: tuple[str, ...]) -> None:
    """Raises UserError where the gate or another callback waits for a figure that no validation of the stage will log."""
    if not figures:  # nothing is validated
        return
    for name, node in cfg.callbacks.items():
        if node is None or node.get("threshold", 0) is None:  # a gate that never opens
            continue
        monitor = node.get("monitor")
        if monitor is not None and monitor not in figures:
            raise UserError(f"callbacks.{name}.monitor={monitor}: this stage's validation logs {', '.join(figures)}")


def check_terms(terms, data) -> None:
    """Raises UserError where a term needs what the pairs lack, or pairs of pictures meet terms that read one."""
    index, name = data.index(data.train_split), type(data).__name__
    two_images = index.rows.ndim == 2
    for key, term in terms.items():
        if not term.can_learn(labelled=index.labels is not None, generated=data.num_negatives > 0):
            raise UserError(
                f"objective.{key} has no false pairs to learn from: set objective.{key}.hard_negatives=true, or choose data with "
                "generated captions"
            )
        if term.needs_label and index.labels is None:
            raise UserError(
                f"objective.{key} needs pairs with a label, and {name} has none: set objective.{key}.weight=0"
            )
        if term.reads_truth and index.labels is not None and index.labels.max() > 1:
            raise UserError(
                f"objective.{key} reads labels 0 and 1, false and true, and {name} has more of them: set objective.{key}.weight=0, "
                "e.g. objective=relation"
            )
        if term.needs_two_images and not two_images:
            raise UserError(
                f"objective.{key} needs statements about two pictures, and {name} has one each: "
                f"set objective.{key}.weight=0"
            )
        if two_images and not term.needs_two_images:
            raise UserError(
                f"objective.{key} reads one picture a text, and {name} has two: set objective.{key}.weight=0, e.g. objective=two_image"
            )
