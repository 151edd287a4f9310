"""The contrastive losses in memory that grows with the batch, not with its square.

The logits of local pictures and all captions are computed in tiles of columns and thrown away; the backward pass computes each tile once
more and takes both directions' gradients from it. Only local rows are compared with gathered columns, so every rank does its share of the
global matrix and one gather of captions is all that it needs. The idea of recomputed tiles is that of FlashAttention (Dao et al. 2022);
Inf-CL (Cheng et al. 2024) applies it to this loss with a ring of ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from crossvit.distributed import gather_with_grad, rank, world_size


class Positives(NamedTuple):
    """The known pairs of local pictures (b) and all captions (B) as a list, and how many there are of each picture and caption."""

    image: Tensor  # (n,) place of a local picture among the local rows
    text: Tensor  # (n,) place of a caption in the global batch
    of_image: Tensor  # (B,) captions that hold of a picture
    of_text: Tensor  # (B,) pictures that a caption holds of


def list_positives(rows: Tensor, image_id: Tensor, text_id: Tensor, true: Tensor) -> Positives:
    """Which captions hold of which local pictures, by the ids and truth (B,) of the global batch's pairs; rows (b,): the local ones.

    The same pairs as `term.known_pairs`, in memory that grows with their number.
    """
    images, image = image_id.unique(return_inverse=True)
    texts, text = text_id.unique(return_inverse=True)
    known = (image * len(texts) + text)[true].unique()  # different pictures and captions, once each, by picture
    known_image, known_text = known // len(texts), known % len(texts)
    image_copies, text_copies = torch.bincount(image), torch.bincount(text)
    of_image, of_text = torch.zeros_like(image_copies), torch.zeros_like(text_copies)
    of_image.index_add_(0, known_image, text_copies[known_text])
    of_text.index_add_(0, known_text, image_copies[known_image])
    # from a local row to the known pairs of its picture, and on to every place in the batch where such a caption stands
    row, pair = _expand(image[rows], torch.bincount(known_image, minlength=len(images)))
    which, place = _expand(known_text[pair], text_copies)
    return Positives(row[which], text.argsort(stable=True)[place], of_image[image], of_text[text])


def _expand(keys: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """For each key, all members of its group: (which key, which member), groups of these sizes lying one after the other."""
    count = sizes[keys]
    which = torch.arange(len(keys), device=keys.device).repeat_interleave(count)
    first = (sizes.cumsum(0) - sizes)[keys]
    within = torch.arange(len(which), device=keys.device) - (count.cumsum(0) - count)[which]
    return which, first[which] + within


def tiled_contrastive_loss(
    image: Tensor,
    all_text: Tensor,
    scale: Tensor,
    positives: Positives,
    negative_text: Tensor | None = None,
    label_smoothing: float = 0.0,
    tile: int = 256,
) -> Tensor:
    """`contrastive.contrastive_loss` of the global batch, a scalar in nats: this rank's share, whose average over ranks is the loss.

    image (b, E): local rows, L2-normalised; all_text (B, E): captions of all ranks, gathered with their gradient; scale: the factor on the
    cosine. negative_text (n, E): captions that are false of the images. tile: columns at a time; memory is some b x tile floats.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, columns, scale, negatives = _full(image, all_text, scale, negative_text)
        own = slice(rank(), None, world_size())  # the columns that this rank answers for
        by_image, by_text = LogSumExp.apply(image, columns, scale, tile)
        by_text = gather_with_grad(by_text[None]).logsumexp(dim=0)[own]
        if negatives is not None and len(negatives):
            by_image = torch.logaddexp(by_image, LogSumExp.apply(image, negatives, scale, tile)[0])
        counted_image, counted_text = positives.of_image > 0, positives.of_text > 0
        logits = (1 - label_smoothing) * scale * (image[positives.image] * columns[positives.text]).sum(dim=1)
        image_loss = by_image[counted_image[own]].sum() - (logits / positives.of_image[own][positives.image]).sum()
        text_loss = by_text[counted_text[own]].sum() - (logits / positives.of_text[positives.text]).sum()
        if label_smoothing:
            rivals = columns if negatives is None else torch.cat([columns, negatives])
            to_all = scale * image[counted_image[own]].sum(dim=0) @ rivals.mean(dim=0)
            from_all = scale * image.sum(dim=0) @ columns[counted_text].sum(dim=0) / len(columns)
            image_loss, text_loss = image_loss - label_smoothing * to_all, text_loss - label_smoothing * from_all
        means = image_loss / counted_image.sum().clamp(min=1) + text_loss / counted_text.sum().clamp(min=1)
        return world_size() * means / 2


def tiled_sigmoid_loss(
    image: Tensor,
    all_text: Tensor,
    scale: Tensor,
    bias: Tensor,
    positives: Positives,
    negative_text: Tensor | None = None,
    tile: int = 256,
) -> Tensor:
    """The mean over pictures of `sigmoid.sigmoid_loss`, this rank's share of it; arguments as in `tiled_contrastive_loss`."""
    with torch.autocast(image.device.type, enabled=False):
        image, columns, scale, negatives, bias = _full(image, all_text, scale, negative_text, bias)
        rivals = columns if negatives is None else torch.cat([columns, negatives])
        rejected = Softplus.apply(image, rivals, scale, bias, tile).sum()
        # a pair that holds costs softplus(-x), which is softplus(x) - x
        logits = scale * (image[positives.image] * columns[positives.text]).sum(dim=1) + bias
        return (rejected - logits.sum()) / len(image)


def _full(*tensors: Tensor | None) -> list[Tensor | None]:
    """In fp32, or in fp64 where they are that."""
    return [None if x is None else x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


class LogSumExp(torch.autograd.Function):
    """Of the logits scale x query @ candidates.T (b, B): over each row (b,) and over each column (B,)."""

    @staticmethod
    def forward(ctx, query: Tensor, candidates: Tensor, scale: Tensor, tile: int) -> tuple[Tensor, Tensor]:
        scaled = scale * query
        by_row = query.new_full((len(query),), -torch.inf)
        by_column = query.new_empty(len(candidates))
        for start in range(0, len(candidates), tile):
            logits = scaled @ candidates[start : start + tile].t()
            by_column[start : start + tile] = logits.logsumexp(dim=0)
            by_row = torch.logaddexp(by_row, logits.logsumexp(dim=1))
        ctx.save_for_backward(query, candidates, scale, by_row, by_column)
        ctx.tile = tile
        return by_row, by_column

    @staticmethod
    def backward(ctx, row_grad: Tensor, column_grad: Tensor) -> tuple:
        query, candidates, scale, by_row, by_column = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            scaled = scale * query
            query_grad, candidate_grad = torch.zeros_like(query), torch.empty_like(candidates)
            scale_grad = torch.zeros_like(scale)
            for start in range(0, len(candidates), ctx.tile):
                part = slice(start, start + ctx.tile)
                logits = scaled @ candidates[part].t()
                grad = (logits - by_row[:, None]).exp_().mul_(row_grad[:, None])
                grad.add_((logits - by_column[part]).exp_().mul_(column_grad[part]))
                query_grad.addmm_(grad, candidates[part])
                candidate_grad[part] = grad.t() @ scaled
                scale_grad += torch.dot(grad.flatten(), logits.flatten())
            return scale * query_grad, candidate_grad, scale_grad / scale, None


class Softplus(torch.autograd.Function):
    """The sum over each row (b,) of softplus(scale x query @ candidates.T + bias)."""

    @staticmethod
    def forward(ctx, query: Tensor, candidates: Tensor, scale: Tensor, bias: Tensor, tile: int) -> Tensor:
        total = query.new_zeros(len(query))
        scaled = scale * query
        for start in range(0, len(candidates), tile):
            total += F.softplus(scaled @ candidates[start : start + tile].t() + bias).sum(dim=1)
        ctx.save_for_backward(query, candidates, scale, bias)
        ctx.tile = tile
        return total

    @staticmethod
    def backward(ctx, row_grad: Tensor) -> tuple:
        query, candidates, scale, bias = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            scaled = scale * query
            query_grad, candidate_grad = torch.zeros_like(query), torch.empty_like(candidates)
            scale_grad, bias_grad = torch.zeros_like(scale), torch.zeros_like(bias)
            for start in range(0, len(candidates), ctx.tile):
                part = slice(start, start + ctx.tile)
                cosine = scaled @ candidates[part].t()
                grad = (cosine + bias).sigmoid_().mul_(row_grad[:, None])
                query_grad.addmm_(grad, candidates[part])
                candidate_grad[part] = grad.t() @ scaled
                scale_grad += torch.dot(grad.flatten(), cosine.flatten())
                bias_grad += grad.sum()
            return scale * query_grad, candidate_grad, scale_grad / scale, bias_grad, None
