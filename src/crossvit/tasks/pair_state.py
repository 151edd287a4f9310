"""From a model and a batch to what the loss terms see."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from crossvit.data.batches import PairBatch
from crossvit.models.crossvit import CrossViT
from crossvit.models.text_encoder import TextFeatures
from crossvit.objectives.randomness import Replay
from crossvit.objectives.term import PairState, Perturbation


class Towers(NamedTuple):
    """What both towers make of a batch, before anything is projected or fused; a text about two pictures has them side by side."""

    patches: Tensor
    words: Tensor
    visual: Tensor
    text: TextFeatures
    negatives: TextFeatures | None


def run_towers(model: CrossViT, batch: PairBatch) -> Towers:
    """Both towers once."""
    pictures = _pictures(batch)
    patches = model.patch_encoder(pictures).patches
    visual = model.visual_tokens(patches, pictures.shape[-2:])
    words = model.text_encoder.embed(batch.tokens)
    # of a frozen encoder's words nothing is asked: it may know the text
    text = model.text_features(batch.tokens, batch.token_mask, words if words.requires_grad else None)
    negatives = None
    if batch.negatives is not None:
        negatives = model.text_features(batch.negatives.flatten(0, 1), batch.negatives_mask.flatten(0, 1))
    return Towers(patches, words, visual, text, negatives)


def pair_state(
    model: CrossViT, batch: PairBatch, uniform=None, teacher: CrossViT | None = None, towers: Towers | None = None
) -> PairState:
    """Lays out what the terms need of a batch. teacher: the model behind `PairState.teacher`, run when asked. towers: their output, where
    they have run already."""
    before = Replay(batch.image.device)
    if towers is None:
        towers = run_towers(model, batch)
    else:
        towers = towers._replace(
            words=model.text_encoder.embed(batch.tokens)
        )  # the one that a term may take on to the weights
    return _lay_out(model, batch, towers, uniform, teacher, before, {})


def _pictures(batch: PairBatch) -> Tensor:
    return batch.image.flatten(0, 1) if batch.image.dim() == 5 else batch.image


def _lay_out(
    model: CrossViT,
    batch: PairBatch,
    towers: Towers,
    uniform,
    teacher: CrossViT | None,
    before: Replay,
    shared: dict,
) -> PairState:
    size, two, pictures = len(batch.tokens), batch.image.dim() == 5, _pictures(batch)
    patches, words, visual, text, features = towers
    negatives = negative_embedding = present = None
    if features is not None:
        negatives, negative_embedding = tuple(features), model.embed_text(features)
        present = batch.negatives_mask.flatten(0, 1).any(dim=1)

    def fields(visual: Tensor, text: TextFeatures) -> dict:
        first, second = visual.unflatten(0, (size, 2)).unbind(1) if two else (visual, None)
        return {
            "visual": first,
            "second_visual": second,
            "text": text.tokens,
            "text_pooled": text.pooled,
            "text_mask": text.mask,
            "image_embedding": model.embed_visual(first),
            "text_embedding": model.embed_text(text),
        }

    def perturb(added: Perturbation, through_cnn: bool = False) -> PairState:
        """The same pairs on changed inputs. What is not changed is not computed again. What is added is fp32, what is read of the weights'
        own type."""
        kind = model.logit_scale.dtype
        new_visual, new_text = visual, text
        if added.pixel is not None or added.patch is not None:
            base = patches if through_cnn else patches.detach()
            if added.pixel is not None:
                with unchanged_statistics(model.patch_encoder):
                    base = model.patch_encoder((pictures + added.pixel).to(kind), passing=True).patches
            moved = base if added.patch is None else (base + added.patch).to(kind)
            new_visual = model.visual_tokens(moved, pictures.shape[-2:])
        if added.text is not None:
            new_text = model.text_features(batch.tokens, batch.token_mask, (words + added.text).to(kind))
        return PairState(**common | fields(new_visual, new_text), shared=state.shared)

    def make_teacher() -> PairState:
        with torch.no_grad():
            return _lay_out(teacher, batch, run_towers(teacher, batch), uniform, None, before, state.shared)

    common = {
        "logit_scale": model.logit_scale,
        "logit_bias": model.logit_bias,
        "tokens": batch.tokens,
        "image_id": batch.image_id,
        "text_id": batch.text_id,
        "label": batch.label,
        "fuse": lambda visual, *text: model.fuse(visual, TextFeatures(*text), pooled_only=True).pooled,
        "fuse_words": lambda visual, *text: model.fuse(visual, TextFeatures(*text)).text,
        "match_logits": model.itm,
        "relation_logits": model.relation,
        "two_image_logits": lambda first, second: model.two_image(torch.cat([first, second], dim=-1)),
        "negatives": negatives,
        "negative_embedding": negative_embedding,
        "negative_present": present,
        "uniform": uniform or (lambda n, stream=0: torch.rand(n, device=patches.device)),
        "inputs": Perturbation(words, patches, pictures),
        "before": before,
        "perturb": perturb,
        "embed": model.text_encoder.embed,
        "vocab_size": model.text_encoder.vocab_size,
        "encode_words": lambda changed: tuple(model.text_features(batch.tokens, batch.token_mask, changed)),
        "mask_embedding": model.mlm.mask_embedding,
        "word_logits": model.masked_word_logits,
        "make_teacher": make_teacher,
        "parameters": [p for p in model.parameters() if p.requires_grad],
    }
    state = PairState(**common | fields(visual, text), shared=shared)
    return state


@contextlib.contextmanager
def unchanged_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm normalises as it would, by the batch while training, and leaves its running statistics alone."""
    layers = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training and m.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
