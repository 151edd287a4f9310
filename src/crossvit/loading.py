"""`crossvit.load`: a trained model, ready to use, in open_clip's order of things."""

import json
from pathlib import Path


def load_decision(path: str | Path, score: str = "fused", task: str = "calibration"):
    """What a calibration has fitted on the stage that `path` stands for (see `load`), by the name of its task.

    score: `fused`, of what `model.match` returns, or `dual`, of the cosine of `encode_image` and `encode_text`. Returns a
    `crossvit.metrics.Decision`. Raises UserError where the stage has not been calibrated so.
    """
    from crossvit.errors import UserError
    from crossvit.metrics import Decision
    from crossvit.stages.restore import stage_directories

    kept = stage_directories(Path(path))[-1] / "evaluations" / f"decision-{task}.json"
    try:
        return Decision(**json.loads(kept.read_text())["scores"][score])
    except FileNotFoundError:
        raise UserError(f"{kept} is not there: crossvit evaluate run={path} suite=full fits it") from None
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{kept} holds no decision for score {score!r}: evaluate the stage again") from None


def load(path: str | Path, device: str = "cpu"):
    """A trained model from a run directory of `train` or `pipeline`, or from a stage in the store.

    Returns (model, preprocess, tokenizer): a `CrossViT` in eval mode, PIL image -> normalised (3, S, S) tensor, texts -> (B, M) tokens.
    A run directory stands for the last stage of its chain. Nothing but tensors and plain data is read from the files, and the model is
    built from trusted targets only (`stages/build.py`). Raises UserError where the path is no such directory or its files are damaged.
    """
    from crossvit.data.transforms import Preprocess
    from crossvit.stages.build import build_tokenizer
    from crossvit.stages.restore import restore_model, stage_directories, stored_config

    directory = stage_directories(Path(path))[-1]
    cfg = stored_config(directory)
    model, _ = restore_model(directory, cfg)
    read = cfg.data.sources[cfg.data.eval_source].data if "sources" in cfg.data else cfg.data  # as in evaluation
    preprocess = Preprocess(cfg.data.image_size, read.fit, tuple(cfg.data.mean), tuple(cfg.data.std))
    return model.to(device).eval(), preprocess, build_tokenizer(cfg)
