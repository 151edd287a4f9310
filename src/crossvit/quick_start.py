"""Importing lightning in half of its time.

torchmetrics, which lightning imports, imports transformers, scipy and matplotlib where they are installed, for figures that no command asks
for (BERTScore, FID, `Metric.plot`): two seconds of every start. Python's garbage collector walks through all that has been imported again
and again, and once more at the end: another two.
"""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

LEFT_OUT = ("transformers", "scipy", "matplotlib")


def import_lightning() -> None:
    """Imports it where it is not there yet, torchmetrics without LEFT_OUT; objects that live from then on are collected as ever."""
    if "lightning" in sys.modules:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        with left_out():
            import lightning  # noqa: F401
        gc.freeze()
    finally:
        if collects:
            gc.enable()
    atexit.register(gc.freeze)  # the memory goes back with the process


@contextmanager
def left_out() -> Iterator[None]:
    """Modules imported in here that ask lightning_utilities what is installed do not see LEFT_OUT."""
    from lightning_utilities.core import imports

    installed = imports.package_available

    class Requirement(imports.RequirementCache):
        def __bool__(self) -> bool:
            if str(self.requirement).startswith(LEFT_OUT):
                self.available, self.message = False, "left out by crossvit.quick_start"
            return super().__bool__()

    def package_available(name: str) -> bool:
        return name not in LEFT_OUT and installed(name)

    with patch.multiple(imports, RequirementCache=Requirement, package_available=package_available):
        yield
