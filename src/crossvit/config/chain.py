"""The configs of a stage and of the stages before it.

A parent's config is the same composition with another `stage`, so that one command line describes the whole chain. What a user overrides
for one stage (its data, its learning rate, its length) belongs to the stage being trained; the rest (the model, the seed, the paths, the
device) holds for all. `chain.<stage name>=[...]` reaches one stage of the chain alone.

An arm (conf/arm) changes the stage being trained, so that arms share the stages before it; but a part of the model that it chooses holds
for the whole chain, for the stages hand weights on by name.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from crossvit.config.compose import Composed, compose_with_choices
from crossvit.config.overrides import override_key, override_root
from crossvit.config.precision import resolve_precision
from crossvit.config.validate import validate
from crossvit.errors import UserError

STAGE_GROUPS = ("stage", "data", "objective", "optimizer", "scheduler", "callbacks", "arm")
MODEL_PARTS = ("patch_encoder", "vision", "text_encoder", "fusion")
STAGE_TRAINER_KEYS = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "overfit_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "val_check_interval",
    "check_val_every_n_epoch",
)
EVERY_STAGE = ("data.num_workers", "data.eval_batch_size")  # how fast the samples come, not which


class StageConfig(NamedTuple):
    """One stage: its option in conf/stage, its name (`stage.name`) and its validated, read-only config."""

    option: str
    name: str
    cfg: DictConfig


def chain_configs(overrides: list[str], primary: str = "train") -> list[StageConfig]:
    """The configs of all stages from the root of the chain to the stage that `overrides` ask for, in the order of training.

    All share the target's `run_name`, hence its run directory. A Hydra job composes them once, however often it asks. Raises UserError for
    a bad override or value, naming the stage, and for a chain that returns to a stage.
    """
    from hydra.core.global_hydra import GlobalHydra

    running = GlobalHydra.instance()
    if running.is_initialized():
        return list(_composed_by(running.hydra, tuple(overrides), primary))
    return _compose_chain(overrides, primary)


@lru_cache(maxsize=1)
def _composed_by(hydra: Any, overrides: tuple[str, ...], primary: str) -> list[StageConfig]:
    """The chain under one start of Hydra, and so under one search path. The configs are read-only."""
    return _compose_chain(list(overrides), primary)


def _compose_chain(overrides: list[str], primary: str) -> list[StageConfig]:
    target = compose_with_choices(overrides, primary)
    if "stage" not in target.cfg or not target.choices.get("stage"):
        raise UserError(f"{primary}: this config has no stage; choose one with stage=<option>")
    additions = _additions(target.cfg)
    if target.choices.get("arm"):
        _check_arm(target)
    _check_lists(target, overrides, additions, primary)
    shared = _shared(overrides, target)
    links: list[StageConfig] = []
    option, composed, given = target.choices["stage"], target, overrides
    while True:
        if option in [link.option for link in links]:
            path = " -> ".join([link.option for link in reversed(links)])
            raise UserError(f"stage.parent: the chain returns to {option!r} ({option} -> {path})")
        links.append(_stage_config(option, composed, given, additions, target.cfg.run_name, primary, not links))
        option = links[-1].cfg.stage.parent
        if option is None:
            return links[::-1]
        given = [*shared, f"stage={option}"]
        composed = compose_with_choices(given, primary)


def transfer_configs(
    overrides: list[str], option: str, starts: Sequence[str | None], seeds: Sequence[int], primary: str = "pipeline"
) -> list[StageConfig]:
    """The configs of a stage that starts from other stages than its own parent: for each seed one for each of `starts` (options of
    conf/stage, None for a fresh network).

    They take what `overrides` say for the whole chain, and `chain.<name>`. In logs each is called `<name>_after_<start>_seed<seed>`.
    """
    target = compose_with_choices(overrides, primary)
    given = [*_shared(overrides, target), f"stage={option}"]
    composed = compose_with_choices(given, primary)
    found = _stage_config(option, composed, given, _additions(target.cfg), target.cfg.run_name, primary, target=False)
    configs = []
    for seed in seeds:
        for start in starts:
            cfg = found.cfg.copy()
            OmegaConf.set_readonly(cfg, False)
            cfg.seed, cfg.stage.parent = seed, start
            cfg.stage.name = f"{found.name}_after_{start or 'nothing'}_seed{seed}"
            validate(cfg)
            OmegaConf.set_readonly(cfg, True)
            configs.append(StageConfig(option, found.name, cfg))
    return configs


def is_stage_scoped(override: str) -> bool:
    """True for an override that belongs to the stage being trained alone: `optimizer.lr=1e-3`, `data=coco`, `trainer.max_epochs=2`."""
    key = override_key(override)
    if key in EVERY_STAGE:
        return False
    root, _, rest = key.partition(".")
    return root in STAGE_GROUPS or (root == "trainer" and rest in STAGE_TRAINER_KEYS)


def _shared(overrides: list[str], target: Composed) -> list[str]:
    """What of a command line holds for the whole chain."""
    shared = [override for override in overrides if not is_stage_scoped(override)]
    if target.choices.get("arm"):
        given_keys = {override_key(override) for override in overrides}
        shared += [f"{part}={target.choices[part]}" for part in MODEL_PARTS if part not in given_keys]
    return shared


def _additions(cfg: DictConfig) -> dict[str, list[str]]:
    return {str(name): _as_overrides(name, extra) for name, extra in (cfg.get("chain") or {}).items()}


def _stage_config(
    option: str,
    composed: Composed,
    given: list[str],
    additions: dict[str, list[str]],
    run_name: str,
    primary: str,
    target: bool,
) -> StageConfig:
    cfg = composed.cfg
    name = cfg.stage.name
    extra = additions.get(name, [])
    if extra:
        replaced = {override_key(override) for override in extra}
        try:
            cfg = compose_with_choices([*(o for o in given if override_key(o) not in replaced), *extra], primary).cfg
        except UserError as error:
            raise UserError(f"chain.{name}: {error}") from error
    OmegaConf.set_readonly(cfg, False)
    cfg.run_name = run_name
    try:
        resolve_precision(cfg)
        validate(cfg)
        if target:
            _stretch(cfg)
    except UserError as error:
        raise (error if target else UserError(f"stage {option}: {error}")) from None
    OmegaConf.set_readonly(cfg, True)
    return StageConfig(option, name, cfg)


def _check_arm(target: Composed) -> None:
    """An arm goes by its file's name, under which its cells are kept."""
    arm = target.choices["arm"]
    if target.cfg.arm.name != arm:
        raise UserError(
            f"arm={arm}: its arm.name is {target.cfg.arm.name!r}; write arm.name: {arm} in conf/arm/{arm}.yaml"
        )


def _check_lists(target: Composed, overrides: list[str], additions: dict[str, list[str]], primary: str) -> None:
    """A list `chain.<stage>` on the command line replaces that of the recipe: what the recipe says there is to be said again, or, without
    an arm, said otherwise."""
    if not any(override_root(override) == "chain" for override in overrides):
        return
    arm = target.choices.get("arm")
    alone = [override for override in overrides if override_root(override) != "chain"]
    for name, extra in (compose_with_choices(alone, primary).cfg.get("chain") or {}).items():
        own = additions.get(str(name), [])
        said = own if arm else [override_key(override) for override in own]
        lost = [override for override in extra or () if (override if arm else override_key(override)) not in said]
        if lost:
            who = f"arm {arm}" if arm else "the recipe"
            raise UserError(f"chain.{name}: {who} asks for {', '.join(lost)} there: write that into your list as well")


def _stretch(cfg: DictConfig) -> None:
    """`arm.length` times the steps and epochs, rounded up, for either may end the stage; the schedule, which goes by the trainer's length,
    stretches with them."""
    trainer, factor = cfg.trainer, cfg.arm.length
    if factor == 1:
        return
    for key in ("max_steps", "max_epochs"):
        if (trainer[key] or 0) > 0:
            trainer[key] = math.ceil(round(trainer[key] * factor, 6))


def _as_overrides(name: str, extra: object) -> list[str]:
    if extra is None:
        return []
    if OmegaConf.is_list(extra) and all(isinstance(item, str) for item in OmegaConf.to_container(extra, resolve=False)):
        return OmegaConf.to_container(extra, resolve=False)
    raise UserError(
        f"chain.{name}: give a list of overrides, e.g. 'chain.{name}=[\"optimizer.lr=1e-3\"]', not {extra!r}"
    )
