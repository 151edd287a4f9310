"""Weights by name: read a file without running code from it, copy what fits, and say what did not."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossvit.errors import UserError
from crossvit.models.visual_transformer import resize_positions

SHOWN = 5


class WeightReport(NamedTuple):
    """Names by what became of them. A name whose shape does not fit is both missing and unexpected."""

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def summary(self) -> str:
        """One paragraph."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        for title in ("resized", "missing", "unexpected"):
            names = getattr(self, title)
            parts.append(f"{len(names)} {title}" + (f" ({_first(names)})" if names else ""))
        return ", ".join(parts)


def transfer(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> WeightReport:
    """Copies `state_dict` into `module` by name, resizing position tables, and reports.

    prefix: only names that start with it are considered, and it is cut off.
    allow_missing, allow_unexpected: what may stay at the module's own values, and what may be left over: names, the
        dotted beginnings of names (`head` stands for `head.weight`), or patterns with `*`. BatchNorm's step counters
        may always be either.

    Raises UserError naming the first names that nothing explains; the module is then unchanged.
    """
    given = {name[len(prefix) :]: value for name, value in state_dict.items() if name.startswith(prefix)}
    own = module.state_dict()
    fitting, resized, mismatched = {}, [], {}
    for name, value in given.items():
        if name not in own:
            continue
        if value.shape == own[name].shape:
            fitting[name] = value
            continue
        table = _resize_table(name, value, own[name])
        if table is None:
            mismatched[name] = f"{name} has shape {tuple(value.shape)}, expected {tuple(own[name].shape)}"
        else:
            fitting[name] = table
            resized.append(name)
    missing = tuple(name for name in own if name not in fitting)
    unexpected = tuple(name for name in given if name not in fitting)
    counters = ("*num_batches_tracked",)
    lacking = [mismatched.get(n, n) for n in missing if not _explained(n, (*allow_missing, *counters))]
    left_over = [n for n in unexpected if n not in mismatched and not _explained(n, (*allow_unexpected, *counters))]
    faults = [
        f"{len(names)} {title}: {_first(names)}"
        for title, names in (("missing", lacking), ("unexpected", left_over))
        if names
    ]
    if faults:
        raise UserError(
            f"these weights do not fit the model ({len(fitting)} of {len(own)} tensors do); " + "; ".join(faults)
        )
    module.load_state_dict(fitting, strict=False)
    loaded = tuple(name for name in fitting if name not in resized)
    return WeightReport(loaded, tuple(resized), missing, unexpected)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a .safetensors, .pth, .pt or .ckpt file, on the CPU. No code from the file is run.

    Checkpoints that wrap them under `state_dict` or `model` are unwrapped. Raises UserError where the file is missing
    or damaged, or holds something other than named tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: damaged, or not a file of plain tensors ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise UserError(f"{path}: holds no tensors by name; give a state dict")
    return dict(content)


def _resize_table(name: str, value: Tensor, own: Tensor) -> Tensor | None:
    """A position table in the module's size: bicubic for (1, d, rows, columns), linear for (M, d). None where it is
    none of these."""
    if "position" not in name.rsplit(".", 1)[-1] or value.dim() != own.dim():
        return None
    if value.dim() == 4 and value.shape[:2] == own.shape[:2]:
        return resize_positions(value, tuple(own.shape[-2:]))
    if value.dim() == 2 and value.shape[1] == own.shape[1]:
        return F.interpolate(value.float().T[None], size=own.shape[0], mode="linear", align_corners=True)[0].T.to(
            value.dtype
        )
    return None


def _explained(name: str, allowed: Iterable[str]) -> bool:
    return any(name == item or name.startswith(item.rstrip(".") + ".") or fnmatch(name, item) for item in allowed)


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
