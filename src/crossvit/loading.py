"""`crossvit.load`: a trained model, ready to use, in open_clip's order of things."""

import json
from pathlib import Path

from omegaconf import OmegaConf

from crossvit.errors import UserError


def load(path: str | Path, device: str = "cpu"):
    """A trained model from a run directory of `train` or `pipeline`, or from a stage in the store.

    Returns (model, preprocess, tokenizer): a `CrossViT` in eval mode, PIL image -> normalised (3, S, S) tensor, texts -> (B, M) tokens.
    A run directory stands for the last stage of its chain. Nothing but tensors and plain data is read from the files, and the model is
    built from trusted targets only (`stages/build.py`). Raises UserError where the path is no such directory or its files are damaged.
    """
    from crossvit.models.weights import read_state_dict, transfer
    from crossvit.stages.build import build_data, build_model, build_tokenizer

    directory = resolve_stage(Path(path))
    cfg = OmegaConf.load(directory / "config.yaml")
    provenance = json.loads((directory / "provenance.json").read_text())
    tokenizer = build_tokenizer(cfg)
    model = build_model(cfg)
    kept = {
        name: value
        for name, value in read_state_dict(directory / "weights.safetensors").items()
        if name.startswith(tuple(provenance["provides"]))
    }
    fresh = tuple(n for n in model.state_dict() if not n.startswith(tuple(provenance["provides"])))
    transfer(model, kept, allow_missing=fresh)
    return model.to(device).eval(), build_data(cfg.data, tokenizer).preprocess, tokenizer


def resolve_stage(path: Path) -> Path:
    """The stage directory that `path` means: itself, or the last stage that a run's `chain.json` names."""
    if (path / "weights.safetensors").is_file():
        return path
    chain = path / "chain.json"
    if chain.is_file():
        last = Path(json.loads(chain.read_text())[-1]["path"])
        if (last / "weights.safetensors").is_file():
            return last
        raise UserError(f"{chain} names {last}, which is not there any more: run the command that made it again")
    raise UserError(f"{path}: neither a stage (weights.safetensors) nor a run (chain.json); give one of those directories")
