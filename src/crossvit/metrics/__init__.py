"""Figures of merit on plain tensors: accuracy by expectation under ties, retrieval, verification, intervals, blind
baselines.

Nothing here knows a model, a task or a dataset. Names are loaded on first use, so importing this package imports no
torch.
"""

from importlib import import_module

_HOME = {
    "accuracy_at_k": "accuracy",
    "accuracy_at_k_bounds": "accuracy",
    "chance_at_k": "accuracy",
    "classification_accuracy": "accuracy",
    "Estimate": "intervals",
    "bootstrap": "intervals",
    "estimate": "intervals",
    "estimate_auroc": "verification",
    "estimate_statistic": "intervals",
    "wilson": "intervals",
    "Difference": "paired",
    "holm": "paired",
    "paired_difference": "paired",
    "sign_flip_p": "paired",
    "Spread": "seeds",
    "first_step_at": "seeds",
    "median_step": "seeds",
    "share_at_least": "seeds",
    "spread": "seeds",
    "ExactDot": "exact_dot",
    "IndexedCatMetric": "indexed",
    "gather_rows": "gather",
    "ImageTextPairs": "pairs",
    "RetrievalResult": "result",
    "block_retrieval": "retrieval",
    "embedding_retrieval": "retrieval",
    "n_way_retrieval": "retrieval",
    "RerankedResult": "rerank",
    "reranked_retrieval": "rerank",
    "precision_at_k": "precision",
    "auroc": "verification",
    "balanced_accuracy": "verification",
    "f1_chance": "verification",
    "f1_score": "verification",
    "macro_f1": "verification",
    "verification_accuracy": "verification",
    "by_kind": "compositional",
    "consistency": "compositional",
    "consistency_chance": "compositional",
    "quad_accuracy": "compositional",
    "two_way_accuracy": "compositional",
    "downsample": "blind",
    "folds": "blind",
    "image_only_logits": "blind",
    "text_only_logits": "blind",
    "caption_plausibility": "plausibility",
    "logistic_logits": "logistic",
    "linear_probe_logits": "probe",
    "neighbour_votes": "probe",
    "EmbeddingSpread": "collapse",
    "embedding_spread": "collapse",
    "Bin": "calibration",
    "Decision": "calibration",
    "best_threshold": "calibration",
    "expected_calibration_error": "calibration",
    "platt_scaling": "calibration",
    "reliability": "calibration",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
