"""The notebook runs from its first cell to its last on a run of this session."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.documents import ROOT


@pytest.mark.slow
def test_explore(smoke, monkeypatch):
    root, _ = smoke
    monkeypatch.setenv("CROSSVIT_RUN", str(root / "runs" / "smoke"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(ROOT / "notebooks" / "explore.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit the notebook without its outputs"
    client = NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    client.execute()
    drawn = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 3  # retrieval, pairing over the picture, pairing by layer
