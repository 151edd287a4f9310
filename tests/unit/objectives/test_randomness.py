import torch

from crossvit.objectives.randomness import Replay


def test_each_pass_draws_the_same_and_what_follows_goes_on_from_there():
    torch.manual_seed(0)
    torch.rand(3)
    replay = Replay(torch.device("cpu"))
    seen = []
    for _ in range(3):
        torch.rand(2)  # what happens between two passes does not matter
        with replay.again():
            seen.append(torch.nn.functional.dropout(torch.ones(50)))
    after = torch.rand(4)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(seen[0], torch.nn.functional.dropout(torch.ones(50)))
    assert torch.equal(after, torch.rand(4))


def test_the_numbers_of_a_gpu_too(monkeypatch):
    """Its generator played by a list, for want of one."""
    device, now = torch.device("cuda", 3), ["first"]
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda of: (of, now[-1]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, of: now.append((state, of)))
    replay = Replay(device)
    now.append("later")
    with replay.again():
        assert now[-1] == ((device, "first"), device)


def test_another_state_draws_others():
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with Replay(torch.device("cpu")).again():
            draws.append(torch.rand(5))
    assert not torch.equal(*draws)


def test_it_knows_whether_anything_was_drawn():
    replay = Replay(torch.device("cpu"))
    assert not replay.moved()
    torch.rand(1)
    assert replay.moved()
