import subprocess
import sys

import pytest

import crossvit.metrics


def test_every_public_name_resolves():
    for name in crossvit.metrics._HOME:
        assert getattr(crossvit.metrics, name).__name__ == name
        assert name in dir(crossvit.metrics)
    with pytest.raises(AttributeError, match="'crossvit.metrics' has no attribute 'accuracy_at_q'"):
        crossvit.metrics.accuracy_at_q  # noqa: B018


def test_importing_is_cheap_and_needs_no_lightning():
    code = (
        "import sys, crossvit.metrics as m; assert 'torch' not in sys.modules;"
        "m.accuracy_at_k; m.embedding_retrieval; m.reranked_retrieval; m.text_only_logits;"
        "assert not {'lightning', 'torchmetrics', 'pytorch_lightning'} & set(sys.modules);"
        "assert not [n for n in sys.modules if n.startswith(('crossvit.models', 'crossvit.tasks', 'crossvit.data'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
