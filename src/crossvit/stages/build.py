"""From a resolved config to objects: tokenizer, data, model, task, trainer.

Configs that travel with weights come from strangers, so what a `_target_` names must be one of TRUSTED.
"""

import inspect
from typing import Any

from omegaconf import DictConfig, OmegaConf

from crossvit.errors import UserError

ROOMS = ("models", "data", "objectives", "tasks", "evaluation", "callbacks", "loggers")
TRUSTED = (
    *(f"crossvit.{room}." for room in ROOMS),
    "timm.",
    "open_clip.",
    "torch.nn.",
    "torch.optim.",
    "lightning.pytorch.",
    "lightning.Trainer",
)
"""Where the classes lie that a config may name, and their class methods."""
TRUSTED_FUNCTIONS = ("crossvit.tasks.schedules.", "crossvit.loggers.")


def make(node: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate` of a node whose targets are all trusted; containers arrive as plain lists and dicts."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    require_trusted(node)
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, ValueError):
            key = str(error).rpartition("full_key: ")[2].strip() or node["_target_"]
            raise UserError(f"{key}: {cause}") from error
        raise UserError(str(error).replace("\n", " ")) from error


def require_trusted(node: Any) -> None:
    """Raises UserError naming the first `_target_` that is not of this project or a library it builds on.

    The name alone does not tell: `torch.os.system` begins with `torch.` too. What it names must be defined where it is said to be.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    pending = [plain]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if item.get("_target_") is not None:
                _require_trusted_target(str(item["_target_"]))
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _require_trusted_target(target: str) -> None:
    from hydra.utils import get_object

    refused = UserError(
        f"_target_={target}: only classes of {', '.join(t.rstrip('.') for t in TRUSTED)} may be built from a config"
    )
    if not target.startswith(TRUSTED) or any(part.startswith("_") for part in target.split(".")):
        raise refused
    try:
        found = get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target}: cannot be imported ({type(error).__name__})") from error
    home = str(getattr(found, "__module__", ""))
    made_by_class = isinstance(found, type) or (inspect.ismethod(found) and isinstance(found.__self__, type))
    if home.partition(".")[0] != target.partition(".")[0]:
        raise refused
    if not (made_by_class or f"{home}.".startswith(TRUSTED_FUNCTIONS)):
        raise refused


def build_tokenizer(cfg: DictConfig):
    """The tokenizer that belongs to the text encoder of `cfg`."""
    return make(cfg.tokenizer)


def build_data(node: DictConfig, tokenizer, **replaced: Any):
    """A LightningDataModule; `replaced` stands in for the node's own values."""
    return make(node, tokenizer=tokenizer, **replaced)


def build_model(cfg: DictConfig):
    """The `CrossViT` of `cfg`, initialised by the global random seed."""
    from crossvit.models.crossvit import CrossViT

    return CrossViT(
        patch_encoder=make(cfg.patch_encoder),
        vision=make(cfg.vision),
        text_encoder=make(cfg.text_encoder),
        fusion=make(cfg.fusion),
        embed_dim=cfg.model.embed_dim,
        num_relations=cfg.model.num_relations,
    )


def build_task(cfg: DictConfig, num_classes: int | None = None):
    """The LightningModule that `stage.task` names; it builds, and initialises, no more of the model than it trains."""
    from crossvit.models.execution import Execution

    lr_scale = OmegaConf.to_container(cfg.optimizer.lr_scale) if cfg.optimizer.lr_scale else {}
    settings = {"optimizer": make(cfg.optimizer.algorithm), "schedule": make(cfg.scheduler), "lr_scale": lr_scale}
    settings["execution"] = Execution(cfg.compile, cfg.checkpoint_activations, cfg.channels_last)
    if cfg.stage.task == "cross_modal":
        from crossvit.tasks.cross_modal import CrossModalTask

        terms = {name: make(term) for name, term in cfg.objective.items() if name != "teacher"}
        momentum = cfg.objective.teacher.momentum
        settings |= {"seed": cfg.seed, "teacher_momentum": momentum, "micro_batch": cfg.micro_batch}
        return CrossModalTask(build_model(cfg), terms, **settings)
    settings["loss"] = make(cfg.objective.classification)
    if cfg.stage.task == "patch_encoder":
        from crossvit.tasks.patch_encoder import PatchEncoderTask

        return PatchEncoderTask(make(cfg.patch_encoder), num_classes, **settings)
    if cfg.stage.task == "visual_transformer":
        from crossvit.tasks.visual_transformer import VisualTransformerTask

        return VisualTransformerTask(make(cfg.patch_encoder), make(cfg.vision), num_classes, **settings)
    raise UserError(f"stage.task={cfg.stage.task}: choose patch_encoder, visual_transformer or cross_modal")
