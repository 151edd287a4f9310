"""From a resolved config to objects: tokenizer, data, model, task, trainer.

Configs that travel with weights come from strangers, so a `_target_` outside TRUSTED is refused before anything is imported.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from crossvit.errors import UserError

TRUSTED = ("crossvit.", "timm.", "open_clip.", "torch.", "lightning.")


def make(node: DictConfig, **arguments: Any) -> Any:
    """`hydra.utils.instantiate` of a node whose targets are all trusted; containers arrive as plain lists and dicts."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    require_trusted(node)
    try:
        return instantiate(node, _convert_="all", **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(str(error).replace("\n", " ")) from error


def require_trusted(node: Any) -> None:
    """Raises UserError naming the first `_target_` that is not of this project or a library it builds on."""
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    pending = [plain]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            target = item.get("_target_")
            if target is not None and not str(target).startswith(TRUSTED):
                raise UserError(
                    f"_target_={target}: only {', '.join(t + '*' for t in TRUSTED)} may be built from a config"
                )
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


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
    """The LightningModule that `stage.task` names, with its freshly initialised network."""
    settings = {
        "optimizer": make(cfg.optimizer.algorithm),
        "schedule": make(cfg.scheduler),
        "lr_scale": OmegaConf.to_container(cfg.optimizer.lr_scale, resolve=True),
    }
    model = build_model(cfg)
    if cfg.stage.task == "cross_modal":
        from crossvit.tasks.cross_modal import CrossModalTask

        terms = {name: make(term) for name, term in cfg.objective.items()}
        return CrossModalTask(model, terms, seed=cfg.seed, **settings)
    loss = make(cfg.objective.classification)
    if cfg.stage.task == "patch_encoder":
        from crossvit.tasks.patch_encoder import PatchEncoderTask

        return PatchEncoderTask(model.patch_encoder, num_classes, loss=loss, **settings)
    if cfg.stage.task == "visual_transformer":
        from crossvit.tasks.visual_transformer import VisualTransformerTask

        return VisualTransformerTask(model.patch_encoder, model.vision, num_classes, loss=loss, **settings)
    raise UserError(f"stage.task={cfg.stage.task}: choose patch_encoder, visual_transformer or cross_modal")
