"""What importing lightning leaves out, and that it is all there is left out."""

import subprocess
import sys

from crossvit.quick_start import LEFT_OUT

IMPORT = """
import gc, sys
from crossvit.quick_start import import_lightning
import_lightning()
import lightning, torchmetrics
from torchmetrics.utilities.imports import _MATPLOTLIB_AVAILABLE, _TORCHVISION_AVAILABLE
from lightning_utilities.core.imports import RequirementCache, package_available
print([name for name in %r if name in sys.modules])
print(bool(_MATPLOTLIB_AVAILABLE), bool(_TORCHVISION_AVAILABLE), gc.isenabled(), gc.get_freeze_count() > 0)
import matplotlib
print(bool(RequirementCache("matplotlib")), package_available("matplotlib"), bool(torchmetrics.MeanMetric()))
"""


def test_a_fresh_process_leaves_them_out_and_finds_them_afterwards():
    done = subprocess.run([sys.executable, "-c", IMPORT % (LEFT_OUT,)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "False True True True", "True True True"], done.stderr


def test_what_is_imported_already_stays_as_it_is(monkeypatch):
    import gc

    from crossvit import quick_start

    monkeypatch.setattr(quick_start, "left_out", lambda: 1 / 0)
    monkeypatch.setitem(sys.modules, "lightning", sys)
    frozen = gc.get_freeze_count()
    quick_start.import_lightning()
    assert gc.get_freeze_count() == frozen
