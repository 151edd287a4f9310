"""Stages 2 and 3: the two towers and their fusion, trained on image-text pairs by a weighted sum of terms."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from crossvit.data.batches import ImageBatch, PairBatch, TextBatch
from crossvit.metrics import ImageTextPairs, IndexedCatMetric, classification_accuracy, embedding_retrieval
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from crossvit.models.crossvit import CrossViT
from crossvit.models.text_encoder import TextFeatures
from crossvit.objectives.term import PairState, Term
from crossvit.tasks.base import Task

MAX_LOGIT_SCALE = 4.6052  # ln 100, as open_clip and SLIP clamp it


class CrossModalTask(Task):
    """Contrastive learning, matching and relation terms on a `CrossViT`; loss = sum of weight x term over the terms with weight > 0.

    terms: name -> Term. Parts of the model that no active term uses are frozen, so that every trained parameter has a gradient.
    """

    provides = ("",)

    def __init__(self, model: CrossViT, terms: Mapping[str, Term], seed: int = 0, **settings) -> None:
        super().__init__(**settings)
        self.model = model
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if term.weight > 0})
        if not self.terms:
            raise ValueError("objective: every weight is 0, there is nothing to train")
        self.seed = seed
        used = {name for term in self.terms.values() for name in term.modules_used}
        for name, parameter in model.named_parameters():
            if name.split(".")[0] not in used:
                parameter.requires_grad_(False)
        self.val_images = IndexedCatMetric("embedding", "image_id")
        self.val_texts = IndexedCatMetric("embedding", "image_id", "text_id")
        self.val_pairs = IndexedCatMetric("logits", "label")

    @property
    def network(self) -> nn.Module:
        return self.model

    def forward(self, batch: PairBatch, uniform=None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss over the global batch and the figures to log."""
        if not any(getattr(term, "generated_negatives", False) for term in self.terms.values()):
            batch = batch._replace(negatives=None, negatives_mask=None)  # nobody asks for their features
        state = pair_state(self.model, batch, uniform)
        total, figures = 0.0, {}
        for name, term in self.terms.items():
            out = term(state)
            total = total + term.weight * out.loss
            figures[f"{name}/loss"] = out.loss.detach()
            figures[f"{name}/weighted"] = term.weight * out.loss.detach()
            figures |= {f"{name}/{key}": value for key, value in out.figures.items()}
        return total, figures | {"loss": total.detach()}

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        def uniform(n: int) -> Tensor:
            seed = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx]).generate_state(1)[0]
            return torch.rand(n, generator=torch.Generator().manual_seed(int(seed))).to(self.device)

        loss, figures = self(batch, uniform)
        self.log_figures(figures)
        return loss

    def on_train_batch_end(self, *args) -> None:
        self.model.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)

    def validation_step(
        self, batch: ImageBatch | TextBatch | PairBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, PairBatch):
            logits = pair_logits(self.model, batch, relation="relation" in self.terms)
            self.val_pairs.update(batch.index, logits=logits.float(), label=batch.label)
        elif isinstance(batch, ImageBatch):
            embedding = self.model.encode_image(batch.image, normalize=True)
            self.val_images.update(batch.index, embedding=embedding.float(), image_id=batch.label)
        else:
            embedding = self.model.embed_text(self.model.text_features(batch.tokens, batch.token_mask))
            self.val_texts.update(
                batch.index, embedding=embedding.float(), image_id=batch.image_id, text_id=batch.text_id
            )

    def on_validation_epoch_end(self) -> None:
        images, texts, pairs = self.val_images.compute(), self.val_texts.compute(), self.val_pairs.compute()
        for metric in (self.val_images, self.val_texts, self.val_pairs):
            metric.reset()
        if pairs:
            accuracy = classification_accuracy(pairs["logits"], pairs["label"], 1).mean()
            self.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True)
        if images and texts:
            corpus = ImageTextPairs(images["image_id"], texts["image_id"], texts["text_id"])
            for direction, result in embedding_retrieval(images["embedding"], texts["embedding"], corpus).items():
                short = {IMAGE_TO_TEXT: "i2t", TEXT_TO_IMAGE: "t2i"}[direction]
                for k in (1, 5):
                    accuracy = result.accuracy(k).mean().float().to(self.device)
                    self.log(f"val/{short}/acc@{k}", accuracy, prog_bar=k == 1, sync_dist=True)


def pair_state(model: CrossViT, batch: PairBatch, uniform=None) -> PairState:
    """Runs both towers once on a batch and lays out what the terms need."""
    size, two = batch.image.shape[0], batch.image.dim() == 5
    visual = model.visual_features(batch.image.flatten(0, 1) if two else batch.image)
    first, second = visual.unflatten(0, (size, 2)).unbind(1) if two else (visual, None)
    text = model.text_features(batch.tokens, batch.token_mask)
    negatives = negative_embedding = present = None
    if batch.negatives is not None:
        features = model.text_features(batch.negatives.flatten(0, 1), batch.negatives_mask.flatten(0, 1))
        negatives, negative_embedding = (features.tokens, features.pooled, features.mask), model.embed_text(features)
        present = batch.negatives_mask.flatten(0, 1).any(dim=1)

    def fuse(visual: Tensor, tokens: Tensor, pooled: Tensor, mask: Tensor) -> Tensor:
        return model.fuse(visual, TextFeatures(tokens, pooled, mask)).pooled

    return PairState(
        visual=first,
        text=text.tokens,
        text_pooled=text.pooled,
        text_mask=text.mask,
        image_embedding=model.embed_visual(first),
        text_embedding=model.embed_text(text),
        logit_scale=model.logit_scale,
        image_id=batch.image_id,
        text_id=batch.text_id,
        label=batch.label,
        fuse=fuse,
        match_logits=model.itm,
        relation_logits=model.relation,
        two_image_logits=lambda a, b: model.two_image(torch.cat([a, b], dim=-1)),
        second_visual=second,
        negatives=negatives,
        negative_embedding=negative_embedding,
        negative_present=present,
        uniform=uniform or (lambda n: torch.rand(n, device=first.device)),
    )


def pair_logits(model: CrossViT, batch: PairBatch, relation: bool = False) -> Tensor:
    """(B, K) logits of a labelled batch: the two-image head for two pictures, else the relation head if asked, else the matching head."""
    state = pair_state(model, batch._replace(negatives=None, negatives_mask=None))
    text = (state.text, state.text_pooled, state.text_mask)
    fused = state.fuse(state.visual, *text)
    if state.second_visual is not None:
        return state.two_image_logits(fused, state.fuse(state.second_visual, *text))
    return (state.relation_logits if relation else state.match_logits)(fused)
