"""Rows gathered from 2 and 3 processes give the figure of one, though ranks are uneven, repeat samples or hold none."""

import pytest
import torch
import torch.nn.functional as F

from crossvit.metrics import (
    ExactDot,
    ImageTextPairs,
    IndexedCatMetric,
    embedding_retrieval,
    gather_rows,
    reranked_retrieval,
)
from tests.distributed import run_distributed

SIZE = 11


def data():
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(SIZE, 5, generator=generator), dim=1)
    text = F.normalize(image + 0.7 * torch.randn(SIZE, 5, generator=generator), dim=1)
    return image, text


def collect(batches):
    image, text = data()
    store = IndexedCatMetric("image", "text", "label")
    for index in batches:
        store.update(index, image=image[index], text=text[index], label=index % 3 == 0)
    return store.compute()


def evaluate(rows, part=(0, 1)):
    pairs = ImageTextPairs(rows["index"], rows["index"])
    first = embedding_retrieval(rows["image"], rows["text"], pairs, part=part)
    dot = ExactDot(rows["image"], rows["text"])
    second = reranked_retrieval(dot, lambda i, t: -(i - t).abs().float(), pairs, 3, part=part, batch_size=4)
    return [result.gather() for found in (first, second) for result in found.values()]


def in_rank(rank, world_size):
    # As a padding sampler deals: every rank the same number, the first samples twice. The middle rank of three has nothing.
    holders = [0, 1] if world_size == 2 else [0, 2]
    padded = torch.arange(SIZE + 1) % SIZE
    mine = padded[holders.index(rank) :: 2] if rank in holders else padded[:0]
    rows = collect(list(mine.split(4)) if len(mine) else [])
    results = evaluate(rows, (rank, world_size))
    few = evaluate({name: value[:2] for name, value in rows.items()}, (rank, world_size))  # fewer queries than ranks
    one = gather_rows({"index": torch.arange(2)} if rank == 1 else {})  # one rank alone has rows
    return (
        rows,
        [vars(result) for result in results],
        [vars(result) for result in few],
        refused(rank),
        gather_rows({}),
        one,
    )


def refused(rank):
    shape = (2, 3) if rank == 0 else (2, 4)
    try:
        gather_rows({"index": torch.arange(2), "x": torch.zeros(shape)})
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_world_size_equals_one_process(world_size):
    rows = collect(torch.arange(SIZE).split(4))
    expected = [vars(result) for result in evaluate(rows)]
    few = [vars(result) for result in evaluate({name: value[:2] for name, value in rows.items()})]
    for found, results, few_results, error, nothing, one in run_distributed(in_rank, world_size):
        assert set(found) == set(rows)
        assert all(torch.equal(found[name], rows[name]) for name in rows)
        for got, want in ((results, expected), (few_results, few)):
            for result, other in zip(got, want, strict=True):
                assert all(torch.equal(result[name], other[name]) for name in other)
        assert "different rows" in error and nothing == {} and one["index"].tolist() == [0, 1]


def test_rows_come_sorted_and_once():
    store = IndexedCatMetric("value")
    store.update(torch.tensor([3, 1]), value=torch.tensor([30.0, 10.0]))
    store.update(torch.tensor([1, 2, 3]), value=torch.tensor([99.0, 20.0, 99.0]))
    rows = store.compute()
    assert rows["index"].tolist() == [1, 2, 3] and rows["value"].tolist() == [10.0, 20.0, 30.0]
    store.reset()
    store.update(torch.tensor([5]), value=torch.tensor([1.0]))
    assert store.compute()["index"].tolist() == [5]


def test_nothing_collected_and_misuse():
    store = IndexedCatMetric("value")
    assert store.compute() == {}
    with pytest.raises(ValueError, match="fields"):
        store.update(torch.tensor([1]), other=torch.zeros(1))
    with pytest.raises(ValueError, match="2 rows, index 1"):
        store.update(torch.tensor([1]), value=torch.zeros(2))
    with pytest.raises(ValueError, match="rows differ in length: {'index': 1, 'value': 2}"):
        gather_rows({"index": torch.tensor([1]), "value": torch.zeros(2)})


def test_the_options_of_torchmetrics_are_taken():
    assert IndexedCatMetric("value", compute_on_cpu=True).compute_on_cpu
