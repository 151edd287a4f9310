"""What a failing worker, process or device comes to in words; the failures are real where a CPU can have them."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from crossvit.config import chain_configs
from crossvit.errors import Diverged, UserError
from crossvit.stages.failures import EVALUATION, explained, less_memory

LESS = "lower data.batch_size"


class Failing(Dataset):
    """Sample 5 does something."""

    def __init__(self, do) -> None:
        self.do = do

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        if index == 5:
            self.do()
        return index


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def out_of_memory() -> None:
    raise MemoryError


def unreadable() -> None:
    raise OSError(5, "Input/output error", "/data/train/5.jpg")


def wrong_key() -> None:
    raise UserError("data.root=/nowhere is not a folder.")


def mistake() -> None:
    raise KeyError("a mistake in the code")


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (
            killed,
            r"^stage coco: a data worker (was killed \(Killed\)|has ended), as the.*data.num_workers.*the last checkpoint$",
        ),
        (out_of_memory, r"^stage coco: out of memory in a data worker; lower data.num_workers or data.batch_size"),
        (unreadable, r"^stage coco: a data worker could not read: \[Errno 5\] Input/output error: '/data/train/5.jpg'"),
        (wrong_key, r"^stage coco: data.root=/nowhere is not a folder\.$"),
    ],
)
def test_workers(do, message):
    with pytest.raises(UserError, match=message) as caught, explained("stage coco", LESS):
        list(DataLoader(Failing(do), num_workers=1))
    assert "Traceback" not in str(caught.value)


def test_a_mistake_in_a_worker_stays_what_it_is():
    with pytest.raises(KeyError, match="(?s)Traceback.*a mistake in the code"), explained("stage coco", LESS):
        list(DataLoader(Failing(mistake), num_workers=1))


def test_memory_of_the_machine():
    with (
        pytest.raises(UserError, match=r"^stage coco: out of memory; lower data.batch_size; or lower data.num_workers"),
        explained("stage coco", LESS),
    ):
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "-- Process 1 terminated with the following error:\ntorch.OutOfMemoryError: CUDA out of memory. Tried to"
        ),
    ],
)
def test_memory_of_a_device(error):
    with (
        pytest.raises(UserError, match=r"^stage coco: out of device memory; lower data.batch_size \("),
        explained("stage coco", LESS),
    ):
        raise error


def test_an_evaluation_names_its_own_setting():
    with (
        pytest.raises(UserError, match=r"^suite.coco: out of memory; lower data.eval_batch_size"),
        explained("suite.coco", EVALUATION),
    ):
        raise MemoryError


def test_shared_memory():
    error = RuntimeError("DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that")
    with pytest.raises(UserError, match=r"shared memory.*data.num_workers.*--shm-size"), explained("stage coco", LESS):
        raise error


@pytest.mark.parametrize("error", [ValueError("shapes do not match"), RuntimeError("expected scalar type Half")])
def test_what_is_not_known_goes_through(error):
    with pytest.raises(type(error)) as caught, explained("stage coco", LESS):
        raise error
    assert caught.value is error


def test_what_needs_less_memory_is_what_is_not_set_yet():
    cfg = chain_configs(["stage=coco", "trainer.precision=32"])[-1].cfg
    found = less_memory(cfg)
    assert [key in found for key in ("data.batch_size", "micro_batch=N", "precision=bf16-mixed")] == [True] * 3
    assert ("checkpoint_activations=true" in found) == ("checkpoint_activations" in cfg)
    assert "micro_batch=N below 4 (" in less_memory(chain_configs(["stage=coco", "micro_batch=4"])[-1].cfg)
    large = ["stage=coco", "data.batch_size=4096", "trainer=ddp"]
    found = less_memory(chain_configs(large)[-1].cfg)
    assert "objective.itc.tile=256" in found and "trainer.strategy=fsdp_spawn" in found
    found = less_memory(chain_configs(["stage=coco", "data.batch_size=4096", "objective.itc.tile=64"])[-1].cfg)
    assert "tile" not in found and "fsdp" not in found
    found = less_memory(chain_configs([*large, "objective.itc.queue_size=8192", "trainer.precision=16-mixed"])[-1].cfg)
    assert "tile" not in found and "fsdp" not in found  # both would be refused
    found = less_memory(chain_configs(["stage=imagenet", "trainer.precision=bf16-mixed"])[-1].cfg)
    assert found.startswith("lower data.batch_size") and "precision" not in found and "micro_batch" not in found


def test_an_error_that_the_user_can_mend_in_a_spawned_process():
    class ProcessRaisedException(Exception):
        pass

    text = '-- Process 1 terminated:\nTraceback\n  File "x"\ncrossvit.errors.UserError: data.batch_size=3: odd\n'
    with pytest.raises(UserError, match=r"^stage coco: data.batch_size=3: odd$"), explained("stage coco", LESS):
        raise ProcessRaisedException(text)


def test_a_training_that_diverged_is_told_apart(monkeypatch):
    class ProcessRaisedException(Exception):
        pass

    text = "-- Process 1 terminated\nTraceback\ncrossvit.errors.Diverged: the loss is not finite in step 3"
    for error in (Diverged("the loss is not finite in step 3"), ProcessRaisedException(text)):
        with (
            pytest.raises(Diverged, match=r"^stage vlr: the loss is not finite in step 3$"),
            explained("stage vlr", ""),
        ):
            raise error
    with pytest.raises(UserError) as told, explained("stage vlr", ""):
        raise UserError("too little memory")
    assert not isinstance(told.value, Diverged)

    def worker_died():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("crossvit.stages.failures._report_workers_once", worker_died)
    with pytest.raises(UserError, match="worker was killed") as told, explained("stage vlr", ""):
        raise Diverged("the loss is not finite in step 3")
    assert not isinstance(told.value, Diverged)
