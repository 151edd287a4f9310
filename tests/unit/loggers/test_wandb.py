"""wandb without a key, without a prompt, with one id."""

import pytest

from crossvit.errors import UserError
from crossvit.loggers.wandb import wandb_logger


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))


def test_offline_without_a_key(no_key, tmp_path):
    assert wandb_logger(tmp_path, "coco")._offline is True


def test_online_with_a_key_or_when_told(no_key, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb_logger(tmp_path, "a", offline=False)._offline is False
    assert wandb_logger(tmp_path, "b")._offline is False
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_logger(tmp_path, "c")._offline is True


def test_online_with_a_key_in_netrc(no_key, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 000\n")
    (home / ".netrc").chmod(0o600)
    assert wandb_logger(tmp_path, "a")._offline is False


def test_nothing_that_wandb_warns_of(no_key, tmp_path, capfd):
    wandb_logger(tmp_path, "coco").experiment.finish()
    assert "WARNING" not in capfd.readouterr().err


def test_a_resumed_run_keeps_its_id(no_key, tmp_path):
    first = wandb_logger(tmp_path, "coco").version
    assert wandb_logger(tmp_path, "coco").version == first
    assert wandb_logger(tmp_path, "vlr").version != first


def test_online_without_a_key_is_refused(no_key, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no key.*WANDB_API_KEY"):
        wandb_logger(tmp_path, "a", offline=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="no key"):
        wandb_logger(tmp_path, "b")
