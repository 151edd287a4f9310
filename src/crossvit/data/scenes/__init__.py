"""The embedded corpus: generated scenes, written in the layouts of ImageNet, COCO captions, VSR and NLVR2.

`generate` writes it; `oracle` tells from the symbols whether a caption is true of a scene. Imports numpy and PIL,
never torch.
"""

from crossvit.data.scenes.corpus import generate
from crossvit.data.scenes.grammar import VOCABULARY, oracle, parse, realise
from crossvit.data.scenes.graph import Obj, Scene
from crossvit.data.scenes.logic import holds, holds_pair
from crossvit.data.scenes.manifest import Manifest, read_manifest
from crossvit.data.scenes.presets import DEFAULT_SIZES, PRESETS, SMOKE_SIZES
from crossvit.data.scenes.render import render

__all__ = [
    "DEFAULT_SIZES",
    "PRESETS",
    "SMOKE_SIZES",
    "VOCABULARY",
    "Manifest",
    "Obj",
    "Scene",
    "generate",
    "holds",
    "holds_pair",
    "oracle",
    "parse",
    "read_manifest",
    "realise",
    "render",
]
