"""From a resolved config to objects: tokenizer, data, model, task, trainer.

Configs that travel with weights come from strangers. What a `_target_` names must lie in the rooms that such a part is built from: a
model's config may name layers, but no logger that writes files and no reader that fetches them.
"""

import inspect
from typing import Any

from omegaconf import DictConfig, OmegaConf

from crossvit.errors import UserError

TOKENIZER = ("crossvit.data.tokenizer.",)
MODEL = (
    "crossvit.models.",
    *TOKENIZER,
    "torch.nn.",
    "timm.models.",
    "timm.layers.",
    "open_clip.transformer.",
)
OBJECTIVE = ("crossvit.objectives.",)
OPTIMIZER = ("torch.optim.", "timm.optim.")
SCHEDULER = ("crossvit.tasks.schedules.",)
DATA = ("crossvit.data.",)
EVALUATOR = ("crossvit.evaluation.",)
CALLBACK = ("crossvit.callbacks.", "lightning.pytorch.callbacks.")
LOGGER = ("crossvit.loggers.", "lightning.pytorch.loggers.")
TRUSTED = tuple(dict.fromkeys([*MODEL, *OBJECTIVE, *OPTIMIZER, *SCHEDULER, *DATA, *EVALUATOR, *CALLBACK, *LOGGER]))
"""All of them: where the classes lie that some part of a config may name, and the class methods of this project's own."""
TRUSTED_FUNCTIONS = (*SCHEDULER, "crossvit.loggers.")


def make(node: DictConfig, rooms: tuple[str, ...] = TRUSTED, **arguments: Any) -> Any:
    """`hydra.utils.instantiate` of a node whose targets all lie in `rooms`; containers arrive as plain lists and dicts."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    require_trusted(node, rooms)
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


def require_trusted(node: Any, rooms: tuple[str, ...] = TRUSTED) -> None:
    """Raises UserError naming the first `_target_` that does not lie in `rooms`.

    The name alone does not tell: `torch.nn.functional.torch.distributed` leads to classes that start programs. What it names must be
    defined where it is said to be.
    """
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    pending = [plain]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if item.get("_target_") is not None:
                _require_trusted_target(str(item["_target_"]), rooms)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _require_trusted_target(target: str, rooms: tuple[str, ...]) -> None:
    from hydra.utils import get_object

    where = ", ".join(room.rstrip(".") for room in rooms)
    refused = UserError(f"_target_={target}: only classes of {where} may be built here from a config")
    if not target.startswith(rooms) or any(part.startswith("_") for part in target.split(".")):
        raise refused
    try:
        found = get_object(target)
    except Exception as error:
        raise UserError(f"_target_={target}: cannot be imported ({type(error).__name__})") from error
    home = f"{getattr(found, '__module__', '')}."
    own_method = (
        inspect.ismethod(found)
        and isinstance(found.__self__, type)
        and f"{found.__self__.__module__}.".startswith("crossvit.")
    )
    if not home.startswith(rooms) or not (isinstance(found, type) or own_method or home.startswith(TRUSTED_FUNCTIONS)):
        raise refused


def build_tokenizer(cfg: DictConfig):
    """The tokenizer that belongs to the text encoder of `cfg`."""
    return make(cfg.tokenizer, TOKENIZER)


def build_data(node: DictConfig, tokenizer, **replaced: Any):
    """A LightningDataModule; `replaced` stands in for the node's own values."""
    return make(node, DATA, tokenizer=tokenizer, **replaced)


def build_model(cfg: DictConfig):
    """The `CrossViT` of `cfg`, initialised by the global random seed."""
    from crossvit.models.crossvit import CrossViT

    return CrossViT(
        patch_encoder=make(cfg.patch_encoder, MODEL),
        vision=make(cfg.vision, MODEL),
        text_encoder=make(cfg.text_encoder, MODEL),
        fusion=make(cfg.fusion, MODEL),
        embed_dim=cfg.model.embed_dim,
        num_relations=cfg.model.num_relations,
    )


def build_task(cfg: DictConfig, num_classes: int | None = None):
    """The LightningModule that `stage.task` names; it builds, and initialises, no more of the model than it trains."""
    from crossvit.models.execution import Execution

    lr_scale = OmegaConf.to_container(cfg.optimizer.lr_scale) if cfg.optimizer.lr_scale else {}
    settings = {
        "optimizer": make(cfg.optimizer.algorithm, OPTIMIZER),
        "schedule": make(cfg.scheduler, SCHEDULER),
        "lr_scale": lr_scale,
        "execution": Execution(cfg.compile, cfg.checkpoint_activations, cfg.channels_last),
    }
    if cfg.stage.task == "cross_modal":
        from crossvit.tasks.cross_modal import CrossModalTask

        terms = {name: make(term, OBJECTIVE) for name, term in cfg.objective.items() if name != "teacher"}
        momentum = cfg.objective.teacher.momentum
        settings |= {"seed": cfg.seed, "teacher_momentum": momentum, "micro_batch": cfg.micro_batch}
        return CrossModalTask(build_model(cfg), terms, **settings)
    settings["loss"] = make(cfg.objective.classification, OBJECTIVE)
    if cfg.stage.task == "patch_encoder":
        from crossvit.tasks.patch_encoder import PatchEncoderTask

        return PatchEncoderTask(make(cfg.patch_encoder, MODEL), num_classes, **settings)
    if cfg.stage.task == "visual_transformer":
        from crossvit.tasks.visual_transformer import VisualTransformerTask

        return VisualTransformerTask(make(cfg.patch_encoder, MODEL), make(cfg.vision, MODEL), num_classes, **settings)
    raise UserError(f"stage.task={cfg.stage.task}: choose patch_encoder, visual_transformer or cross_modal")
