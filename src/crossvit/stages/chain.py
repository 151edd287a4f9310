"""The chain imagenet -> coco -> vlr: each stage is trained once, stored under its fingerprint, and handed on by name."""

import json
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from crossvit.config import StageConfig, chain_configs, check_signatures, storable
from crossvit.errors import Diverged, UserError
from crossvit.stages.fingerprint import fingerprint
from crossvit.stages.ranks import ALONE, Ranks, SharedClaim, join
from crossvit.stages.store import StageClaim, StageStore, StoredStage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainLink:
    """One stage of a chain: its config, its stored result, and whether this call trained it."""

    config: StageConfig
    stored: StoredStage
    trained: bool


def run_chain(overrides: list[str], primary: str = "train") -> list[ChainLink]:
    """Trains what is missing of the chain that ends in the stage of `overrides`; the root comes first in the answer.

    Processes that were started from outside (torchrun, srun) train each stage together.
    """
    configs = chain_configs(overrides, primary)
    for config in configs:
        check_signatures(config.cfg)
    ranks = join(configs[-1].cfg)
    modules = ranks.in_turn(lambda: [open_data(config) for config in configs])  # all, before the first is trained
    ranks.in_turn(lambda: check_missing(configs, modules))
    links: list[ChainLink] = []
    for config, data in zip(configs, modules, strict=True):
        links.append(ensure(config, data, links[-1].stored if links else None, ranks))
    return links


def open_data(config: StageConfig):
    """The stage's LightningDataModule, its layout checked. Raises UserError naming the stage."""
    from crossvit.stages.build import build_data, build_tokenizer
    from crossvit.stages.corpus import prepare_corpus

    try:
        prepare_corpus(config.cfg, config.cfg.data)
        data = build_data(config.cfg.data, build_tokenizer(config.cfg))
        data.validate()
    except UserError as error:
        raise UserError(f"stage {config.name}: {error}") from None
    return data


def check_missing(configs: list[StageConfig], modules: list) -> None:
    """Raises UserError where a stage that the store lacks could not be trained, so that no earlier one is trained in vain."""
    from crossvit.stages.preflight import check_stage

    mark = None
    for config, data in zip(configs, modules, strict=True):
        mark = fingerprint(config.cfg, mark, data.manifest())
        if StageStore(Path(config.cfg.paths.store)).get(mark) is None:
            check_stage(config, data)


def ensure(config: StageConfig, data, parent: StoredStage | None, ranks: Ranks = ALONE) -> ChainLink:
    """Takes the stage from the store, or trains it there. Two jobs that need the same stage train it once: the second waits."""
    manifest = data.manifest()
    mark = fingerprint(config.cfg, parent.fingerprint if parent else None, manifest)
    store = StageStore(Path(config.cfg.paths.store))
    with ExitStack() as held:
        claim = SharedClaim(ranks.decide(lambda: take_or_claim(store, mark, config.name, held)), ranks)
        if claim.stored is not None:
            log.info("%s: taken from %s", config.name, claim.stored.path)
            return ChainLink(config, claim.stored, trained=False)
        log.info("%s: training as %s", config.name, mark)
        return ChainLink(config, train_stage(config, data, manifest, parent, claim), trained=True)


def take_or_claim(store: StageStore, mark: str, name: str, held: ExitStack) -> StageClaim:
    """The stage, if it is stored or another job stores it while this one waits; else the right to train it, until `held` ends."""
    stored = store.get(mark)
    return StageClaim(store, mark, stored) if stored is not None else held.enter_context(store.claim(mark, label=name))


def train_stage(
    config: StageConfig, data, manifest: dict, parent: StoredStage | None, claim: SharedClaim
) -> StoredStage:
    """Trains one stage in the claim's working directory and commits it. The newest sound checkpoint found there is resumed."""
    import lightning as L
    import torch

    from crossvit.callbacks.checkpoint import forget_checkpoints, keep_last_only, newest_checkpoint
    from crossvit.callbacks.compute import COMPUTE
    from crossvit.callbacks.interrupt import handing_on
    from crossvit.callbacks.steps import STEPS
    from crossvit.callbacks.validation_curve import VALIDATION
    from crossvit.loggers import close
    from crossvit.stages.build import build_task
    from crossvit.stages.failures import explained, less_memory
    from crossvit.stages.training import build_trainer

    cfg = config.cfg
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    task = build_task(cfg, num_classes=len(data.classes) if hasattr(data, "classes") else None)
    if parent is not None:
        hand_over(parent, task.network)
    trainer = claim.ranks.in_turn(lambda: build_trainer(cfg, claim.directory))
    last = claim.ranks.decide(lambda: newest_checkpoint(claim.directory))
    started = time.time()
    try:
        with explained(f"stage {config.name}", less_memory(cfg), claim.directory), handing_on(trainer):
            trainer.fit(task, datamodule=data, ckpt_path=last and str(last), weights_only=True)
    finally:
        close(trainer.loggers)
    if trainer.interrupted:
        raise KeyboardInterrupt
    weights = task.export()
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        claim.ranks.decide(lambda: forget_checkpoints(claim.directory))
        raise Diverged(
            f"stage {config.name}: {len(broken)} of {len(weights)} tensors are not finite any more ({broken[0]}, ...): lower "
            "optimizer.lr, or see where it begins with debug=anomaly"
        )
    claim.ranks.decide(lambda: keep_last_only(claim.directory))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    here = {name.split(".")[0] for name, p in task.network.named_parameters() if p.requires_grad}
    return claim.commit(
        weights=weights,
        config=storable(cfg),
        provenance={
            "stage": config.name,
            "option": config.option,
            "task": cfg.stage.task,
            "provides": list(task.provides),
            "trained_here": sorted(here),
            "trained_modules": sorted(here | set(parent.provenance["trained_modules"] if parent else ())),
            "parent": parent.fingerprint if parent else None,
            "data": manifest,
            "metrics": metrics,
            "seed": cfg.seed,
            "steps": _kept(claim.directory / STEPS),
            "seconds": round(time.time() - started, 1),
            "bad_samples": data.bad_samples.count,
            "compute": _kept(claim.directory / COMPUTE),
            "validation": _kept(claim.directory / VALIDATION),
        },
    )


def _kept(path: Path):
    """What a callback has left in the working directory; None without that callback. A file, for training may run in other processes."""
    return json.loads(path.read_text()) if path.is_file() else None


def hand_over(parent: StoredStage, network) -> None:
    """Copies by name what the parent provides; the rest of the network keeps its fresh initialisation, and the report says so."""
    from crossvit.models.weights import read_state_dict, transfer

    provides = tuple(parent.provenance["provides"])
    weights = {name: value for name, value in read_state_dict(parent.weights).items() if name.startswith(provides)}
    fresh = tuple(name for name in network.state_dict() if not name.startswith(provides))
    report = transfer(network, weights, allow_missing=fresh)
    log.info("from %s: %s", parent.provenance["stage"], report.summary())


def watched(link: ChainLink) -> float | None:
    """The last value of the figure that a stage watches (`stage.monitor`); None where it was not measured."""
    return link.stored.provenance["metrics"].get(link.config.cfg.stage.monitor)


def describe(links: list[ChainLink]) -> str:
    """One line a stage: name, fingerprint, whether it was trained or taken, its validation figures."""
    lines = []
    for link in links:
        figures = ", ".join(f"{k} {v:.3f}" for k, v in sorted(link.stored.provenance["metrics"].items()) if "val/" in k)
        verb = f"trained in {link.stored.provenance['seconds']:.0f} s" if link.trained else "taken from the store"
        lines.append(f"{link.config.name:14} {link.stored.fingerprint}  {verb}  {figures}")
    return "\n".join(lines)
