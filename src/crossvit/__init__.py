"""CrossViT: cross-modal vision-language pre-training on PyTorch Lightning and Hydra.

`crossvit.load(path)` gives a trained model with its preprocessing and tokenizer; `crossvit.metrics` and `crossvit.data.scenes` are public
too. Importing this package imports no torch.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["CrossViT", "UserError", "load", "load_decision"]

_LAZY = {
    "load": "crossvit.loading",
    "load_decision": "crossvit.loading",
    "CrossViT": "crossvit.models.crossvit",
    "UserError": "crossvit.errors",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in {"data", "metrics", "models", "objectives", "tasks"}:
        return import_module(f"crossvit.{name}")
    raise AttributeError(f"module 'crossvit' has no attribute {name!r}")
