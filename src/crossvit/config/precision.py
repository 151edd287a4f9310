"""`trainer.precision=auto`: the numbers that this machine is fast with.

Decided before the fingerprint is taken, so that a result says with which precision it was made.
"""

import platform
import re
from pathlib import Path

from omegaconf import DictConfig

CPU_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")  # of x86, and of ARM


def resolve_precision(cfg: DictConfig) -> None:
    """Replaces `auto` by bf16-mixed, 16-mixed or 32, and `32-true` by its other name 32, in a config that may be written to."""
    given = str((cfg.get("trainer") or {}).get("precision"))
    if given == "auto":
        cfg.trainer.precision = fastest(str(cfg.trainer.accelerator))
    elif given == "32-true":
        cfg.trainer.precision = 32


def fastest(accelerator: str) -> str | int:
    """bf16-mixed where the device multiplies bf16 in hardware, 16-mixed on other NVIDIA GPUs, else 32."""
    if accelerator != "cpu":
        import torch

        if torch.cuda.is_available():
            return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "16-mixed"
        if accelerator != "auto" or torch.backends.mps.is_available():
            return 32
    return "bf16-mixed" if cpu_multiplies_bf16() else 32


def cpu_multiplies_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """By what Linux says of the processor; False on another system."""
    if platform.system() != "Linux" or not cpuinfo.is_file():
        return False
    return any(re.search(rf"^(flags|Features)\b.*\b{flag}\b", cpuinfo.read_text(), re.MULTILINE) for flag in CPU_FLAGS)
