"""Weights & Biases without a prompt: offline where no key is set, one id across resumes, and no reason to lose a training."""

import logging
import netrc
import os
import secrets
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from crossvit.errors import UserError
from crossvit.redaction import redact

log = logging.getLogger(__name__)

DEFAULT_SERVER = "https://api.wandb.ai"
PATIENCE = 10  # seconds that one request waits for an answer


def wandb_logger(
    save_dir: str | Path,
    name: str,
    project: str = "crossvit",
    group: str | None = None,
    entity: str | None = None,
    tags: list[str] | None = None,
    offline: bool | None = None,
    init_timeout: float = 90,
    finish_timeout: float = 600,
):
    """A Lightning `WandbLogger` that never asks for a key.

    Files go to `<save_dir>/wandb`. The run's id is kept in `<save_dir>/wandb-<name>.id`: the same run, resumed, keeps its id.
    offline: True or False; None means offline unless WANDB_MODE says otherwise or a key is set (WANDB_API_KEY or ~/.netrc), and offline
    after all where the server does not answer. init_timeout: seconds to wait for it at the start of a stage. finish_timeout: seconds to
    wait for what is not uploaded yet at its end; the files stay for `wandb sync`.

    Neither the command line, which may hold a password, nor the address of the checkout's remote is recorded by wandb. Raises UserError
    where it shall go online without a key.
    """
    if offline is None:
        strict, offline = False, _is_offline()
    else:
        strict = True
    if not offline and not _has_key():
        raise UserError(
            "logger.wandb: no key to go online with: set WANDB_API_KEY, run `wandb login`, or set logger.wandb.offline=true"
        )

    import wandb

    directory = Path(save_dir)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        kept_id = _kept_id(directory / f"wandb-{name.replace('/', '_')}.id")
    except OSError as error:
        raise UserError(
            f"logger.wandb.save_dir={directory}: {error.strerror}; make room there, or set another folder, or logger=csv"
        ) from None
    settings = {"init_timeout": init_timeout, "finish_timeout": finish_timeout}
    known = {key: value for key, value in settings.items() if key in wandb.Settings.model_fields}  # of older versions
    logger = PatientWandbLogger(
        save_dir=str(directory),
        name=name,
        id=kept_id,
        project=project,
        group=group,
        entity=entity,
        tags=tags or [],
        offline=offline,
        resume="allow",
        settings=wandb.Settings(silent=True, console="off", disable_git=True, x_disable_meta=True, **known),
    )
    logger.strict = strict
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on as None, of which wandb warns
    return logger


class PatientWandbLogger(WandbLogger):
    """Goes on offline where no server answers at the start of a stage, unless `strict`. A key that is refused is an error in any case.

    The server is asked before wandb is: a `wandb.init` that has failed leaves a service behind which holds on to the run's id and waits a
    minute at the end of the process.
    """

    strict = True

    @property
    @rank_zero_experiment
    def experiment(self):
        """The wandb run."""
        if self._experiment is None and not (self.strict or self._offline):
            reason = _unreachable(os.environ.get("WANDB_BASE_URL", DEFAULT_SERVER))
            if reason is not None:
                log.warning(
                    "wandb's server does not answer (%s): this stage logs offline, `wandb sync` uploads %s/wandb/offline-run-* later",
                    reason, self.save_dir,
                )  # fmt: skip
                self._wandb_init["mode"] = "offline"
        return super().experiment


def _unreachable(server: str, tries: int = 2) -> str | None:
    """Why a server gives no answer, or none but that it is out of order; None where it answers."""
    for left in reversed(range(tries)):
        try:
            with urlopen(server, timeout=PATIENCE):
                return None
        except HTTPError as error:
            if error.code < 500:
                return None
            reason = f"it says {error.code}"
        except (OSError, HTTPException, ValueError) as error:
            reason = redact(str(getattr(error, "reason", None) or error) or type(error).__name__)
        if left:
            time.sleep(1)
    return reason


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
    host = urlsplit(os.environ.get("WANDB_BASE_URL", DEFAULT_SERVER)).hostname
    try:
        return host in netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
