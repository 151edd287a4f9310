"""What changes a stage's fingerprint and what does not."""

import copy
import json
from functools import cache

import pytest
import yaml
from omegaconf import OmegaConf

from crossvit.config import chain_configs, config_directory
from crossvit.help import config_groups
from crossvit.stages import fingerprint as module
from crossvit.stages.fingerprint import fingerprint, what_matters

GROUPS = config_groups(config_directory())
MANIFEST = {"train": 10, "sha256": "ab"}


@cache
def composed(*overrides: str):
    return chain_configs([*overrides, "stage.parent=null"])[-1].cfg


def mark(*overrides: str, stage: str = "vlr", parent: str | None = "0" * 16, manifest: dict = MANIFEST) -> str:
    """The fingerprint with these overrides; plain values are set in a copy, which is quicker than composing again."""
    groups = [override for override in overrides if override.partition("=")[0] in GROUPS]
    cfg = copy.deepcopy(composed(f"stage={stage}", *groups))
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    for key, _, value in (override.partition("=") for override in overrides if override not in groups):
        above = key.rpartition(".")[0]
        assert key in cfg if not above else OmegaConf.select(cfg, above) is not None, key
        OmegaConf.update(cfg, key, yaml.safe_load(value))
    return fingerprint(cfg, parent, manifest)


@pytest.fixture(scope="module")
def base() -> str:
    return mark()


def test_is_16_hex_digits_and_stable(base):
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert base == mark()


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1"],
        ["model.width=32"],
        ["model.embed_dim=32"],
        ["patch_encoder=resnet18"],
        ["fusion=late"],
        ["fusion.dropout=0.1"],
        ["text_encoder.pooling=mean"],
        ["tokenizer.context_length=16"],
        ["tokenizer.truncation_side=left"],
        ["data.batch_size=32"],
        ["data.flip=true"],
        ["data=scenes_coco"],
        ["objective.itm.weight=0.5"],
        ["objective.itm.hard_negatives=false"],
        ["optimizer.lr=0.1"],
        ["optimizer.algorithm.eps=1e-8"],
        ["optimizer.lr_scale={fusion: 5.0}"],
        ["optimizer=sgd"],
        ["scheduler=constant"],
        ["scheduler.floor=0.1"],
        ["trainer.max_epochs=17"],
        ["trainer.max_steps=17"],
        ["trainer.precision=bf16-mixed"],
        ["trainer.precision=bf16-true"],
        ["trainer.accumulate_grad_batches=2"],
        ["trainer.gradient_clip_val=null"],
        ["trainer.limit_train_batches=2"],
        ["trainer.limit_train_batches=1"],
        ["callbacks=early_stopping"],
        ["callbacks.gate.threshold=0.9"],
    ],
    ids=lambda o: " ".join(o),
)
def test_changes_with_what_changes_the_result(base, overrides):
    assert mark(*overrides) != base


@pytest.mark.parametrize(
    "overrides",
    [
        ["paths.scenes=/elsewhere"],
        ["paths.runs=/elsewhere"],
        ["run_name=mine"],
        ["logger=none"],
        ["callbacks=quiet"],
        ["callbacks.checkpoint.every_n_epochs=3"],
        ["data.num_workers=7"],
        ["data.eval_batch_size=7"],
        ["data.max_bad_fraction=0.5"],
        ["data.cache=false"],
        ["trainer=ddp_sim"],
        ["trainer.devices=4"],
        ["trainer=fsdp_sim"],
        ["trainer=ddp"],
        ["compile=default"],
        ["checkpoint_activations=true"],
        ["channels_last=true"],
        ["trainer.log_every_n_steps=1"],
        ["trainer.enable_progress_bar=false"],
        ["model.name=other"],
        ["chain.coco=['optimizer.lr=1']"],
        ["objective.relation.weight=0"],
        ["optimizer.algorithm.fused=false"],
        ["callbacks.checkpoint.every_n_train_steps=5"],
        ["callbacks.gate.min_epochs=5"],  # of a gate without a threshold
    ],
    ids=lambda o: " ".join(o),
)
def test_stays_with_what_does_not(base, overrides):
    assert mark(*overrides) == base


def test_the_parent_and_the_data_count(base):
    assert mark(parent="1" * 16) != base
    assert mark(parent=None) != base
    assert mark(manifest={**MANIFEST, "train": 11}) != base
    assert mark(manifest=dict(reversed(MANIFEST.items()))) == base


def test_where_labels_lie_does_not_count():
    films = ("data=mimic_cxr", "objective=itc")
    assert mark(*films, "data.labels_file=mine.csv") == mark(*films) != mark(*films, "data.section=findings")


def test_settings_of_a_term_that_is_not_computed_do_not_count():
    off = ["objective=itc"]
    assert mark(*off) == mark(*off, "objective.itm.hard_negatives=false")


@pytest.mark.parametrize("overrides", [["fusion=late"], ["text_encoder.dropout=0.1"], ["model.embed_dim=32"]])
def test_a_stage_on_images_is_shared_by_models_that_differ_elsewhere(overrides):
    assert mark(*overrides, stage="imagenet") == mark(stage="imagenet")


def test_a_stage_on_images_counts_its_own_parts():
    assert mark("patch_encoder=resnet18", stage="imagenet") != mark(stage="imagenet")
    assert mark("vision.dropout=0.1", stage="imagenet") == mark(stage="imagenet")
    assert mark("vision.dropout=0.1", stage="imagenet_vit") != mark(stage="imagenet_vit")


def test_a_weight_file_counts_by_content(tmp_path):
    def with_file(path) -> str:
        return mark("patch_encoder=resnet18", f"patch_encoder.backbone.checkpoint={path}")

    first, copy, other = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    first.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    assert with_file(first) == with_file(copy) != with_file(other)


def test_a_folder_counts_by_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_bytes(b"w")
    assert module.hash_path(tmp_path / "a") == module.hash_path(tmp_path / "b")
    (tmp_path / "b" / "deep" / "weights").rename(tmp_path / "b" / "deep" / "other")
    assert module.hash_path(tmp_path / "a") != module.hash_path(tmp_path / "b")


def test_a_folder_counts_by_its_files_however_it_is_spelt(tmp_path, monkeypatch):
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "weights").write_bytes(b"w")
    monkeypatch.chdir(tmp_path)
    known = {"folder": {"sha256": module.hash_path(tmp_path / "minilm")}}
    for spelling in ("minilm", "./minilm", str(tmp_path / "minilm")):
        assert module._with_file_contents({"folder": spelling}) == known
    assert module._with_file_contents({"name": "minilm"}) == {"name": "minilm"}


def test_a_new_code_version_trains_again(base, monkeypatch):
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert mark() != base


def test_no_place_on_this_machine_is_part_of_it(tmp_path):
    cfg = chain_configs([f"paths.root={tmp_path}"])[-1].cfg
    assert str(tmp_path) not in json.dumps(what_matters(cfg))


def test_a_key_that_came_later_changes_nothing_at_rest():
    """What was stored before the key was there keeps its name."""
    cfg = copy.deepcopy(composed("stage=coco"))
    before = fingerprint(cfg, None, MANIFEST)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    assert cfg.data.captions == "one" and cfg.tokenizer.truncation_side == "right"
    del cfg.data["captions"], cfg.tokenizer["truncation_side"]
    assert fingerprint(cfg, None, MANIFEST) == before
    cfg.data.captions = "every"
    assert fingerprint(cfg, None, MANIFEST) != before


def test_sources_of_a_mixture():
    base = mark("data=scenes_mixture", stage="vlr")
    for place in ("data.sources.coco.data.root=elsewhere", "data.sources.vsr.data.num_workers=7"):
        assert mark("data=scenes_mixture", place) == base
    for change in ("data.sources.coco.weight=2", "data.sources.coco.data.flip=true", "data.samples=50"):
        assert mark("data=scenes_mixture", change) != base
