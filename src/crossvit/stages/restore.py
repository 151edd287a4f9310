"""From a stored stage back to a model: the config that travels with the weights, and the weights by name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError

from crossvit.config import PACKAGE_FILE, register_resolvers
from crossvit.errors import UserError
from crossvit.models.crossvit import CrossViT
from crossvit.models.weights import read_state_dict, transfer
from crossvit.stages.build import build_model
from crossvit.stages.store import CONFIG, PROVENANCE, WEIGHTS

CHAIN = "chain.json"
NEEDED = (
    "patch_encoder",
    "vision",
    "text_encoder",
    "fusion",
    "tokenizer",
    "model.embed_dim",
    "data.image_size",
    "seed",
)
INITIAL_WEIGHTS = ("checkpoint", "pretrained")


def stage_directories(path: Path) -> list[Path]:
    """The stages that `path` stands for: those of a run's chain, the root first, or the one stage that it is.

    Raises UserError where it is neither, or a stage is not there any more.
    """
    if (path / WEIGHTS).is_file():
        return [path.resolve()]
    if not (path / CHAIN).is_file():
        raise UserError(f"{path}: neither a stage ({WEIGHTS}) nor a run ({CHAIN}); give one of those directories")
    try:
        stages = [(path / stage["path"]).resolve() for stage in json.loads((path / CHAIN).read_text())]
        stages[-1]
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{path / CHAIN} is damaged: run the command that made it again") from None
    for stage in stages:
        if not (stage / WEIGHTS).is_file():
            raise UserError(f"{path / CHAIN} names {stage}, which is not there: run the command that made it again")
    return stages


def stored_config(directory: Path) -> DictConfig:
    """The stage's config, without the files its network was initialised from: its own weights take their place.

    It may be a stranger's: nothing is looked up in it but files of installed packages, neither the environment nor other keys, for
    `storable` leaves none of these open. Raises UserError where it is missing or damaged, or a package whose files the model needs is
    not installed.
    """
    register_resolvers()
    try:
        text = (directory / CONFIG).read_text(encoding="utf-8")
        plain = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        open_ends = [part for word in _words(plain) for part in re.findall(r"\$\{.*", PACKAGE_FILE.sub("", word))]
        if open_ends:
            raise UserError(
                f"{directory / CONFIG}: {open_ends[0]} is not resolved, and is not looked up; a stage's config holds values"
            )
        cfg = OmegaConf.create(_without_initial_weights(plain))
        complete = all(OmegaConf.select(cfg, key) is not None for key in NEEDED)
    except FileNotFoundError:
        raise UserError(f"{directory}: no {CONFIG}, so this is no stored stage") from None
    except (YAMLError, OmegaConfBaseException, ValueError, OSError, AttributeError, TypeError):
        complete = False
    if not complete:
        raise UserError(f"{directory / CONFIG} is damaged: it does not say how the model is built")
    try:
        OmegaConf.resolve(cfg)
    except InterpolationResolutionError as error:
        reason = str(error).splitlines()[0].removeprefix("UserError raised while resolving interpolation: ")
        raise UserError(f"{directory / CONFIG}: {reason}") from None
    return cfg


def _words(node: Any) -> Iterator[str]:
    """All text in a config as yaml reads it: `"\\x24{...}"` in the file is `${...}` here."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _words(key)
            yield from _words(value)
    elif isinstance(node, list):
        for value in node:
            yield from _words(value)
    elif isinstance(node, str):
        yield node


def _without_initial_weights(node: Any) -> Any:
    """Wherever they stand: what is nested in a stranger's config must not reach for a file or the network either."""
    if isinstance(node, list):
        return [_without_initial_weights(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = {key: _without_initial_weights(value) for key, value in node.items()}
    named = [key for key in INITIAL_WEIGHTS if not isinstance(found.get(key, {}), (dict, list))]
    return found | {key: False if isinstance(found[key], bool) else None for key in named}


def restore_model(directory: Path, cfg: DictConfig) -> tuple[CrossViT, dict[str, Tensor]]:
    """The CrossViT of a stage and all its weights, on the CPU.

    Parts that no stage has trained are initialised from `cfg.seed`. Raises UserError where a file is missing, damaged or does not fit.
    """
    import lightning as L

    try:
        provides = tuple(json.loads((directory / PROVENANCE).read_text())["provides"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{directory / PROVENANCE} is missing or damaged: it says what the stage hands on") from None
    weights = read_state_dict(directory / WEIGHTS)
    L.seed_everything(cfg.seed, verbose=False)
    model = build_model(cfg)
    fresh = tuple(name for name in model.state_dict() if not name.startswith(provides))
    transfer(model, {n: v for n, v in weights.items() if n.startswith(provides)}, allow_missing=fresh)
    return model, weights
