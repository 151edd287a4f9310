"""One thread for each test process: several of them run side by side."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking through it for garbage, again and again, costs a tenth of the time."""
    gc.collect()
    gc.freeze()
