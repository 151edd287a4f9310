"""Checkpoints lie in the stage's own directory under fixed names, whole, and are looked through before one is gone on from."""

import errno
import logging
import random
import shutil

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from crossvit.callbacks import checkpoint
from crossvit.callbacks.checkpoint import StageCheckpoint, WholeFile, damage, keep_last_only, newest_checkpoint
from crossvit.errors import UserError


class Line(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, _):
        return self.layer(batch).pow(2).mean()

    def validation_step(self, batch, _):
        self.log("val/loss", self.layer(batch).pow(2).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(directory, epochs: int, ckpt_path=None, keep: int = 2, callback=None, **settings) -> L.Trainer:
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        default_root_dir=str(directory),
        logger=CSVLogger(str(directory / "logs")),
        callbacks=[callback or StageCheckpoint(keep=keep)],
        plugins=[WholeFile()],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    loader = DataLoader(torch.ones(4, 1), batch_size=2)
    trainer.fit(Line(), loader, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


def names(directory) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def steps(directory) -> dict[str, int]:
    folder = directory / "checkpoints"
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_fixed_names_and_so_many_whatever_the_logger(keep, tmp_path):
    fit(tmp_path, 4, keep=keep)
    expected = {"last.ckpt": 8, "last-1.ckpt": 6, "last-2.ckpt": 4}
    assert steps(tmp_path) == dict(list(expected.items())[:keep])
    assert names(tmp_path) == sorted(list(expected)[:keep])


def test_none_at_all_is_refused():
    with pytest.raises(ValueError, match="keep=0 must be at least 1"):
        StageCheckpoint(keep=0)


def test_fewer_than_before_are_kept_where_the_setting_has_changed(tmp_path):
    fit(tmp_path, 4, keep=4)
    fit(tmp_path, 5, keep=2, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert steps(tmp_path) == {"last.ckpt": 10, "last-1.ckpt": 8}


def test_a_resumed_stage_writes_to_the_same_files(tmp_path):
    fit(tmp_path, 1)
    trainer = fit(tmp_path, 3, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    assert trainer.global_step == 6
    assert steps(tmp_path) == {"last.ckpt": 6, "last-1.ckpt": 4}


def test_a_job_killed_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    fit(tmp_path, 1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = last.read_bytes()

    def half(self, trainer, path):
        with open(path, "wb") as file:
            file.write(before[: len(before) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning.pytorch.callbacks.ModelCheckpoint._save_checkpoint", half)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, 3, ckpt_path=str(last))
    assert last.read_bytes() == before
    assert newest_checkpoint(tmp_path) == last


@pytest.mark.parametrize("cut_off_behind", [1, 2, 3])
def test_a_job_killed_between_two_renames_leaves_a_checkpoint(cut_off_behind, tmp_path, monkeypatch):
    fit(tmp_path, 3, keep=3)
    rename, done = checkpoint.os.replace, []

    def cut_off(source, target):
        if len(done) == cut_off_behind:
            raise KeyboardInterrupt
        done.append(rename(source, target))

    monkeypatch.setattr(checkpoint.os, "replace", cut_off)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, 5, keep=3, ckpt_path=str(tmp_path / "checkpoints" / "last.ckpt"))
    monkeypatch.undo()
    found = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert found["global_step"] == (8 if cut_off_behind == 3 else 6)


class Noting(StageCheckpoint):
    """Notes the step of each save, and what had been logged by then."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.saved: list[tuple[int, int]] = []
        self.validations = 0

    def on_validation_end(self, trainer, module) -> None:
        self.validations += 1
        super().on_validation_end(trainer, module)

    def _save_checkpoint(self, trainer, filepath) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.saved.append((trainer.global_step, self.validations))


def test_one_that_is_due_where_validation_follows_is_written_behind_it(tmp_path):
    noting = Noting(every_n_train_steps=1)
    fit(tmp_path, 2, callback=noting)
    assert noting.saved == [(1, 0), (2, 1), (3, 1), (4, 2)]


def test_none_is_written_while_gradients_are_pending(tmp_path):
    noting = Noting(every_n_train_steps=1)
    fit(tmp_path, 2, callback=noting, accumulate_grad_batches=2)
    assert noting.saved == [(1, 1), (2, 2)]


# damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound")
    fit(directory, 2)
    return directory


@pytest.fixture
def copy(sound, tmp_path):
    shutil.copytree(sound / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


def break_(path, how: str) -> None:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "truncated": content[:middle],
            "without its last byte": content[:-1],
            "zeros at the end": content[:middle] + bytes(len(content) - middle),
            "text": b"no checkpoint",
        }[how]
    )


BROKEN = ["empty", "truncated", "without its last byte", "zeros at the end", "text"]


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_last_one_falls_back_to_the_one_before(how, copy, caplog):
    last, older = (copy / "checkpoints" / name for name in ("last.ckpt", "last-1.ckpt"))
    break_(last, how)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(copy) == older
    (record,) = caplog.records
    assert str(last) in record.getMessage() and str(older) in record.getMessage()
    assert fit(copy, 3, ckpt_path=str(older)).global_step == 6
    assert steps(copy) == {"last.ckpt": 6, "last-1.ckpt": 4}  # the one of step 2 has gone its way
    assert newest_checkpoint(copy) == last


@pytest.mark.parametrize("how", BROKEN)
def test_where_all_are_damaged_the_stage_starts_again(how, copy, caplog):
    last, older = (copy / "checkpoints" / name for name in ("last.ckpt", "last-1.ckpt"))
    break_(last, how)
    break_(older, how)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(copy) is None
    (record,) = caplog.records
    assert all(text in record.getMessage() for text in (str(last), str(older), "from its start again"))
    assert names(copy) == ["last-1.ckpt.damaged", "last.ckpt.damaged"]


def test_nothing_there_is_no_damage(tmp_path, caplog):
    assert newest_checkpoint(tmp_path) is None
    assert not caplog.records


def test_any_changed_byte_is_found_or_changes_nothing(copy):
    """300 bytes anywhere in the file, one at a time."""
    path = copy / "checkpoints" / "last.ckpt"
    content, draw, found = path.read_bytes(), random.Random(0), 0
    whole = same(torch.load(path, weights_only=True))
    for _ in range(300):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ draw.randrange(1, 256)]) + content[place + 1 :])
        if damage(path) is None:
            assert same(torch.load(path, weights_only=True)) == whole, place
        else:
            found += 1
    assert found > 50  # the others fall into padding and into times of writing


def same(value):
    """Comparable by ==."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {key: same(v) for key, v in value.items()}
    return [same(v) for v in value] if isinstance(value, list | tuple) else value


def test_weights_alone_are_no_checkpoint_to_go_on_from(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    assert damage(tmp_path / "last.ckpt") == "it lacks global_step, loops"


class Payload:
    """What a stranger's checkpoint may hold."""

    def __reduce__(self):
        return (open, ("/dev/null",))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"state_dict": Payload(), "loops": {}, "global_step": 1}, tmp_path / "last.ckpt")
    assert damage(tmp_path / "last.ckpt") == "it holds more than plain data, and is not loaded"


def test_two_distances_are_one_too_many():
    with pytest.raises(
        UserError, match=r"every_n_train_steps=2 takes the place .* callbacks.checkpoint.every_n_epochs=null"
    ):
        StageCheckpoint(every_n_epochs=1, every_n_train_steps=2)


def test_a_finished_stage_keeps_its_last_alone(copy):
    (copy / "checkpoints" / "last.ckpt.damaged").touch()
    keep_last_only(copy)
    assert names(copy) == ["last.ckpt"]


# no room


class FullDisk:
    """A file that takes 1,000 bytes."""

    def __init__(self, file) -> None:
        self.file = file

    def write(self, data) -> int:
        if self.file.tell() + len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_a_full_disk_ends_it_in_two_lines_and_the_one_before_stays(copy, monkeypatch):
    last = copy / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    write = torch.save
    monkeypatch.setattr(checkpoint.torch, "save", lambda content, file: write(content, FullDisk(file)))
    with pytest.raises(UserError) as error:
        fit(copy, 3, ckpt_path=str(last))
    monkeypatch.undo()
    text = str(error.value)
    assert all(part in text for part in (str(last), "No space left on device", "paths.runs=DIR"))
    assert len(text.splitlines()) == 2
    assert last.read_bytes() == before
    assert names(copy) == ["last-1.ckpt", "last.ckpt"]


def test_one_that_cannot_be_read_back_does_not_count(copy, monkeypatch):
    last = copy / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    write = WholeFile.save_checkpoint

    def flawed(self, content, path, storage_options=None) -> None:
        write(self, content, path)
        break_(path if isinstance(path, checkpoint.Path) else checkpoint.Path(path), "zeros at the end")

    monkeypatch.setattr(WholeFile, "save_checkpoint", flawed)
    with pytest.raises(UserError, match="read back, it is damaged"):
        fit(copy, 3, ckpt_path=str(last))
    assert last.read_bytes() == before
    assert names(copy) == ["last-1.ckpt", "last.ckpt"]
