"""What a user sees when something fails in the middle, and what is never seen."""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.test_training import finished

PROC = Path("/proc")


def children(process: int) -> list[tuple[int, str]]:
    """The processes that a process has started, with their command lines."""
    found = [int(pid) for pid in (PROC / f"{process}/task/{process}/children").read_text().split()]
    return [(pid, (PROC / f"{pid}/cmdline").read_text().replace("\0", " ")) for pid in found]


MARK = "mark3r-no-one-may-see"


def test_no_secret_is_written_anywhere(vlr, job, tmp_path, monkeypatch):
    """A key of the environment, a key-like override, a password in an address and in a command."""
    monkeypatch.setenv("SOME_API_KEY", MARK)
    done = job(
        *vlr,
        "logger=csv_wandb",
        "trainer.max_epochs=1",
        "callbacks.checkpoint.every_n_epochs=1",
        "paths.flickr8k=/x/${oc.env:SOME_API_KEY}",
        f"+paths.password={MARK}2",
        f"paths.openi='https://me:{MARK}3@host/x?X-Amz-Signature={MARK}4'",
        f"paths.aro='pipe:curl -u me:{MARK}5 https://host/x.tar'",
    )
    assert done.code == 0, done.err
    (stage,) = finished(tmp_path)
    assert MARK not in (stage / "config.yaml").read_text() and "REDACTED" in (stage / "config.yaml").read_text()
    assert json.loads((stage / "provenance.json").read_text())["command"].count("REDACTED") == 4
    assert list(tmp_path.rglob("*.wandb")) and (stage / "checkpoints" / "last.ckpt").is_file()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [str(path) for path in files if MARK.encode() in path.read_bytes()] == []
    assert MARK not in done.out + done.err


def test_no_secret_is_shown_in_an_error(vlr, job):
    done = job(*vlr, f"data.root=https://me:{MARK}@host/x")
    assert done.code == 2
    assert MARK not in done.out + done.err and "me:REDACTED@" in done.err


def test_a_loss_that_is_not_finite(vlr, job, tmp_path):
    done = job(*vlr, "optimizer.lr=1e30", "trainer.gradient_clip_val=null", "logger=none")
    assert done.code == 2 and "Traceback" not in done.err
    found = re.search(
        r"stage vlr: the loss is not finite in step (\d+) .*: .*itm is nan.*; all of it in (\S+)\.\n", done.err
    )
    assert found, done.err
    line = json.loads(Path(found[2]).read_text().splitlines()[0])
    assert line["step"] == int(found[1]) and len(line["samples"]) > 1
    assert finished(tmp_path) == []


@pytest.mark.slow
def test_a_worker_that_is_killed(vlr, start, tmp_path):
    """As the system does where memory runs out."""
    first = start(*vlr, "data.num_workers=1", "trainer.max_epochs=500", "callbacks.checkpoint.every_n_epochs=1")
    first.wait_for(lambda: list(tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")))
    for worker, command in children(first.process.pid):
        if "resource_tracker" not in command:
            os.kill(worker, signal.SIGKILL)
    done = first.wait()
    assert done.code == 2, done.err
    assert re.search(r"crossvit: error: stage vlr: a data worker (was killed|has ended).*data\.num_workers", done.err)
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(vlr, start, tmp_path):
    first = start(*vlr, "trainer=ddp_sim", "trainer.max_epochs=500", "callbacks.checkpoint.every_n_epochs=1")
    first.wait_for(lambda: list(tmp_path.glob("runs/stages/.partial-*/checkpoints/last.ckpt")), seconds=180)
    ranks = [pid for pid, command in children(first.process.pid) if "spawn_main" in command]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    done = first.wait()
    assert done.code == 2, done.err
    assert "stage vlr: a training process" in done.err and "goes on from the last checkpoint" in done.err
    assert not any((PROC / str(rank)).exists() for rank in ranks)


@pytest.fixture
def full_disk(tmp_path):
    """A folder that holds 200 kB."""
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def leave(folder: Path, free: int) -> None:
    """Fills a small disk up to `free` bytes."""
    size = shutil.disk_usage(folder).free - free
    (folder / "filler").write_bytes(bytes(size))
    assert shutil.disk_usage(folder).free == free


def test_a_disk_that_is_full_under_wandb_is_told_before_training(vlr, job, tmp_path, full_disk):
    leave(full_disk, 0)
    done = job(*vlr, "logger=csv_wandb", f"logger.wandb.save_dir={full_disk}", "trainer.max_epochs=1")
    assert done.code == 2
    assert f"logger.wandb.save_dir={full_disk}: No space left on device; make room there" in done.err
    assert finished(tmp_path) == []


@pytest.mark.slow
def test_a_disk_that_fills_under_wandb_does_not_end_the_training(vlr, job, tmp_path, full_disk):
    leave(full_disk, 20 * 1024)
    done = job(
        *vlr,
        "logger=csv_wandb",
        f"logger.wandb.save_dir={full_disk}",
        "trainer.max_epochs=8",
        "trainer.log_every_n_steps=1",
    )
    assert done.code == 0, done.err
    assert shutil.disk_usage(full_disk).free < 4096
    (stage,) = finished(tmp_path)
    assert json.loads((stage / "provenance.json").read_text())["steps"] == 40
