"""Datasets in tar shards of WebDataset: written, indexed, read from disk or streamed."""
