import pytest
import torch

from crossvit.models.fusion import CoAttentionFusion, LateFusion


def streams():
    """visual (2, 5, 16), text (2, 6, 12), its mask with 6 and 3 real tokens."""
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    return torch.randn(2, 5, 16), torch.randn(2, 6, 12), mask


def arguments(kind: str, norm_first: bool) -> dict:
    return {} if kind == "none" else {"norm_first": norm_first}


@pytest.mark.parametrize("norm_first", [True, False])
def test_padding_never_changes_the_result(fusion_kind, make_fusion, norm_first):
    fusion = make_fusion(fusion_kind, **arguments(fusion_kind, norm_first))
    visual, text, mask = streams()
    out = fusion(visual, text, mask)
    junk = torch.where(mask[..., None], text, 100 * torch.randn_like(text))
    for other in (
        fusion(visual, junk, mask),
        fusion(visual, torch.cat([junk, junk], 1), torch.cat([mask, mask & False], 1)),
    ):
        assert torch.allclose(out.pooled, other.pooled, atol=1e-5)
        assert torch.allclose(out.visual, other.visual, atol=1e-5)
    alone = fusion(visual[1:], text[1:, :3], mask[1:, :3])
    assert torch.allclose(out.pooled[1:], alone.pooled, atol=1e-5)


def test_shapes_and_gradients(fusion_kind, make_fusion):
    fusion = make_fusion(fusion_kind)
    out = fusion(*streams())
    assert out.visual.shape == (2, 5, 16) and out.text.shape == (2, 6, 16) and out.pooled.shape == (2, 32)
    (out.pooled * torch.randn_like(out.pooled)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in fusion.parameters())


@pytest.mark.parametrize("norm_first", [True, False])
def test_the_pooled_pair_alone_is_the_same_with_its_gradients(fusion_kind, make_fusion, norm_first):
    fusion = make_fusion(fusion_kind, **arguments(fusion_kind, norm_first))
    inputs, weights = streams(), torch.randn(2, 32)
    out, alone = fusion(*inputs), fusion(*inputs, pooled_only=True)
    assert torch.allclose(out.pooled, alone.pooled, atol=1e-5)
    assert alone.visual.shape == alone.text.shape == (2, 1, 16)
    wanted, found = (torch.autograd.grad((weights * x.pooled).sum(), list(fusion.parameters())) for x in (out, alone))
    for a, b in zip(wanted, found, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    "kind, image_reads, text_reads",
    [
        ("co_attention", True, True),
        ("merged", True, True),
        ("text_side", False, True),
        ("late", False, False),
        ("none", False, False),
    ],
)
def test_which_stream_reads_the_other(kind, image_reads, text_reads, make_fusion):
    fusion = make_fusion(kind)
    visual, text, mask = streams()
    out = fusion(visual, text, mask)
    other_text, other_image = fusion(visual, torch.randn_like(text), mask), fusion(torch.randn_like(visual), text, mask)
    assert torch.allclose(out.visual, other_text.visual, atol=1e-5) != image_reads
    assert torch.allclose(out.text, other_image.text, atol=1e-5) != text_reads
    assert fusion.is_joint == (kind != "none")


@pytest.mark.parametrize(
    "kind, directions",
    [
        ("co_attention", {"image_to_text", "text_to_image"}),
        ("merged", {"image_to_text", "text_to_image"}),
        ("text_side", {"text_to_image"}),
    ],
)
def test_pairing_rows_sum_to_one_and_ignore_padding(kind, directions, make_fusion):
    fusion = make_fusion(kind)
    visual, text, mask = streams()
    out = fusion(visual, text, mask, need_weights=True)
    assert len(out.pairing) == 2
    for layer in out.pairing:
        assert set(layer) == directions
        for name, shape in (("image_to_text", (2, 2, 5, 6)), ("text_to_image", (2, 2, 6, 5))):
            if name in layer:
                assert layer[name].shape == shape
                assert torch.allclose(layer[name].sum(-1), torch.ones(shape[:3]), atol=1e-5)
        if "image_to_text" in layer:
            assert layer["image_to_text"][1, :, :, 3:].abs().max() == 0
            assert layer["image_to_text"][1, :, :, :3].min() > 0
    plain = fusion(visual, text, mask)
    assert plain.pairing is None
    assert torch.allclose(plain.pooled, out.pooled, atol=1e-5)


@pytest.mark.parametrize("kind", ["late", "none"])
def test_without_exchange_there_is_no_pairing(kind, make_fusion):
    assert make_fusion(kind)(*streams(), need_weights=True).pairing is None


def test_late_has_the_parameters_of_co_attention_and_those_of_the_meeting():
    co_attention, late = (kind(64, 48, 2, 4) for kind in (CoAttentionFusion, LateFusion))
    shapes = {name: p.shape for name, p in late.named_parameters() if not name.startswith("meeting.")}
    assert shapes == {name: p.shape for name, p in co_attention.named_parameters()}
    hidden = [LateFusion(64, 48, 2, 4, meeting_ratio=ratio).meeting[0].out_features for ratio in (1.0, 2.0)]
    assert hidden == [128, 256]
    assert {m.p for m in LateFusion(16, 12, 1, 2, dropout=0.3).modules() if isinstance(m, torch.nn.Dropout)} == {0.3}


@pytest.mark.parametrize("kind", ["co_attention", "merged", "text_side", "late", "none"])
def test_what_a_linear_head_sees_of_a_pair_is_no_sum_of_what_it_sees_of_each_side(kind, make_fusion):
    fusion = make_fusion(kind)
    visual, text, mask = streams()
    mask = torch.ones_like(mask)
    head = torch.randn(2 * fusion.width)
    score = {
        (i, j): fusion(visual[i : i + 1], text[j : j + 1], mask[:1]).pooled[0] @ head for i in (0, 1) for j in (0, 1)
    }
    interaction = score[0, 0] + score[1, 1] - score[0, 1] - score[1, 0]
    assert (interaction.abs() > 1e-3) == fusion.is_joint


def test_streams_have_weights_of_their_own_unless_tied():
    own, tied = (CoAttentionFusion(16, 12, 2, 2, tie_streams=tie).eval() for tie in (False, True))
    count = [sum(p.numel() for p in fusion.layers.parameters()) for fusion in (own, tied)]
    assert count[0] == 2 * count[1]
    names = list(tied.state_dict())
    assert len(names) == len({value.data_ptr() for value in tied.state_dict().values()})  # no tensor under two names
    assert tied(*streams()).pooled.shape == (2, 32)


def test_both_streams_read_the_states_from_before_the_exchange():
    fusion = CoAttentionFusion(16, 16, 1, 2, tie_streams=True).eval()
    with torch.no_grad():
        fusion.text_to_vision.weight.copy_(torch.eye(16))
        fusion.modality.zero_()
        fusion.text_norm.load_state_dict(fusion.visual_norm.state_dict())
    a, b = torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    mask = torch.ones(1, 4, dtype=torch.bool)
    forward, backward = fusion(a, b, mask), fusion(b, a, mask)
    assert torch.allclose(forward.visual, backward.text, atol=1e-5)  # exchanging the inputs exchanges the outputs
    assert torch.allclose(forward.text, backward.visual, atol=1e-5)
