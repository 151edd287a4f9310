"""The chain of stages: fingerprints, the store of finished ones, and the hand-over of weights."""
