"""`trainer.precision=auto`: what this machine is fast with, decided before the fingerprint is taken."""

import pytest
import torch

from crossvit.config import chain_configs, compose
from crossvit.config import precision as module
from crossvit.config.precision import cpu_multiplies_bf16, fastest
from crossvit.stages.fingerprint import what_matters

XEON = "flags\t\t: fpu avx512f avx512_bf16 amx_tile\n"


@pytest.fixture
def machine(monkeypatch):
    """Sets what the machine is said to have: a GPU's compute capability or None, whether the CPU multiplies bf16."""

    def has(capability: tuple[int, int] | None, bf16: bool) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(module, "cpu_multiplies_bf16", lambda: bf16)

    return has


@pytest.mark.parametrize(
    ("accelerator", "capability", "bf16", "expected"),
    [
        ("cpu", None, True, "bf16-mixed"),
        ("cpu", None, False, 32),
        ("cpu", (9, 0), False, 32),  # the GPU is not asked
        ("auto", (9, 0), False, "bf16-mixed"),
        ("gpu", (8, 0), False, "bf16-mixed"),
        ("gpu", (7, 5), True, "16-mixed"),
        ("auto", None, True, "bf16-mixed"),
        ("auto", None, False, 32),
        ("gpu", None, True, 32),  # the trainer says that there is none
    ],
)
def test_by_device(machine, accelerator, capability, bf16, expected):
    machine(capability, bf16)
    assert fastest(accelerator) == expected


def test_one_precision_has_one_name():
    plain, other = (chain_configs([f"trainer.precision={name}"])[-1].cfg for name in ("32", "32-true"))
    assert what_matters(plain) == what_matters(other)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (XEON, True),
        ("flags : fpu avx2 avx512f\n", False),
        ("Features\t: fp asimd bf16\n", True),  # ARM
        ("model name : bf16 cpu\nflags : avx\n", False),
    ],
)
def test_what_linux_says_of_the_processor(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_multiplies_bf16(tmp_path / "cpuinfo") is expected
    assert not cpu_multiplies_bf16(tmp_path / "nowhere")
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    assert not cpu_multiplies_bf16(tmp_path / "cpuinfo")


def test_a_result_says_with_which_precision_it_was_made(machine):
    machine(None, True)
    overrides = ["stage=coco", "stage.parent=null", "trainer=cpu"]
    auto, given, plain = (
        chain_configs([*overrides, *more])[-1].cfg
        for more in (["trainer.precision=auto"], ["trainer.precision=bf16-mixed"], [])
    )
    assert auto.trainer.precision == "bf16-mixed"
    assert what_matters(auto) == what_matters(given) != what_matters(plain)
    machine(None, False)
    assert what_matters(chain_configs([*overrides, "trainer.precision=auto"])[-1].cfg) == what_matters(plain)
    assert compose(["trainer.precision=auto"]).trainer.precision == "auto"  # what the user has written
