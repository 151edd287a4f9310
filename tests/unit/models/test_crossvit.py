import math

import pytest
import torch

from crossvit.errors import UserError
from crossvit.models.conv_stem import ConvStem
from crossvit.models.crossvit import CrossViT
from crossvit.models.fusion import CoAttentionFusion
from crossvit.models.patch_encoder import PatchEncoder
from crossvit.models.text_encoder import TextEncoder
from crossvit.models.visual_transformer import VisualTransformer


def zero_shot(model, image, text):
    """A script as people write it for an open_clip model; nothing in it knows CrossViT."""
    with torch.no_grad(), torch.autocast("cpu"):
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        return (100.0 * image_features @ text_features.T).softmax(dim=-1)


def test_a_script_for_open_clip_runs(make_model, image, tokens):
    model = make_model()
    probabilities = zero_shot(model, image, tokens)
    assert probabilities.shape == (3, 3)
    assert torch.allclose(probabilities.float().sum(1), torch.ones(3), atol=1e-2)
    out = model(image, tokens)
    assert set(out) == {"image_features", "text_features", "logit_scale"}
    assert torch.allclose(out["image_features"], model.encode_image(image, normalize=True))
    assert torch.allclose(out["text_features"].norm(dim=1), torch.ones(3), atol=1e-6)
    assert out["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-5)
    assert set(model(image=image)) == {"image_features", "logit_scale"}


def test_padding_never_changes_a_logit(fusion_kind, make_model, image, tokens):
    model = make_model(fusion_kind)
    visual, outputs = model.visual_features(image), []
    for text in (tokens, torch.nn.functional.pad(tokens, (0, 11))):
        fused = model.fuse(visual, model.text_features(text))
        outputs.append(
            [
                model.match_logits(fused),
                model.relation_logits(fused),
                model.two_image_logits(fused, fused),
                model.match(image, text),
                model.encode_text(text),
            ]
        )
    for short, long in zip(*outputs, strict=True):
        assert torch.allclose(short, long, atol=1e-5)


def test_every_parameter_receives_a_gradient(fusion_kind, make_model, image, tokens):
    model = make_model(fusion_kind).train()
    visual, text = (
        model.visual_features(image),
        model.text_features(torch.nn.functional.pad(tokens, (0, 11), value=5), None),
    )
    fused = model.fuse(visual, text)
    similarity = model.logit_scale.exp() * model.embed_visual(visual) @ model.embed_text(text).T + model.logit_bias
    masked = model.text_features(tokens, None, model.mlm.mask_embedding.expand(*tokens.shape, -1))
    words = model.masked_word_logits(model.fuse(visual, masked).text.flatten(0, 1))
    heads = (model.match_logits(fused), model.relation_logits(fused), model.two_image_logits(fused, fused), similarity)
    heads = (*heads, words)
    sum((logits * torch.randn_like(logits)).sum() for logits in heads).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert without == []


def test_match_is_the_logit_difference_or_the_cosine(make_model, image, tokens):
    model = make_model()
    logits = model.match_logits(model.fuse(model.visual_features(image), model.text_features(tokens)))
    score = model.match(image, tokens)
    assert torch.allclose(score, logits[:, 1] - logits[:, 0])
    assert torch.equal(score.argsort(), logits.softmax(1)[:, 1].argsort())
    plain = make_model("none")
    cosine = (plain.encode_image(image, normalize=True) * plain.encode_text(tokens, normalize=True)).sum(1)
    assert torch.allclose(plain.match(image, tokens), cosine / 0.07, atol=1e-4)


def test_pairing(make_model, image, tokens):
    pairing = make_model().pairing(image, tokens)
    assert [layer["image_to_text"].shape for layer in pairing] == [(3, 2, 17, 9)] * 2
    with pytest.raises(ValueError, match="LateFusion has no cross-attention"):
        make_model("late").pairing(image, tokens)


def test_pictures_of_another_size(make_model, tokens):
    model = make_model()
    assert model.visual_features(torch.randn(3, 3, 56, 40)).shape == (3, 17, 16)
    model.patch_encoder.interpolate = False
    assert model.visual_features(torch.randn(3, 3, 56, 40)).shape == (3, 1 + 7 * 5, 16)
    assert model.match(torch.randn(3, 3, 56, 40), tokens).shape == (3,)


def test_bfloat16_agrees_with_float32(make_model, image, tokens):
    model = make_model()
    with torch.no_grad():
        full = model.match(image, tokens)
        with torch.autocast("cpu", torch.bfloat16):
            half = model.match(image, tokens)
    assert half.dtype == torch.float32
    assert torch.allclose(full, half, atol=0.1)


def test_widths_that_do_not_fit_are_named():
    patches, vision = PatchEncoder(ConvStem(), 16, (4, 4)), VisualTransformer(16, 1, 2, (4, 4))
    text, fusion = TextEncoder(50, 20, 12, 1, 2), CoAttentionFusion(16, 10, 1, 2)
    with pytest.raises(
        UserError, match="the text encoder is 12 wide but fusion.text_width=10: set model.text_width=12"
    ):
        CrossViT(patches, vision, text, fusion, 8)
    with pytest.raises(UserError, match="fusion.width=8 but vision.width=16"):
        CrossViT(patches, vision, text, CoAttentionFusion(8, 12, 1, 2), 8)
