"""Transfer: one stage trained from every stage of a chain and from nothing, so that the table says what each of them is worth to it."""

from dataclasses import replace
from typing import NamedTuple

from omegaconf import DictConfig

from crossvit.config import StageConfig, check_signatures, transfer_configs
from crossvit.errors import UserError
from crossvit.report.cells import Cell
from crossvit.stages.chain import ChainLink, ensure, open_data
from crossvit.stages.evaluating import DATASETS, evaluate_stages
from crossvit.stages.preflight import check_stage
from crossvit.stages.ranks import join


class Transfer(NamedTuple):
    """A stage to train from `start`, a name in the chain, or None for a fresh network."""

    config: StageConfig
    start: str | None


def plan_transfers(cfg: DictConfig, overrides: list[str], chain: list[StageConfig]) -> list[Transfer]:
    """Every stage of `transfer.stages` x `transfer.seeds` x where it starts.

    Raises UserError, naming the stage, where it cannot be trained.
    """
    names = {None: None} | {config.option: config.name for config in chain}
    seeds = [cfg.seed] if cfg.transfer.seeds is None else list(cfg.transfer.seeds)
    plan = []
    for option in cfg.transfer.stages:
        configs = transfer_configs(overrides, option, list(names), seeds, cfg.command)
        plan += [Transfer(config, names[config.cfg.stage.parent]) for config in configs]
        config = configs[-1]
        if config.cfg.stage.task != "cross_modal":
            raise UserError(
                f"transfer.stages: stage {option} learns from pictures alone; choose one with texts, e.g. medical"
            )
        check_signatures(config.cfg)
        check_stage(config, open_data(config))
    return plan


def run_transfers(plan: list[Transfer], links: list[ChainLink]) -> list[ChainLink]:
    """Trains what the store lacks of the plan."""
    stored = {link.config.name: link.stored for link in links}
    return [ensure(one.config, open_data(one.config), stored.get(one.start), join(one.config.cfg)) for one in plan]


def evaluate_transfers(plan: list[Transfer], links: list[ChainLink], cfg: DictConfig) -> list[Cell]:
    """The cells of the plan's stages on the suite, in rows that say where each has started."""
    cells = []
    for one, link in zip(plan, links, strict=True):
        stage = one.config.name
        name = DATASETS.get(stage, stage)
        start = "from scratch" if one.start is None else f"after {DATASETS.get(one.start, one.start)}"
        cells += [
            replace(cell, row=f"{name} {start}", dataset=name, stage=stage)
            for cell in evaluate_stages([link.stored], cfg.suite, cfg.paths, cfg.scenes)
        ]
    return cells
