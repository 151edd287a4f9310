"""wandb without a key, without a prompt, with one id."""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import wandb

from crossvit.errors import UserError
from crossvit.loggers import close
from crossvit.loggers import wandb as module
from crossvit.loggers.wandb import wandb_logger
from crossvit.stages.failures import explained


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


class Answers(BaseHTTPRequestHandler):
    """Every request gets the server's one answer."""

    def do_GET(self):
        self.send_response(self.server.code)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, no_key):
    """wandb's address is one on loopback: `server(500)` answers so, "silent" takes connections, "closed" does not."""
    started = []

    def start(answer) -> None:
        if isinstance(answer, int):
            server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
            server.code = answer
            threading.Thread(target=server.serve_forever, daemon=True).start()
            started.append(server.shutdown)
            port = server.server_port
        else:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            if answer == "silent":
                listener.listen()
                started.append(listener.close)
            else:
                listener.close()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)

    yield start
    for end in started:
        end()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(200, None), (401, None), (404, None), (500, "it says 500"), ("silent", "timed out"), ("closed", "refused")],
)
def test_does_a_server_answer(server, answer, reason, monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    server(answer)
    found = module._unreachable(os.environ["WANDB_BASE_URL"], tries=1)
    assert found is None if reason is None else reason in found


def test_training_goes_on_offline_where_no_server_answers(server, tmp_path, caplog):
    server("closed")
    logger = wandb_logger(tmp_path, "coco")
    logger.log_metrics({"a": 1.0}, step=0)
    assert logger.experiment.offline
    assert "wandb's server does not answer" in caplog.text and f"{tmp_path}/wandb/offline-run-*" in caplog.text
    close([logger])
    (run,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    found = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert run.stat().st_size > 0 and b"0123456789" * 4 not in found


def test_who_asks_for_online_is_told(server, tmp_path):
    """No fallback; the wait is bounded."""
    server(401)
    wandb.teardown()  # it keeps the environment that it began with
    logger = wandb_logger(tmp_path, "coco", offline=False, init_timeout=5)
    with (
        pytest.raises(UserError, match=r"^stage coco: logger\.wandb: .*logger\.wandb\.offline=true"),
        explained("stage coco", ""),
    ):
        logger.log_metrics({"a": 1.0}, step=0)
    wandb.teardown()
