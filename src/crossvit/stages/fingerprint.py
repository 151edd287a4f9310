"""The name of a stage's result: a hash of everything that changes it and of nothing else.

In: the parts of the model that the task builds, data settings and contents, objective, optimizer, scheduler, length, precision, seed, and
the parent's fingerprint. Out: where files lie, how many workers and devices, loggers, progress bars, the size of evaluation batches.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

FORMAT = 2
"""Raised when code changes what the same config gives: every stored stage is trained again."""

MODEL_PARTS = ("patch_encoder", "vision", "text_encoder", "fusion", "tokenizer")
PARTS_OF_TASK = {"patch_encoder": ("patch_encoder",), "visual_transformer": ("patch_encoder", "vision")}
TRAINER_KEYS = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "max_time",
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "limit_val_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "fast_dev_run",
)
DATA_KEYS_OUT = ("num_workers", "eval_batch_size", "max_bad_fraction", "test_split", "cache")
CALLBACKS_OUT = ("checkpoint", "compute", "validation_curve", "collapse", "progress_bar", "model_summary")
NEUTRAL = {
    "shuffled": 0,
    "captions": "one",
    "held_out": 0,
    "permutations": 6,
    "truncation_side": "right",
    "lowercase": False,
    "positions": True,
}
"""Settings under which nothing is other than before there was such a key: stages from then keep their names."""
BATCH_NORM = {"sync_batchnorm": "False"}
"""Of the whole batch on however many devices (`preflight.check_batch_norm`); said as one device says it, by whose name all go."""
PATHS = ("folder", "checkpoint")
"""Keys whose value is a path, however it is spelt."""
WEIGHT_FILES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors", ".txt", ".json")


def fingerprint(cfg: DictConfig, parent: str | None, data_manifest: dict) -> str:
    """16 hex digits for the result of training `cfg` from the stage `parent` on the data that `data_manifest` describes.

    parent: the parent stage's fingerprint, None for the first stage. data_manifest: `CrossViTDataModule.manifest()`, plain json values.
    """
    record = {"parent": parent, "manifest": data_manifest, **what_matters(cfg)}
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def what_matters(cfg: DictConfig) -> dict[str, Any]:
    """The part of a stage's config that its fingerprint covers, as plain json values."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    task = plain["stage"]["task"]
    image_only = task in PARTS_OF_TASK
    parts = PARTS_OF_TASK.get(task, MODEL_PARTS)
    sizes = {k: v for k, v in plain["model"].items() if k != "name"}
    trainer = plain["trainer"]
    return {
        "format": FORMAT,
        "seed": plain["seed"],
        "task": task,
        "model": {"image_size": sizes["image_size"]} if image_only else sizes,
        "parts": {part: _with_file_contents(_part(plain[part])) for part in parts if part in plain},
        "data": _data(plain["data"]),
        "objective": {
            name: _without(term, ("tile",)) for name, term in plain["objective"].items() if term.get("weight", 1) != 0
        },
        "optimizer": _without(plain["optimizer"], ("fused", "foreach")),
        "scheduler": plain["scheduler"],
        "trainer": {key: str(trainer[key]) for key in TRAINER_KEYS if trainer.get(key) is not None} | BATCH_NORM,
        "callbacks": {k: v for k, v in (plain.get("callbacks") or {}).items() if k not in CALLBACKS_OUT and _acts(v)},
    }


def _acts(callback: dict | None) -> bool:
    """Whether a callback changes a result: a gate without a threshold does not, nor does one that only warns, or ends the stage."""
    return (
        callback is not None
        and callback.get("threshold", 0) is not None
        and callback.get("action") not in ("warn", "stop")
    )


def _part(node: Any) -> Any:
    """A part of the model without what changes nothing; text encoders hold their tokenizer's settings."""
    if isinstance(node, dict):
        return {k: _part(v) for k, v in node.items() if k != "remember" and not is_neutral(k, v)}
    return node


def _data(node: dict) -> dict:
    """The settings of a dataset, or of a mixture and its sources."""
    kept = {key: value for key, value in node.items() if not _is_place_or_pace(key) and not is_neutral(key, value)}
    if isinstance(node.get("sources"), dict):
        sources = {name: source for name, source in node["sources"].items() if source is not None}
        kept["sources"] = {name: source | {"data": _data(source["data"])} for name, source in sources.items()}
    return kept


def is_neutral(key: str, value: Any) -> bool:
    """Whether a setting says what would hold without it."""
    return key in NEUTRAL and NEUTRAL[key] == value


def _is_place_or_pace(key: str) -> bool:
    return key in DATA_KEYS_OUT or key == "root" or key.endswith(("_root", "_roots", "_dir", "_file"))


def _without(node: Any, names: tuple[str, ...]) -> Any:
    if isinstance(node, dict):
        return {key: _without(value, names) for key, value in node.items() if key not in names}
    return node


def _with_file_contents(node: Any, is_path: bool = False) -> Any:
    """Replaces the path of a file or folder (pretrained weights, a vocabulary) by a hash of what it holds."""
    if isinstance(node, dict):
        return {key: _with_file_contents(value, key in PATHS) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_file_contents(value) for value in node]
    if isinstance(node, str) and (is_path or "/" in node or node.endswith(WEIGHT_FILES)) and Path(node).exists():
        return {"sha256": hash_path(Path(node))}
    return node


def hash_path(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
