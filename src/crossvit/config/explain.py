"""One line for a config that does not compose: what was misspelt and what is meant."""

import difflib
import re
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from crossvit.config.overrides import override_key
from crossvit.config.place import config_directory

COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, ValueError)
"""What Hydra raises for a config that does not compose; ValueError for flags or overrides that exclude each other."""


def suggest(word: str, known: Iterable[str], limit: int = 12) -> str:
    """` Did you mean 'x'?` for a near miss, else ` Choose one of: ...`; empty where nothing is known."""
    known = sorted({str(item) for item in known})
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]!r}?"
    if not known:
        return ""
    return f" Choose one of: {', '.join(known[:limit])}{', ...' if len(known) > limit else ''}."


def explain(error: Exception, primary: str, overrides: list[str], config_dir: str | None = None) -> str:
    """The message of a UserError for an error of Hydra or OmegaConf raised while composing `primary` with `overrides`.

    config_dir: the user's own directory of configs, beside `conf/`.
    """
    if isinstance(error, OverrideParseException):
        if error.override and error.override.partition("=")[2].startswith("~"):
            return f"cannot read {error.override!r}: the shell leaves ~ as it is behind '=': write $HOME"
        key, _, value = str(error.override).partition("=")
        if "{" in value and value[:1] not in "'\"{[":
            return f"cannot read {error.override!r}: braces need quotes of their own: \"{key}='{value}'\""
        reason = str(error).splitlines()[0].partition(f": {error.override}")[0]
        return (
            f"cannot read {error.override!r}: {reason}. Write key=value, and quote values with spaces, commas or '='."
        )
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    text = str(error)
    if text.startswith("Config group override must be"):
        empty = [o for o in overrides if override_key(o) in _groups() and o.partition("=")[2] in ("null", "")]
        first = override_key(empty[0]) if empty else text
        return f"{', '.join(empty)}: leave it out.{suggest(first, _options(first))}"
    if isinstance(error, YAMLError):
        return f"a config file is not valid YAML: {' '.join(text.split())}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and "No match in the defaults list" not in text:
        return _unknown_key(unknown.group(1), primary, overrides, config_dir)
    where = re.match(r"In '([^']+)': Could not override '([^'@=]+)", text)
    if where and where.group(2) in _groups():
        return (
            f"{where.group(1)} overrides {where.group(2)!r}, which {primary} does not have: use it with another command"
        )
    unknown = re.search(r"Override [^ ]+ looks like a config group.*config group '([^']+)' does not exist", text)
    if unknown or (unknown := re.search(r"Could not override '([^'@=]+)", text)):
        if unknown.group(1) in _groups():
            return f"{primary} has no config group {unknown.group(1)!r}: use it with another command"
        return f"no config group {unknown.group(1)!r} in {primary}.{suggest(unknown.group(1), _groups())}"
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


def _missing_option(error) -> str:
    missing = str(error.missing_cfg_file or "")
    group, _, option = missing.rpartition("/")
    options = [option for option in error.options or () if option != "default"]
    if not group:
        return (
            f"no primary config {option!r}.{suggest(option, [path.stem for path in config_directory().glob('*.yaml')])}"
        )
    return f"{group}={option}: no such option.{suggest(option, options)}"


def _unknown_key(key: str, primary: str, overrides: list[str], config_dir: str | None) -> str:
    known = flatten(OmegaConf.to_container(_without_values(primary, overrides, config_dir), resolve=False))
    parent, _, leaf = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    if parent and siblings:
        near = difflib.get_close_matches(leaf, [k.rpartition(".")[2] for k in siblings], n=1, cutoff=0.6)
        if near:
            return f"no key {key!r}. Did you mean '{parent}.{near[0]}'?"
    near = difflib.get_close_matches(key, [*known, *_groups()], n=1, cutoff=0.6)
    if not near:  # the right name in another place: lr -> optimizer.lr
        near = [k for k in known if k.rpartition(".")[2] == leaf][:1]
    if near:
        return f"no key {key!r}. Did you mean {near[0]!r}?"
    return f"no key {key!r}.{suggest(leaf, [k.rpartition('.')[2] for k in siblings])} See: crossvit {primary} --cfg job"


def _without_values(primary: str, overrides: list[str], config_dir: str | None):
    """The config with the chosen groups but no values, so that it composes and shows the keys that exist."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    groups = _groups()
    chosen = [override for override in overrides if override_key(override) in groups]
    beside = [f"hydra.searchpath=['file://{Path(config_dir).resolve()}']"] if config_dir else []
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        for attempt in ([*chosen, *beside], beside):
            try:
                return hydra.compose(primary, attempt)
            except COMPOSITION_ERRORS:
                continue
    return OmegaConf.create({})


def _options(group: str) -> list[str]:
    return [path.stem for path in (config_directory() / group).glob("*.yaml") if path.stem != "default"]


def _groups() -> list[str]:
    root = config_directory()
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir() and "hydra" not in path.parts
    )
