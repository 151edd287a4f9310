"""Weights & Biases without a prompt: offline where no key is set, one id across resumes."""

import netrc
import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

from crossvit.errors import UserError


def wandb_logger(
    save_dir: str | Path,
    name: str,
    project: str = "crossvit",
    group: str | None = None,
    entity: str | None = None,
    tags: list[str] | None = None,
    offline: bool | None = None,
):
    """A Lightning `WandbLogger` that never asks for a key.

    Files go to `<save_dir>/wandb`. The run's id is kept in `<save_dir>/wandb-<name>.id`: the same run, resumed, keeps its id.
    offline: True or False; None means offline unless WANDB_MODE says otherwise or a key is set (WANDB_API_KEY or ~/.netrc).
    Raises UserError where it shall go online without a key.
    """
    if offline is None:
        offline = _is_offline()
    if not offline and not _has_key():
        raise UserError(
            "logger.wandb: no key to go online with: set WANDB_API_KEY, run `wandb login`, or set logger.wandb.offline=true"
        )

    import wandb
    from lightning.pytorch.loggers import WandbLogger

    directory = Path(save_dir)
    directory.mkdir(parents=True, exist_ok=True)
    logger = WandbLogger(
        save_dir=str(directory),
        name=name,
        id=_kept_id(directory / f"wandb-{name.replace('/', '_')}.id"),
        project=project,
        group=group,
        entity=entity,
        tags=tags or [],
        offline=offline,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off"),
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on as None, of which wandb warns
    return logger


def _kept_id(path: Path) -> str:
    if not path.is_file():
        path.write_text(secrets.token_hex(4))
    return path.read_text().strip()


def _is_offline() -> bool:
    mode = os.environ.get("WANDB_MODE", "")
    if mode:
        return mode != "online"
    return not _has_key()


def _has_key() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or _netrc_has_key()


def _netrc_has_key() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
