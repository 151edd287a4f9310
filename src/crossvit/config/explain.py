"""One line for a config that does not compose: what was misspelt and what is meant."""

import difflib
import re
from collections.abc import Iterable

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError)


def suggest(word: str, known: Iterable[str], limit: int = 12) -> str:
    """` Did you mean 'x'?` for a near miss, else ` Choose one of: ...`; empty where nothing is known."""
    known = sorted({str(item) for item in known})
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if not known:
        return ""
    return f" Choose one of: {', '.join(known[:limit])}{', ...' if len(known) > limit else ''}."


def explain(error: Exception, primary: str, overrides: list[str]) -> str:
    """The message of a UserError for an error of Hydra or OmegaConf raised while composing `primary` with `overrides`."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        reason = str(error).splitlines()[0]
        return f"cannot read {error.override!r}: {reason}. Write key=value, and quote values with spaces, commas or '='."
    if isinstance(error, MissingConfigException):
        return _missing_option(error, primary)
    text = str(error)
    if isinstance(error, YAMLError):
        return f"a config file is not valid YAML: {' '.join(text.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and "No match in the defaults list" not in text:
        return _unknown_key(unknown.group(1), primary, overrides)
    unknown = re.search(r"Override [^ ]+ looks like a config group.*config group '([^']+)' does not exist", text)
    if unknown or (unknown := re.search(r"Could not override '([^'@=]+)", text)):
        return f"no config group {unknown.group(1)!r} in {primary}.{suggest(unknown.group(1), _groups(primary))}"
    lines = [line.strip() for line in (*text.splitlines(), *str(error.__cause__ or "").splitlines()) if line.strip()]
    return " ".join(lines[:3]) or type(error).__name__


def flatten(node: object, prefix: str = "") -> list[str]:
    """Every dotted key of a nested mapping, inner nodes included."""
    keys = []
    if isinstance(node, dict):
        for key, value in node.items():
            keys.append(f"{prefix}{key}")
            keys.extend(flatten(value, f"{prefix}{key}."))
    return keys


def _missing_option(error, primary: str) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, option = missing.rpartition("/")
    options = [option for option in error.options or () if option != "default"]
    if not group:
        return f"no primary config {option!r}.{suggest(option, options)}"
    return f"{group}={option}: no such option.{suggest(option, options)}"


def _unknown_key(key: str, primary: str, overrides: list[str]) -> str:
    known = flatten(OmegaConf.to_container(_without_values(primary, overrides), resolve=False))
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    if parent and siblings:
        near = difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in siblings], n=1, cutoff=0.6)
        if near:
            return f"no key {key!r}. Did you mean '{parent}.{near[0]}'?"
    near = difflib.get_close_matches(key, [*known, *_groups(primary)], n=1, cutoff=0.6)
    if not near:  # the right name in another place: lr -> optimizer.lr
        near = [k for k in known if k.rpartition(".")[2] == leaf][:1]
    if near:
        return f"no key {key!r}. Did you mean {near[0]!r}?"
    return f"no key {key!r}.{suggest(leaf, [k.rpartition('.')[2] for k in siblings])} See: crossvit {primary} --cfg job"


def _without_values(primary: str, overrides: list[str]):
    """The config with the chosen groups but no values, so that it composes and shows the keys that exist."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from crossvit.config.compose import config_directory

    groups = _groups(primary)
    chosen = [override for override in overrides if override.partition("=")[0].partition("@")[0] in groups]
    attempts = (chosen, [])
    for attempt in attempts:
        try:
            if GlobalHydra.instance().is_initialized():
                return compose(primary, attempt)
            with initialize_config_dir(str(config_directory()), version_base="1.3"):
                return compose(primary, attempt)
        except COMPOSITION_ERRORS:
            continue
    return OmegaConf.create({})


def _groups(primary: str) -> list[str]:
    from crossvit.config.compose import config_directory

    root = config_directory()
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir() and "hydra" not in path.parts)
