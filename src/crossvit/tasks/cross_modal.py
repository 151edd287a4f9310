"""Stages 2 and 3: the two towers and their fusion, trained on image-text pairs by a weighted sum of terms."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossvit.data.batches import ImageBatch, PairBatch, TextBatch
from crossvit.distributed import world_size
from crossvit.errors import UserError
from crossvit.metrics import (
    ImageTextPairs,
    IndexedCatMetric,
    classification_accuracy,
    embedding_retrieval,
    embedding_spread,
)
from crossvit.metrics.pairs import IMAGE_TO_TEXT, TEXT_TO_IMAGE
from crossvit.models.crossvit import CrossViT
from crossvit.objectives.gradients import KnownGradient, gradients
from crossvit.objectives.matching import match
from crossvit.objectives.relation import relation_answers, two_image_answers
from crossvit.objectives.term import PairState, Term
from crossvit.sharding import gather_blocks
from crossvit.tasks.base import Task
from crossvit.tasks.chunks import ChunkedTowers
from crossvit.tasks.pair_state import pair_state
from crossvit.tasks.teacher import MomentumTeacher

TRUNK = ("patch_encoder.", "vision.", "text_encoder.")
DIRECTIONS = {IMAGE_TO_TEXT: "i2t", TEXT_TO_IMAGE: "t2i"}
KS = (1, 5)
MAX_LOGIT_SCALE = 4.6052  # ln 100, as open_clip and SLIP clamp it


class CrossModalTask(Task):
    """Contrastive learning, matching and the other terms on a `CrossViT`; loss = sum of weight x term over the terms with weight > 0.

    terms: name -> Term. Parts of the model that no active term uses are frozen, so that every trained parameter has a gradient.
    teacher_momentum: of the momentum teacher, which is there where a term asks for it. micro_batch: rows that the towers run at a time,
    on each device; the loss is still that of the whole batch (`tasks/chunks.py`). The terms' gradient norms are not logged then.

    Raises UserError where a term lacks the one that it needs beside it.
    """

    provides = ("",)

    def __init__(
        self,
        model: CrossViT,
        terms: Mapping[str, Term],
        seed: int = 0,
        teacher_momentum: float = 0.995,
        micro_batch: int | None = None,
        **settings,
    ) -> None:
        super().__init__(**settings)
        self.model = model
        self.terms = nn.ModuleDict({name: term for name, term in terms.items() if term.weight > 0})
        if not self.terms:
            raise ValueError("objective: every weight is 0, there is nothing to train")
        for name, term in self.terms.items():
            for group in term.needs_terms:
                if not any(other in self.terms for other in group):
                    raise UserError(f"objective.{name} needs {' or '.join(group)} beside it: give it a weight")
        if micro_batch is not None and any(getattr(term, "through_cnn", False) for term in self.terms.values()):
            raise UserError(
                "objective.adversarial.through_cnn=true needs the CNN's pass on the whole batch: set micro_batch=null"
            )
        self.seed = seed
        self.micro_batch = micro_batch
        used = {name for term in self.terms.values() for name in term.modules_used}
        for name, parameter in model.named_parameters():
            if name.split(".")[0] not in used:
                parameter.requires_grad_(False)
        needed = any(term.needs_teacher for term in self.terms.values())
        self.teacher = MomentumTeacher(model, teacher_momentum) if needed else None
        self.val_images = IndexedCatMetric("embedding", "image_id")
        self.val_texts = IndexedCatMetric("embedding", "image_id", "text_id")
        self.val_pairs = IndexedCatMetric("logits", "label")

    @property
    def network(self) -> nn.Module:
        return self.model

    @property
    def differentiates_by_parameters(self) -> bool:
        return self.micro_batch is not None or any(
            getattr(term, "trains_on_the_way", False) for term in self.terms.values()
        )

    @property
    def runs_again(self) -> bool:
        return self.micro_batch is not None or "adversarial" in self.terms or "mlm" in self.terms

    def _networks(self) -> list[nn.Module]:
        return [self.model] if self.teacher is None else [self.model, self.teacher.model]

    def setup(self, stage: str) -> None:
        """The teacher starts as what the stage starts from; a checkpoint, restored later, brings its own."""
        if stage == "fit" and self.teacher is not None:
            self.teacher.follow(self.model, momentum=0.0)

    def losses(
        self, batch: PairBatch, uniform=None, chunks: ChunkedTowers | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Each term's weighted loss over the global batch, and the figures to log."""
        state = self.state(batch, uniform, chunks)
        weighted, figures = {}, {}
        for name, term in self.terms.items():
            out = term(state)
            weighted[name] = term.weight * out.loss
            figures[f"{name}/loss"] = out.loss.detach()
            figures[f"{name}/weighted"] = weighted[name].detach()
            figures |= {f"{name}/{key}": value for key, value in out.figures.items()}
        if self.logs_this_step:
            for side in ("image", "text"):
                spread = embedding_spread(getattr(state, f"{side}_embedding"))
                figures |= {f"{side}/{name}": value for name, value in spread._asdict().items()}
        return weighted, figures

    def forward(self, batch: PairBatch, uniform=None) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the weighted losses, and the figures to log."""
        weighted, figures = self.losses(batch, uniform)
        total = sum(weighted.values())
        return total, figures | {"loss": total.detach()}

    def state(self, batch: PairBatch, uniform=None, chunks: ChunkedTowers | None = None) -> PairState:
        """What the terms see of a batch."""
        teacher, towers = self.teacher.model if self.teacher is not None else None, chunks.towers if chunks else None
        state = pair_state(self.model, self._read(batch), uniform, teacher, towers)
        if chunks is not None:
            state.parameters += chunks.leaves  # a term that differentiates the clean pass itself gets as far as these
        if self._trainer is not None:
            state.step = self.trainer.global_step
        state.loss_scale = self.loss_scale
        return state

    @property
    def loss_scale(self) -> float:
        """What fp16 training multiplies a loss by before it differentiates it."""
        scaler = None if self._trainer is None else getattr(self.trainer.precision_plugin, "scaler", None)
        return 1.0 if scaler is None else scaler.get_scale()

    def _read(self, batch: PairBatch) -> PairBatch:
        """Without the false captions where nobody asks for their features."""
        if any(term.reads_negatives for term in self.terms.values()):
            return batch
        return batch._replace(negatives=None, negatives_mask=None)

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        def uniform(n: int, stream: int = 0) -> Tensor:
            entropy = [self.seed, self.current_epoch, batch_idx, *([stream] if stream else [])]
            seed = np.random.SeedSequence(entropy).generate_state(1)[0]
            generator = torch.Generator().manual_seed(int(seed))
            return torch.rand(n, generator=generator, dtype=torch.float32).to(self.device)

        chunks = None
        if self.micro_batch is not None and self.micro_batch < len(batch.tokens):
            chunks = ChunkedTowers(self.model, self._read(batch), self.micro_batch)
        weighted, figures = self.losses(batch, uniform, chunks)
        loss = sum(weighted.values())
        self.step_losses = {"loss": loss.detach()} | {name: figures[f"{name}/loss"] for name in weighted}
        if chunks is not None:
            grads = chunks.gradients(loss, [p for p in self.model.parameters() if p.requires_grad], self.loss_scale)
            loss = KnownGradient.apply(loss.detach(), list(grads.values()), *grads)
        if self.logs_this_step:
            if chunks is None:
                figures |= {f"{name}/gradient": self.trunk_gradient(term) for name, term in weighted.items()}
            self.log_figures(figures | {"loss": loss.detach()})
        return loss

    def trunk_gradient(self, loss: Tensor) -> Tensor:
        """Norm of a loss's gradient by what all terms share, the towers, averaged over processes as training averages it."""
        gather_blocks(self)
        trunk = [p for name, p in self.model.named_parameters() if p.requires_grad and name.startswith(TRUNK)]
        found = gradients(loss, trunk, retain_graph=True) if trunk and loss.requires_grad else []
        flat = [grad.flatten().float() for grad in found if grad is not None]
        gradient = torch.cat(flat) if flat else torch.zeros(1, device=loss.device)
        if world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= world_size()
        return gradient.norm()

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.model.logit_scale.data.clamp_(0, MAX_LOGIT_SCALE)
        if self.teacher is not None:
            self.teacher.follow(self.model)

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

    def validation_figures(self, data) -> tuple[str, ...]:
        if data.val_split is None:
            return ()
        if data.index(data.val_split).labels is not None:
            return ("val/accuracy",)
        return tuple(f"val/{short}/acc@{k}" for short in DIRECTIONS.values() for k in KS)

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
                for k in KS:
                    accuracy = result.accuracy(k).mean().float().to(self.device)
                    self.log(f"val/{DIRECTIONS[direction]}/acc@{k}", accuracy, prog_bar=k == 1, sync_dist=True)


def pair_logits(model: CrossViT, batch: PairBatch, relation: bool = False) -> Tensor:
    """(B, K) logits of a labelled batch: the two-image head for two pictures, else the relation head if asked, else the matching head."""
    state = pair_state(model, batch._replace(negatives=None, negatives_mask=None))
    if state.second_visual is not None:
        return two_image_answers(state)
    return relation_answers(state) if relation else match(state, False, False).logits
