"""Checks of a composed config that need no heavy import: values in range, nothing left open, keywords that fit."""

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crossvit.config.explain import flatten, suggest
from crossvit.config.targets import check_own_targets
from crossvit.errors import UserError
from crossvit.launch import place as this_process

TASKS = ("patch_encoder", "visual_transformer", "cross_modal")
PRECISIONS = ("auto", "32", "32-true", "bf16-mixed", "16-mixed", "bf16-true")
COMPILE_MODES = ("None", "default", "reduce-overhead", "max-autotune")
SHARDED = "fsdp_spawn"
CORPORA = ("scenes",)
PRESETS = ("easy", "medium", "hard")
MODES = ("max", "min")
STAGE_PARTS = {
    **dict.fromkeys(("patch_encoder", "vision", "text_encoder", "fusion", "data", "scheduler", "trainer"), "_target_"),
    "model": "width",
    "optimizer": "algorithm",
    "objective": None,
    "callbacks": None,
    "logger": None,
}
"""Groups of which every stage has one, and a key by which it is seen to be there."""

Check = Callable[[str, Any], None]


def validate(cfg: DictConfig) -> None:
    """Raises UserError, naming the key, for the first thing wrong with a composed config."""
    unresolved = OmegaConf.to_container(cfg, resolve=False)
    for key in flatten(unresolved):
        if _select(unresolved, key) == "???":
            raise UserError(f"{key}: has no value yet; give it as {key}=<value>")
    plain = _resolved(cfg)
    for key, check in CHECKS.items():
        value = _select(plain, key)
        if value is not _ABSENT:
            check(key, value)
    _check_groups(plain)
    _check_length(plain)
    _check_grid(plain)
    _check_objective(plain)
    _check_objective_fits_task(plain)
    _check_strategy(plain)
    _check_divisible(plain)
    _check_suite(plain)
    check_own_targets(plain)


def _number(
    low: float | None = None, high: float | None = None, *, above: float | None = None, null: bool = False
) -> Check:
    def check(key: str, value: Any) -> None:
        if value is None and null:
            return
        bounds = [f"> {above}"] if above is not None else []
        bounds += [f">= {low}"] if low is not None else []
        bounds += [f"<= {high}"] if high is not None else []
        wanted = "a number" + (f" {' and '.join(bounds)}" if bounds else "") + (" or null" if null else "")
        good = isinstance(value, int | float) and not isinstance(value, bool)
        good = (
            good
            and (low is None or value >= low)
            and (high is None or value <= high)
            and (above is None or value > above)
        )
        if not good:
            raise UserError(f"{key}={value}: must be {wanted}")

    return check


def _integer(low: int | None = None, high: int | None = None, *, null: bool = False) -> Check:
    def check(key: str, value: Any) -> None:
        if value is None and null:
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or (low is not None and value < low) or (high is not None and value > high):
            bound = ("" if low is None else f" >= {low}") + ("" if high is None else f" and <= {high}")
            raise UserError(f"{key}={value}: must be a whole number{bound}{' or null' if null else ''}")

    return check


def _choice(options: tuple[str, ...]) -> Check:
    def check(key: str, value: Any) -> None:
        if str(value) not in options:
            raise UserError(f"{key}={value}: not known.{suggest(str(value), options)}")

    return check


def _flag(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{key}={value}: must be true or false")


def _batches(key: str, value: Any) -> None:
    """Lightning reads 1 as one batch and 1.0 as all of them."""
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    share = isinstance(value, float) and 0.0 <= value <= 1.0
    if not (whole or share):
        raise UserError(f"{key}={value}: must be a number of batches (whole) or a share of them (0.0 to 1.0)")


def _epochs(key: str, value: Any) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < -1 or value == 0):
        raise UserError(f"{key}={value}: must be a whole number >= 1, -1 for no limit, or null")


def _names(key: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{key}={value}: must be a list of names, e.g. {key}=[medical]")


def _seeds(key: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, list) or not value:
        raise UserError(f"{key}={value}: must be a list of seeds, e.g. {key}=[0,1,2], or null")
    for seed in value:
        _integer(0, 2**32 - 1)(key, seed)


CHECKS: dict[str, Check] = {
    "seed": _integer(0, 2**32 - 1),
    "make": _choice(CORPORA),
    "show": _choice(("status", "report")),
    "tune.trials": _integer(1),
    "tune.at_once": _integer(1),
    "tune.seed": _integer(0, 2**32 - 1, null=True),
    "samples_per_shard": _integer(1),
    "decode": _flag,
    "json": _flag,
    "workers": _integer(1),
    "scenes.preset": _choice(PRESETS),
    "scenes.seed": _integer(0),
    "scenes.image_size": _integer(8),
    "micro_batch": _integer(1, null=True),
    "compile": _choice(COMPILE_MODES),
    "checkpoint_activations": _flag,
    "channels_last": _flag,
    "collective_timeout": _number(above=0),
    "arm.length": _number(above=0),
    "transfer.stages": _names,
    "transfer.seeds": _seeds,
    "stage.task": _choice(TASKS),
    "stage.mode": _choice(MODES),
    "model.image_size": _integer(8),
    "model.grid": lambda key, value: _pair(key, value),
    "model.width": _integer(1),
    "model.heads": _integer(1),
    "model.text_width": _integer(1),
    "model.embed_dim": _integer(1),
    "model.num_relations": _integer(2),
    "vision.depth": _integer(0),
    "text_encoder.depth": _integer(0),
    "fusion.depth": _integer(0),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.num_workers": _integer(0),
    "data.shuffled": _number(0, 1),
    "data.max_bad_fraction": _number(0, 1),
    "objective.itm.hard_negatives": _choice(("True", "False", "random")),
    "objective.adversarial.algorithm": _choice(("pgd", "freelb", "villa", "vat")),
    "objective.adversarial.attack": _choice(("itm", "itc", "relation", "two_image")),
    "objective.adversarial.target": _choice(("label", "pseudo", "teacher")),
    "objective.adversarial.norm": _choice(("l2", "linf")),
    "objective.adversarial.init": _choice(("zero", "uniform")),
    "objective.adversarial.direction": _choice(("gradient", "random", "none")),
    "objective.adversarial.eps": _number(above=0, null=True),
    "objective.adversarial.step_size": _number(above=0),
    "objective.adversarial.steps": _integer(1),
    "objective.itc.queue_size": _integer(0),
    "objective.itc.tile": _integer(1, null=True),
    "objective.sigmoid.tile": _integer(1, null=True),
    "objective.itc.label_smoothing": _number(0, 0.99),
    "objective.distill.hard_negatives": _choice(("True", "False", "random")),
    "objective.crossdual.hard_negatives": _choice(("True", "False", "random")),
    "objective.adversarial.hard_negatives": _choice(("True", "False", "random")),
    "objective.adversarial.kl_weight": _number(0),
    "objective.distill.ramp": _integer(0),
    "objective.dml.temperature": _number(above=0),
    "objective.crossdual.temperature": _number(above=0),
    "callbacks.compute.batches": _integer(1),
    "callbacks.nonfinite.action": _choice(("stop", "skip")),
    "callbacks.nonfinite.max_skipped": _integer(1),
    "callbacks.spikes.action": _choice(("warn", "stop")),
    "callbacks.spikes.window": _integer(10),
    "callbacks.spikes.deviations": _number(0),
    "callbacks.spikes.rise": _number(0),
    "callbacks.collapse.min_std": _number(0, 1),
    "callbacks.collapse.min_rank": _number(0),
    "callbacks.collapse.patience": _integer(1),
    "objective.teacher.momentum": _number(0, 0.99999),
    "optimizer.lr": _number(above=0),
    "optimizer.weight_decay": _number(0),
    "scheduler.warmup": _number(0, 1),
    "scheduler.floor": _number(0, 1),
    "logger.wandb.init_timeout": _number(above=0),
    "logger.wandb.finish_timeout": _number(0),
    "callbacks.gate.mode": _choice(MODES),
    "callbacks.gate.threshold": _number(null=True),
    "callbacks.gate.min_epochs": _integer(1),
    "trainer.precision": _choice(PRECISIONS),
    "trainer.deterministic": _choice(("None", "True", "False", "warn")),
    "trainer.max_epochs": _epochs,
    "trainer.max_steps": _epochs,
    "trainer.accumulate_grad_batches": _integer(1),
    "trainer.gradient_clip_val": _number(0, null=True),
    "trainer.limit_train_batches": _batches,
    "trainer.limit_val_batches": _batches,
    "trainer.log_every_n_steps": _integer(1),
    "trainer.check_val_every_n_epoch": _integer(1, null=True),
    "trainer.num_sanity_val_steps": _integer(-1),
    "trainer.fast_dev_run": lambda key, value: None if isinstance(value, bool) else _integer(0)(key, value),
}


def _check_groups(plain: dict) -> None:
    """What a stage is made of is there: `~optimizer` takes it out, but for what the stage says of it."""
    if "stage" not in plain:
        return
    for name, sign in STAGE_PARTS.items():
        node = plain.get(name)
        whole = isinstance(node, dict) and (sign is None or sign in node)
        if whole and name in ("callbacks", "objective"):
            nodes = [child for child in node.values() if isinstance(child, dict)]
            whole = not nodes or any("_target_" in child for child in nodes)
        if not whole:
            instead = {"logger": "none", "callbacks": "quiet"}.get(name, "OPTION")
            raise UserError(f"{name}: a stage needs one; leave ~{name} out, or choose {name}={instead}")


def _check_grid(plain: dict) -> None:
    side, grid = _select(plain, "model.image_size"), _select(plain, "model.grid")
    if isinstance(side, int) and isinstance(grid, list) and max(grid) > side:
        raise UserError(f"model.grid={grid}: more patches in a row than a picture of {side} pixels has pixels")


def _check_length(plain: dict) -> None:
    trainer = plain.get("trainer") or {}
    if "max_epochs" not in trainer:
        return
    if not any((trainer.get(key) or -1) > 0 for key in ("max_epochs", "max_steps")):
        raise UserError(
            "trainer.max_epochs and trainer.max_steps: give one of them a number > 0; the schedule of the learning rate goes by it, "
            "trainer.max_time may end it sooner"
        )


def _check_objective(plain: dict) -> None:
    terms = plain.get("objective")
    if not isinstance(terms, dict):
        return
    for name, term in terms.items():
        if isinstance(term, dict) and "weight" in term:
            _number(0)(f"objective.{name}.weight", term["weight"])
    weights = [term["weight"] for term in terms.values() if isinstance(term, dict) and "weight" in term]
    if weights and not any(weights):
        raise UserError("objective: every weight is 0, there is nothing to train; e.g. objective.itc.weight=1")


def _check_objective_fits_task(plain: dict) -> None:
    terms, task = plain.get("objective"), _select(plain, "stage.task")
    if not isinstance(terms, dict) or task is _ABSENT:
        return
    if task == "cross_modal" and "classification" in terms:
        raise UserError("objective=classification: stage.task=cross_modal learns from pairs; e.g. objective=itc_itm")
    if task != "cross_modal" and "classification" not in terms:
        raise UserError(f"objective: stage.task={task} learns classes; set objective=classification")


def _check_strategy(plain: dict) -> None:
    """Several devices, by processes that are neither spawned nor started from outside: Lightning would run the command line, and with it
    the chain, once for each."""
    trainer = plain.get("trainer") or {}
    devices, strategy, nodes = trainer.get("devices"), str(trainer.get("strategy")), trainer.get("num_nodes") or 1
    several = nodes > 1 or _several(devices, str(trainer.get("accelerator")))
    if any(word in strategy for word in ("fsdp", "model_parallel", "deepspeed")) and strategy != SHARDED:
        raise UserError(
            f"trainer.strategy={strategy}: weights are sharded by trainer.strategy={SHARDED}, see trainer=fsdp"
        )
    if strategy == SHARDED and str(trainer.get("precision")).startswith("16"):
        raise UserError(
            f"trainer.precision={trainer['precision']} scales the loss, which trainer.strategy={SHARDED} cannot: "
            "set trainer.precision=bf16-mixed"
        )
    on_a_cluster = "tasks_per_node" in (plain.get("cluster") or {})
    if not several or this_process().world > 1:
        return
    if on_a_cluster and (not isinstance(devices, int) or devices < 1):
        raise UserError(
            f"trainer.devices={devices}: cluster=slurm asks for one task a device: say how many of each node"
        )
    if on_a_cluster:
        return
    if nodes > 1:
        raise UserError(
            f"trainer.num_nodes={nodes}: processes on other nodes come from outside: set cluster=slurm, or start torchrun on each node"
        )
    if any(word in strategy for word in ("spawn", "fork")):
        return
    if _is_sweep():
        raise UserError(
            f"trainer.strategy={strategy} with trainer.devices={devices} in a sweep: Lightning would run the command line again for each "
            "device, and each would train other hyper-parameters. Three ways out: trainer=ddp or trainer.strategy=ddp_spawn, whose "
            "processes the job itself spawns; cluster=slurm, one task a device for each job; or one run at a time, without -m"
        )
    raise UserError(
        f"trainer.strategy={strategy} with trainer.devices={devices} would start the whole command once for each device: set "
        "trainer=ddp, fsdp, ddp_sim or fsdp_sim, or trainer.strategy=ddp_spawn, or start it with torchrun --nproc-per-node"
    )


def _several(devices: Any, accelerator: str) -> bool:
    """Lightning's ways to say how many: a number, -1 for all, a list of indices, and each of these as text."""
    if isinstance(devices, list):
        return len(devices) > 1
    text = str(devices).strip(" ,")
    if text == "auto":
        return accelerator not in ("cpu", "auto")
    return text == "-1" or "," in text or (text.isdigit() and int(text) > 1)


def _is_sweep() -> bool:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _pair(key: str, value: Any) -> None:
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
        raise UserError(f"{key}={value}: must be rows and columns, e.g. {key}=[7,7]")


def _check_divisible(plain: dict) -> None:
    for key in ("model", "vision", "text_encoder", "fusion"):
        node = plain.get(key)
        width, heads = (node.get("width"), node.get("heads")) if isinstance(node, dict) else (None, None)
        if isinstance(width, int) and isinstance(heads, int) and width % heads:
            raise UserError(f"{key}.width={width} is not a multiple of {key}.heads={heads}")


def _check_suite(plain: dict) -> None:
    """Every test has its two halves."""
    for name, entry in (plain.get("suite") or {}).items():
        if entry is None:
            continue
        for half, place in (
            ("data", f"/data@{name}.data: NAME in the defaults of a suite"),
            ("evaluator", f"suite.{name}.evaluator._target_"),
        ):
            node = entry.get(half) if isinstance(entry, dict) else None
            if not isinstance(node, dict) or node.get("_target_") is None:
                raise UserError(f"suite.{name}: has no {half} ({place}); suite.{name}=null leaves the test out")


_ABSENT = object()


def _select(plain: dict, key: str) -> Any:
    node: Any = plain
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return _ABSENT
        node = node[part]
    return node


def _resolved(cfg: DictConfig) -> dict:
    try:
        return OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "config"
        message = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
        raise UserError(f"{where}: {message}") from error
