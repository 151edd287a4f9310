"""Composing a config outside of Hydra's own entry point, and naming the run it stands for."""

import hashlib
import re
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from crossvit.config.explain import COMPOSITION_ERRORS, explain
from crossvit.config.overrides import override_root
from crossvit.config.place import config_directory
from crossvit.errors import UserError
from crossvit.redaction import redact

# What a run's name already says, or what does not change a result: the digest in the name leaves these out.
UNNAMED = (
    *("stage", "patch_encoder", "experiment", "seed", "run_name", "paths", "logger", "hydra"),
    *("sweep", "sweep_name", "tune", "cluster"),
)

GPUS = ("gpu", "cuda")
"""Accelerators for which a cluster is asked for GPUs."""

PACKAGE_FILE = re.compile(r"\$\{package_file:[^${}]*\}")  # all that a stored config may leave open


class Invocation(NamedTuple):
    """What the user asked this job for: the primary config and the overrides, those of a sweep's job included."""

    primary: str
    overrides: list[str]


class Composed(NamedTuple):
    """A config without its `hydra` node, and the option chosen in each config group."""

    cfg: DictConfig
    choices: dict[str, str | None]


def current_invocation() -> Invocation:
    """The job that Hydra is running. Raises ValueError outside of a Hydra job."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return Invocation(hydra.job.config_name, _as_given(hydra))


def compose(overrides: list[str] | None = None, primary: str = "train") -> DictConfig:
    """The config of `primary` with `overrides`, as the command line composes it.

    Inside a Hydra job its search path (`--config-dir`) is used. Raises UserError with a suggestion for a key, group or option that is
    not there.
    """
    return compose_with_choices(overrides, primary).cfg


def compose_with_choices(overrides: list[str] | None = None, primary: str = "train") -> Composed:
    """As `compose`, with the chosen options."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    register_resolvers()
    overrides = list(overrides or [])
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        try:
            full = hydra.compose(primary, overrides, return_hydra_config=True)
        except COMPOSITION_ERRORS as error:
            raise UserError(explain(error, primary, overrides)) from error
    choices = {str(group): option for group, option in full.hydra.runtime.choices.items()}
    name = automatic_run_name(choices, _as_given(full.hydra), full.get("seed"))
    cfg = OmegaConf.masked_copy(full, [key for key in full if key != "hydra"])
    OmegaConf.set_struct(cfg, True)
    if _is_automatic(cfg):
        cfg.run_name = name
    return Composed(cfg, choices)


def group_options(group: str) -> list[str]:
    """The options of a config group, those beside `--config-dir` included."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.object_type import ObjectType

    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        return GlobalHydra.instance().config_loader().get_group_options(group, ObjectType.CONFIG)


def register_resolvers() -> None:
    """Makes `${auto_run_name:}`, `${package_file:}` and the others known; to be called before Hydra starts."""
    OmegaConf.register_new_resolver("auto_run_name", _auto_run_name, replace=True)
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
    OmegaConf.register_new_resolver("comma_separated", lambda items: ",".join(map(str, items)), replace=True)
    OmegaConf.register_new_resolver("optuna_direction", lambda mode: f"{mode}imize", replace=True)
    OmegaConf.register_new_resolver("trials_left", trials_left, replace=True)
    OmegaConf.register_new_resolver("one_more", lambda number: number + 1, replace=True)
    OmegaConf.register_new_resolver("gpus", lambda kind, devices: devices if kind in GPUS else None, replace=True)


def package_file(package: str, path: str) -> str:
    """`${package_file:package,path}`: a file or folder inside an installed package, which is not imported for it.

    Raises UserError, naming what to install, where the package or the file is missing.
    """
    from importlib.util import find_spec

    if not package.isidentifier():  # with a dot in it, the package around it would be imported
        raise UserError(f"package_file: {package!r} is not the name of a package")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        name = package.replace("_", "-")
        raise UserError(f"needs the package {name}, which is not installed: pip install {name}")
    folder = Path(spec.submodule_search_locations[0])
    found = folder / path
    if not found.exists() or ".." in Path(path).parts or Path(path).is_absolute():
        raise UserError(f"the installed package {package} has no {path}")
    return str(found)


def trials_left(wanted: int, storage: str, study: str) -> int:
    """`${trials_left:...}`: how many trials a study of Optuna lacks; those that failed or were cut off do not count."""
    import optuna

    if study not in optuna.get_all_study_names(storage):
        return wanted
    done = optuna.load_study(study_name=study, storage=storage).get_trials(states=[optuna.trial.TrialState.COMPLETE])
    return max(0, wanted - len(done))


def storable(cfg: DictConfig) -> str:
    """The resolved config as yaml, without secrets. What lies inside an installed package stays `${package_file:...}`: it may lie
    elsewhere where the config is read again."""
    text = OmegaConf.to_yaml(cfg, resolve=True)
    for words in sorted(set(PACKAGE_FILE.findall(OmegaConf.to_yaml(cfg)))):
        text = text.replace(OmegaConf.create({"place": words}).place, words)
    return redact(text)


def automatic_run_name(choices: dict[str, str | None], overrides: list[str], seed: int | None) -> str:
    """A readable name, the same for the same command: experiment, stage, patch encoder, seed and a digest of the other overrides."""
    parts = [str(choices[group]) for group in ("experiment", "stage", "patch_encoder") if choices.get(group)]
    parts += [] if seed is None else [f"seed{seed}"]
    settings = dict(
        override.partition("=")[::2] for override in overrides
    )  # a later override of a key replaces the first
    rest = sorted(f"{key}={value}" for key, value in settings.items() if override_root(key) not in UNNAMED)
    if rest:
        parts.append(hashlib.sha256("\n".join(rest).encode()).hexdigest()[:6])
    return "-".join(parts).replace("/", "_") or "run"


def _auto_run_name(*, _root_: DictConfig) -> str:
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    return automatic_run_name(dict(hydra.runtime.choices), _as_given(hydra), _root_.get("seed"))


def _as_given(hydra: DictConfig) -> list[str]:
    """The overrides as the user wrote them: `lr=${x}` is not looked up."""
    return OmegaConf.to_container(hydra.overrides.task, resolve=False)


def _is_automatic(cfg: DictConfig) -> bool:
    return "run_name" in cfg and "auto_run_name" in str(OmegaConf.to_container(cfg, resolve=False)["run_name"])
