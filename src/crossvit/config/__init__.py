"""Configs: where they lie, how one is composed, what is wrong with it, and the configs of a stage's ancestors.

Imports Hydra and OmegaConf, never torch.
"""

from crossvit.config.chain import StageConfig, chain_configs, transfer_configs
from crossvit.config.compose import (
    PACKAGE_FILE,
    compose,
    current_invocation,
    group_options,
    register_resolvers,
    storable,
)
from crossvit.config.place import config_directory
from crossvit.config.targets import check_signatures
from crossvit.config.validate import validate

__all__ = [
    "PACKAGE_FILE",
    "StageConfig",
    "chain_configs",
    "check_signatures",
    "compose",
    "config_directory",
    "current_invocation",
    "group_options",
    "register_resolvers",
    "storable",
    "transfer_configs",
    "validate",
]
