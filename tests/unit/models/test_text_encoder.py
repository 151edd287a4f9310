import pytest
import torch

from crossvit.models.text_encoder import TextEncoder, pool_text, real_tokens


def encoder(pooling="cls", **arguments) -> TextEncoder:
    return TextEncoder(50, 20, 12, 2, 2, eot_id=3, pooling=pooling, causal=pooling == "eot", **arguments).eval()


@pytest.mark.parametrize("pooling", ["cls", "eot", "mean"])
def test_padding_changes_nothing(pooling, tokens):
    text = encoder(pooling)
    features = text(tokens)
    longer = text(torch.nn.functional.pad(tokens, (0, 11)))
    assert torch.allclose(features.pooled, longer.pooled, atol=1e-6)
    for row, length in enumerate((9, 6, 4)):
        alone = text(tokens[row : row + 1, :length])
        assert torch.allclose(alone.pooled[0], features.pooled[row], atol=1e-6)
        assert torch.allclose(alone.tokens[0], features.tokens[row, :length], atol=1e-5)
        assert features.mask[row].sum() == length


def test_given_mask_is_used(tokens):
    text = encoder("mean")
    mask = real_tokens(tokens, 0, 3)
    junk = torch.where(mask, tokens, 7)  # other ids where the mask says padding
    assert torch.allclose(text(junk, mask).pooled, text(tokens).pooled, atol=1e-6)


def test_default_mask():
    tokens = torch.tensor([[2, 5, 3, 0, 0], [2, 0, 3, 9, 3], [2, 5, 6, 7, 0], [0, 0, 0, 0, 0]])
    until_first_end = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert real_tokens(tokens, pad_id=0, eot_id=3).int().tolist() == until_first_end
    assert real_tokens(tokens, pad_id=0).int().tolist()[1] == [1, 0, 1, 1, 1]


def test_pooling_reads_what_it_says():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    assert torch.equal(pool_text(states, mask, "cls"), states[:, 0])
    assert torch.equal(pool_text(states, mask, "eot"), torch.stack([states[0, 2], states[1, 0]]))
    assert torch.allclose(pool_text(states, mask, "mean")[0], states[0, :3].mean(0))


def test_empty_text_has_finite_features():
    assert all(f.isfinite().all() for f in encoder("mean")(torch.zeros(2, 5, dtype=torch.long))[:2])


def test_every_parameter_receives_a_gradient(tokens):
    text = encoder("mean")
    pooled = text(torch.nn.functional.pad(tokens, (0, 11), value=5), torch.ones(3, 20, dtype=torch.bool)).pooled
    (pooled * torch.randn_like(pooled)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in text.parameters())


def swapped_over_replaced(pooling: str, word_std: float | None = None) -> float:
    """How far the pooled feature moves when two words change places, against one of them being replaced."""
    text = TextEncoder(60, 32, 64, 2, 4, pooling=pooling, causal=pooling == "eot").eval()
    if word_std is not None:
        torch.nn.init.normal_(text.token_embedding.weight, std=word_std)
    tokens = torch.stack([torch.randperm(58)[:9] + 2 for _ in range(64)])
    tokens[:, 0] = 1
    swapped, replaced = tokens.clone(), tokens.clone()
    swapped[:, [2, 6]] = tokens[:, [6, 2]]
    replaced[:, 2] = (tokens[:, 2] + 5) % 58 + 2
    with torch.no_grad():
        start = text(tokens).pooled
        swap, replace = text(swapped).pooled - start, text(replaced).pooled - start
    return (swap.norm(dim=1) / replace.norm(dim=1)).mean().item()


@pytest.mark.parametrize("pooling", ["cls", "eot", "mean"])
def test_order_matters_at_the_start(pooling):
    assert swapped_over_replaced(pooling) > 0.3


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_words_of_unit_variance_would_hide_the_order(pooling):
    assert swapped_over_replaced(pooling, word_std=1.0) < 0.1  # the trap that the initialisation avoids


def test_misuse_is_refused(tokens):
    with pytest.raises(ValueError, match="choose cls, eot or mean"):
        TextEncoder(50, 20, 12, 2, 2, pooling="max")
    with pytest.raises(ValueError, match="21 tokens, but the text encoder's context_length is 20"):
        encoder()(torch.ones(1, 21, dtype=torch.long))


def test_built_for_a_tokenizer():
    class Words:
        vocab_size, context_length, pad_id, eot_id = 11, 6, 1, 4

    text = TextEncoder.for_tokenizer(Words(), width=8, depth=1, heads=2)
    assert text.token_embedding.num_embeddings == 11 and text.context_length == 6
    assert text(torch.tensor([[2, 3, 4, 1, 1]])).mask.int().tolist() == [[1, 1, 1, 0, 0]]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_positions_it_is_a_bag_of_words(pooling):
    torch.manual_seed(0)
    text, ordered = (TextEncoder(50, 20, 12, 2, 2, pooling=pooling, positions=p).eval() for p in (False, True))
    a, b = torch.tensor([[2, 5, 6, 7, 8, 0]]), torch.tensor([[2, 8, 7, 6, 5, 0]])
    assert torch.allclose(text(a).pooled, text(b).pooled, atol=1e-6)
    assert torch.allclose(text(a).tokens[0, 1:5], text(b).tokens[0, 1:5].flip(0), atol=1e-6)
    assert not torch.allclose(ordered(a).pooled, ordered(b).pooled, atol=1e-3)
    assert "position" not in text.state_dict()


def test_a_causal_encoder_is_not_pooled_at_its_first_token():
    with pytest.raises(ValueError, match="pooling=cls with causal=true"):
        TextEncoder(50, 20, 12, 2, 2, causal=True)


def test_a_causal_bag_of_words_is_refused():
    with pytest.raises(ValueError, match="positions=false with causal=true"):
        TextEncoder(50, 20, 12, 2, 2, causal=True, pooling="mean", positions=False)
