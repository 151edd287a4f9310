import pytest
import torch
from torch.nn import functional as F

from crossvit.models.transformer import Attention, DropPath, TransformerBlock, attend


def heads(dtype=torch.float32, queries=5, keys=7):
    query = torch.randn(2, 3, queries, 8, dtype=dtype)
    key, value = torch.randn(2, 2, 3, keys, 8, dtype=dtype).unbind(0)
    mask = torch.ones(2, keys, dtype=torch.bool)
    mask[0, 4:] = False
    return query, key, value, mask[:, None, None, :]


def test_written_out_attention_equals_the_fused_kernel():
    query, key, value, allowed = heads()
    out, weights = attend(query, key, value, allowed, need_weights=True)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    assert torch.allclose(out, expected, atol=1e-6)
    assert weights.shape == (2, 3, 5, 7)


def test_bfloat16_on_a_cpu_is_written_out_and_equals_the_fused_kernel(monkeypatch):
    query, key, value, allowed = heads(torch.bfloat16)
    expected = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=allowed)
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # calling it would raise
    out, weights = attend(query, key, value, allowed)
    assert weights is None and out.dtype == torch.bfloat16
    assert torch.allclose(out.float(), expected, atol=0.02)


def test_gradients_of_both_paths_agree():
    query, key, value, allowed = (t.double() if t.is_floating_point() else t for t in heads())
    gradients = []
    for need_weights in (False, True):
        leaves = [t.clone().requires_grad_() for t in (query, key, value)]
        attend(*leaves, allowed, need_weights=need_weights)[0].square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for fused, written in zip(*gradients, strict=True):
        assert torch.allclose(fused, written, atol=1e-6)


def test_attention_over_itself_equals_attention_over_itself_as_context():
    attention, x = Attention(16, 4).eval(), torch.randn(2, 6, 16)
    assert torch.allclose(attention(x)[0], attention(x, x)[0], atol=1e-6)


def test_causal_attention_does_not_read_ahead():
    attention, x = Attention(16, 4).eval(), torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 4:] = torch.randn(1, 2, 16)
    before, after = attention(x, causal=True)[0], attention(changed, causal=True)[0]
    assert torch.allclose(before[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-3)


def test_width_must_be_a_multiple_of_heads():
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        Attention(10, 4)


@pytest.mark.parametrize("norm_first", [True, False])
def test_block_ignores_masked_tokens(norm_first):
    block, x = TransformerBlock(16, 4, norm_first=norm_first).eval(), torch.randn(2, 6, 16)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    changed = x.clone()
    changed[:, 4:] = 100.0
    assert torch.allclose(block(x, mask)[0][:, :4], block(changed, mask)[0][:, :4], atol=1e-5)


def test_post_norm_block_gives_normed_tokens():
    out, _ = TransformerBlock(16, 4, norm_first=False)(10 * torch.randn(2, 6, 16))
    assert torch.allclose(out.mean(-1), torch.zeros(2, 6), atol=1e-5)
    assert torch.allclose(out.var(-1, unbiased=False), torch.ones(2, 6), atol=1e-3)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    out = drop(x)
    per_sample = out.flatten(1)
    assert set(per_sample.unique().tolist()) <= {0.0, x.new_tensor(1 / 0.75).item()}
    assert torch.equal(per_sample.amin(1), per_sample.amax(1))
    assert abs(out.mean().item() - 1.0) < 0.05
    assert torch.equal(drop.eval()(x), x)
    with pytest.raises(ValueError, match="drop_path 1.0"):
        DropPath(1.0)
