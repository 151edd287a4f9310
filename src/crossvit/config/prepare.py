"""From the config that Hydra hands a job to the one its command sees."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from crossvit.config.chain import chain_configs
from crossvit.config.compose import current_invocation
from crossvit.config.validate import validate
from crossvit.errors import UserError
from crossvit.launch import place
from crossvit.redaction import redact


def prepare(cfg: DictConfig) -> DictConfig:
    """Validates the config (and those of the stages before it), writes it to the run directory, without secrets, and makes it read-only.

    Where `chain` holds overrides for the stage itself they are in the answer. Raises UserError before anything heavy is imported; a run
    directory that holds nothing is taken away then.
    """
    from hydra.core.hydra_config import HydraConfig

    invocation = current_invocation()
    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        if "stage" in cfg:
            cfg = chain_configs(invocation.overrides, invocation.primary)[-1].cfg
        else:
            cfg.run_name = cfg.run_name  # the resolver's answer, which needs the running job, as plain text
            validate(cfg)
    except UserError:
        if place().rank == 0 and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        raise
    if place().rank == 0:
        (directory / "config.yaml").write_text(redact(OmegaConf.to_yaml(cfg, resolve=True)))
        (directory / "overrides.yaml").write_text(redact(OmegaConf.to_yaml(OmegaConf.create(invocation.overrides))))
    OmegaConf.set_readonly(cfg, True)
    return cfg
