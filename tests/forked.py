"""Processes that are forked from one server which has imported the slow libraries already."""

import multiprocessing

PRELOADED = ["torch", "torchmetrics", "lightning", "matplotlib.pyplot", "hydra", "tests.small"]

forkserver = multiprocessing.get_context("forkserver")
forkserver.set_forkserver_preload(PRELOADED)
