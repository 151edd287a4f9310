"""One thread for each test process: several of them run side by side."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
