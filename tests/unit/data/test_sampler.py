import pytest

from crossvit.data.sampler import Draw, EpochSampler, SampleKey, sample_rng


def batches(sampler):
    """The rank's batches, each a list of indices."""
    indices = [key.index for key in sampler]
    step = sampler.batch_size // sampler.world_size
    return [indices[i : i + step] for i in range(0, len(indices), step)]


def global_batches(size, batch_size, world_size, epoch=0, start=0, **options):
    """The batches of all ranks put back together."""
    ranks = []
    for rank in range(world_size):
        sampler = EpochSampler(size, batch_size, seed=7, rank=rank, world_size=world_size, **options)
        sampler.seek(epoch, start)
        ranks.append(batches(sampler))
    together = []
    for i in range(max(map(len, ranks))):
        rows = {}
        for rank, mine in enumerate(ranks):
            rows |= {rank + world_size * j: index for j, index in enumerate(mine[i] if i < len(mine) else [])}
        together.append([rows[row] for row in sorted(rows)])
    return together


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("epoch", [0, 3])
def test_world_size_changes_no_batch(world_size, epoch):
    alone = global_batches(50, 6, 1, epoch)
    assert global_batches(50, 6, world_size, epoch) == alone
    assert len(alone) == 8 and all(len(batch) == 6 for batch in alone)
    assert len({index for batch in alone for index in batch}) == 48


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_restart_in_mid_epoch_goes_on_where_it_stopped(world_size):
    assert global_batches(50, 6, world_size, 2, start=5) == global_batches(50, 6, 1, 2)[5:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 6, 13])
def test_evaluation_sees_each_sample_once_in_order(size, world_size):
    together = global_batches(size, 6, world_size, shuffle=False, drop_last=False)
    assert [index for batch in together for index in batch] == list(range(size))


def test_order_depends_on_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(100, 10, seed=seed)
        sampler.seek(epoch)
        return list(sampler)

    assert order(0, 1) == order(0, 1)
    assert [key.index for key in order(0, 1)] != [key.index for key in order(0, 2)]
    assert order(0, 1) != order(1, 1)
    assert {key.epoch for key in order(0, 4)} == {4}


def test_start_belongs_to_its_epoch():
    sampler = EpochSampler(20, 5)
    sampler.seek(2, 3)
    sampler.set_epoch(2)
    assert len(list(sampler)) == 5
    sampler.set_epoch(3)
    assert len(list(sampler)) == 20
    assert len(sampler) == 20


def test_the_epoch_is_taken_when_iteration_begins():
    sampler = EpochSampler(20, 5)
    keys = iter(sampler)
    sampler.set_epoch(1)
    assert next(keys).epoch == 0


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [True, False])
def test_length(world_size, drop_last):
    for rank in range(world_size):
        sampler = EpochSampler(20, 6, rank=rank, world_size=world_size, drop_last=drop_last)
        assert len(sampler) == len(list(sampler))


def test_wrong_sizes():
    with pytest.raises(ValueError, match="multiple of world_size 3"):
        EpochSampler(20, 8, world_size=3)
    with pytest.raises(ValueError, match="rank"):
        EpochSampler(20, 8, rank=2, world_size=2)


def test_random_numbers_of_a_sample():
    def draw(seed=0, epoch=1, index=2, use=Draw.CAPTION):
        return sample_rng(seed, SampleKey(epoch, index), use).integers(2**62)

    assert draw() == draw()
    others = [draw(seed=1), draw(epoch=2), draw(index=1), draw(use=Draw.AUGMENTATION), draw(epoch=2, index=1)]
    assert len({draw(), *others}) == 6
