"""What the terms see of a batch: the model's own features, and the same pairs again on changed inputs."""

import pytest
import torch
from torch import nn

from crossvit.objectives.term import Perturbation
from crossvit.tasks.pair_state import pair_state, unchanged_statistics
from tests.small import WORDS, cross_vit, pairs, uniform

BATCH = pairs([0, 1, 2, 2], negatives=2, without_negatives=[1])
TWO = pairs(range(3), label=[0, 1, 1], two_images=True)


@pytest.fixture
def model():
    return cross_vit().eval()


def close(mine, theirs) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class TestFeatures:
    def test_they_are_the_models_own(self, model):
        state = pair_state(model, BATCH)
        close(state.visual, model.visual_features(BATCH.image))
        features = model.text_features(BATCH.tokens, BATCH.token_mask)
        close(state.text, features.tokens)
        close(state.text_pooled, features.pooled)
        assert torch.equal(state.text_mask, BATCH.token_mask)
        close(state.image_embedding, model.encode_image(BATCH.image, normalize=True))
        close(state.text_embedding, model.embed_text(features))
        assert state.logit_scale is model.logit_scale and state.logit_bias is model.logit_bias
        assert state.second_visual is None
        assert (
            (state.tokens is BATCH.tokens) and (state.image_id is BATCH.image_id) and (state.text_id is BATCH.text_id)
        )
        assert state.label is None and state.true.all()

    def test_inputs_are_words_patches_and_pixels(self, model):
        words, patches, pixels = pair_state(model, BATCH).inputs
        close(words, model.text_encoder.embed(BATCH.tokens))
        close(patches, model.patch_encoder(BATCH.image).patches)
        assert torch.equal(pixels, BATCH.image)
        words, patches, pixels = pair_state(model, TWO).inputs
        assert len(words) == 3 and len(patches) == len(pixels) == 6
        assert torch.equal(pixels, TWO.image.flatten(0, 1))

    def test_generated_negatives(self, model):
        state = pair_state(model, BATCH)
        tokens, mask = BATCH.negatives.flatten(0, 1), BATCH.negatives_mask.flatten(0, 1)
        features = model.text_features(tokens, mask)
        close(state.negatives, tuple(features))
        close(state.negative_embedding, model.embed_text(features))
        assert state.negative_present.tolist() == [True, True, False, False, True, True, True, True]
        bare = pair_state(model, pairs(range(3)))
        assert bare.negatives is bare.negative_embedding is bare.negative_present is None

    def test_two_pictures_a_text(self, model):
        state = pair_state(model, TWO)
        close(state.visual, model.visual_features(TWO.image[:, 0]))
        close(state.second_visual, model.visual_features(TWO.image[:, 1]))
        close(state.image_embedding, model.embed_visual(state.visual))
        first, second = torch.randn(2, 3, 32)
        close(state.two_image_logits(first, second), model.two_image(torch.cat([first, second], dim=1)))
        assert state.true.tolist() == [False, True, True]

    def test_heads_and_words(self, model):
        state = pair_state(model, BATCH)
        features = model.text_features(BATCH.tokens, BATCH.token_mask)
        text = (state.text, state.text_pooled, state.text_mask)
        pooled, words = state.fuse(state.visual, *text), state.fuse_words(state.visual, *text)
        close(pooled, model.fuse(state.visual, features).pooled)
        close(words, model.fuse(state.visual, features).text)
        close(state.match_logits(pooled), model.itm(pooled))
        close(state.relation_logits(pooled), model.relation(pooled))
        close(state.word_logits(words), model.masked_word_logits(words))
        assert state.vocab_size == WORDS
        assert state.mask_embedding is model.mlm.mask_embedding
        changed = torch.randn(4, BATCH.tokens.shape[1], 12)
        close(state.encode_words(changed), tuple(model.text_features(BATCH.tokens, BATCH.token_mask, changed)))
        close(state.encode_words(state.embed(BATCH.tokens))[0], state.text)

    def test_only_trained_parameters_are_listed(self, model):
        model.vision.requires_grad_(False)
        listed = {id(p) for p in pair_state(model, BATCH).parameters}
        assert listed == {id(p) for n, p in model.named_parameters() if not n.startswith("vision.")}

    def test_numbers(self, model):
        own = uniform(3)
        assert pair_state(model, BATCH, own).uniform is own
        drawn = pair_state(model, BATCH).uniform(1000, 7)
        assert drawn.shape == (1000,) and drawn.min() >= 0 and drawn.max() < 1


class TestPerturbation:
    def test_nothing_added_changes_nothing(self, model):
        state = pair_state(model, BATCH)
        zeros = Perturbation(*(torch.zeros_like(x) for x in state.inputs))
        for added in (Perturbation(), zeros):
            again = state.perturb(added, False)
            for name in ("visual", "text", "text_pooled", "image_embedding", "text_embedding"):
                close(getattr(again, name), getattr(state, name))

    def test_words(self, model):
        state = pair_state(model, BATCH)
        added = torch.randn_like(state.inputs.text)
        again = state.perturb(Perturbation(text=added), False)
        features = model.text_features(BATCH.tokens, BATCH.token_mask, state.inputs.text + added)
        close(again.text, features.tokens)
        close(again.text_embedding, model.embed_text(features))
        assert again.visual is state.visual  # what is not changed is not computed again
        assert not torch.allclose(again.text, state.text, atol=1e-3)

    def test_patches(self, model):
        state = pair_state(model, BATCH)
        added = torch.randn_like(state.inputs.patch)
        again = state.perturb(Perturbation(patch=added), False)
        close(again.visual, model.visual_tokens(state.inputs.patch + added, (32, 32)))
        close(again.image_embedding, model.embed_visual(again.visual))
        assert again.text is state.text

    def test_pixels_and_patches(self, model):
        state = pair_state(model, BATCH)
        pixel, patch = torch.randn_like(state.inputs.pixel), torch.randn_like(state.inputs.patch)
        close(state.perturb(Perturbation(pixel=pixel), False).visual, model.visual_features(BATCH.image + pixel))
        both = state.perturb(Perturbation(pixel=pixel, patch=patch), False)
        expected = model.visual_tokens(model.patch_encoder(BATCH.image + pixel).patches + patch, (32, 32))
        close(both.visual, expected)

    @pytest.mark.parametrize("space", ["patch", "pixel"])
    def test_two_pictures(self, model, space):
        state = pair_state(model, TWO)
        added = torch.zeros_like(getattr(state.inputs, space))
        added[3] = torch.randn_like(added[3])  # the second picture of text 1
        again = state.perturb(Perturbation(**{space: added}), False)
        close(again.visual, state.visual)
        moved = (again.second_visual - state.second_visual).abs().amax(dim=(1, 2)) > 1e-3
        assert moved.tolist() == [False, True, False]

    def test_the_gradient_reaches_what_was_added(self, model):
        state = pair_state(model, BATCH)
        added = Perturbation(*(torch.zeros_like(x).requires_grad_() for x in state.inputs))
        again = state.perturb(added, False)
        (again.image_embedding[:, 0] + again.text_embedding[:, 0]).sum().backward()
        real = BATCH.token_mask
        assert (added.text.grad.abs().sum(2) > 0).equal(real)
        assert (added.patch.grad.abs().sum(2) > 0).all()
        assert added.pixel.grad.abs().sum() > 0

    @pytest.mark.parametrize("through", [False, True])
    def test_whether_patches_lead_on_into_the_cnn(self, model, through):
        state = pair_state(model, BATCH)
        added = Perturbation(patch=torch.zeros_like(state.inputs.patch))
        state.perturb(added, through).image_embedding[:, 0].sum().backward()
        grads = [p.grad for p in model.patch_encoder.parameters()]
        assert all((grad is not None and bool(grad.any())) == through for grad in grads)
        assert model.itc_image.weight.grad.any()

    def test_what_was_drawn_is_shared_and_what_was_computed_is_not(self, model):
        state = pair_state(model, BATCH, uniform())
        state.shared["drawn"], state.scored["matching"] = 1, 2
        again = state.perturb(Perturbation(), False)
        assert again.shared is state.shared
        assert again.scored == {}
        assert again.uniform is state.uniform
        close(again.negative_embedding, state.negative_embedding)


class TestTeacher:
    def test_the_same_pairs_through_another_model(self, model):
        other = cross_vit(seed=1).eval()
        state = pair_state(model, BATCH, uniform(), other)
        alone = pair_state(other, BATCH, uniform())
        for name in ("visual", "text", "image_embedding", "text_embedding", "negative_embedding", "logit_scale"):
            close(getattr(state.teacher, name), getattr(alone, name))
        assert not state.teacher.visual.requires_grad
        assert state.teacher.shared is state.shared
        fused = state.fuse(state.visual, state.text, state.text_pooled, state.text_mask)
        assert not torch.allclose(state.teacher.match_logits(fused), state.match_logits(fused), atol=1e-4)

    def test_of_a_perturbed_state_it_sees_the_clean_inputs(self, model):
        state = pair_state(model, BATCH, uniform(), cross_vit(seed=1).eval())
        again = state.perturb(Perturbation(patch=torch.ones_like(state.inputs.patch)), False)
        close(again.teacher.visual, state.teacher.visual)


class TestUnchangedStatistics:
    def test_the_batch_normalises_and_leaves_no_trace(self):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)).train()
        x = 5 + torch.randn(8, 3)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        with unchanged_statistics(net):
            inside = net(x)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        close(inside, net(x))  # training normalises the same way
        assert net[1].num_batches_tracked == 1  # and goes on counting
        assert not net[2].track_running_stats

    def test_a_frozen_layer_normalises_by_its_statistics(self):
        net = nn.BatchNorm1d(4).eval()
        x = 5 + torch.randn(8, 4)
        with unchanged_statistics(net):
            close(net(x), x / (1 + 1e-5) ** 0.5)
        assert net.track_running_stats

    def test_also_after_a_failure(self):
        net = nn.BatchNorm1d(4).train()
        with pytest.raises(RuntimeError, match="elements"), unchanged_statistics(net):
            net(torch.randn(2, 3))
        assert net.track_running_stats
