"""The chain on the smallest corpus: what is trained, handed over, restored, tested and loaded."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import crossvit
from crossvit.commands.table import present
from crossvit.config import compose
from crossvit.errors import UserError
from crossvit.models.crossvit import CrossViT
from crossvit.models.weights import read_state_dict
from crossvit.stages import chain as module
from crossvit.stages import evaluating
from crossvit.stages.build import build_model, build_task
from crossvit.stages.chain import describe, hand_over, open_data, run_chain
from crossvit.stages.restore import restore_model, stored_config
from crossvit.stages.store import StageStore, StoredStage

SMOKE = ["experiment=smoke", "logger=none", "callbacks=quiet"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def links(root):
    return run_chain([*SMOKE, f"paths.root={root}"])


@pytest.fixture
def stages(links) -> dict[str, StoredStage]:
    return {link.config.name: link.stored for link in links}


@pytest.fixture
def copy(stages, tmp_path) -> Path:
    """A stage directory to damage."""
    return Path(shutil.copytree(stages["vlr"].path, tmp_path / "stage"))


class TestRunChain:
    def test_a_task_says_what_its_validation_logs(self, links):
        for link in links:
            data = open_data(link.config)
            task = build_task(link.config.cfg, num_classes=len(getattr(data, "classes", ())) or None)
            logged = {name for name in link.stored.provenance["metrics"] if name.startswith("val/")}
            assert set(task.validation_figures(data)) == logged != set()

    def test_the_stages_in_order(self, links, root):
        assert [link.config.name for link in links] == ["imagenet", "coco", "vlr"]
        assert all(link.trained for link in links)
        assert [link.stored.provenance["parent"] for link in links] == [
            None,
            links[0].stored.fingerprint,
            links[1].stored.fingerprint,
        ]
        assert {path.name for path in (root / "runs" / "stages").glob("[!.]*")} == {
            link.stored.fingerprint for link in links
        }
        assert not list((root / "runs" / "stages").glob(".partial-*"))

    def test_what_each_stage_has_trained(self, stages):
        towers = {"patch_encoder", "vision", "text_encoder", "itc_image", "itc_text", "logit_scale"}
        trained = {name: set(stage.provenance["trained_modules"]) for name, stage in stages.items()}
        assert trained["imagenet"] == {"patch_encoder", "classifier"}
        assert trained["coco"] == towers | {"classifier"}
        assert trained["vlr"] == towers | {"classifier", "fusion", "itm"}

    def test_the_provenance(self, stages):
        record = stages["coco"].provenance
        assert record["data"]["dataset"] == "COCODataModule"
        assert record["data"]["splits"]["train"]["samples"] == 32
        assert record["steps"] == 2  # 32 pairs in batches of 16
        assert 0 <= record["metrics"]["val/t2i/acc@1"] <= 1

    def test_again_takes_everything_and_trains_nothing(self, links, root, monkeypatch):
        monkeypatch.setattr(module, "train_stage", lambda *_: pytest.fail("a stage was trained again"))
        again = run_chain([*SMOKE, f"paths.root={root}"])
        assert [link.stored for link in again] == [link.stored for link in links]
        assert not any(link.trained for link in again)
        assert describe(again).count("taken from the store") == 3
        assert "val/accuracy" in describe(again).splitlines()[2]

    def test_the_data_of_all_stages_are_checked_before_the_first_trains(self, root, monkeypatch):
        monkeypatch.setattr(module, "train_stage", lambda *_: pytest.fail("training began"))
        with pytest.raises(UserError, match=r"stage vlr: data.root=.*nowhere is not a folder"):
            run_chain([*SMOKE, f"paths.root={root}", "seed=7", "data.root=nowhere"])

    def test_a_launcher_that_starts_several_processes_is_refused(self, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(UserError, match="start one process"):
            run_chain(SMOKE)


class TestHandOver:
    @pytest.fixture
    def task(self, stages):
        torch.manual_seed(9)
        return build_task(stored_config(stages["coco"].path))

    def test_the_backbone_alone_goes_on_from_imagenet(self, stages, task, caplog):
        before = {name: value.clone() for name, value in task.network.state_dict().items()}
        weights = read_state_dict(stages["imagenet"].weights)
        with caplog.at_level(logging.INFO, "crossvit"):
            hand_over(stages["imagenet"], task.network)
        for name, value in task.network.state_dict().items():
            handed = name.startswith("patch_encoder.backbone.")
            assert torch.equal(value, weights[name] if handed else before[name]), name
        assert "from imagenet: 9 tensors loaded" in caplog.text
        assert "patch_encoder.proj.weight" in caplog.text  # named among what is fresh

    def test_everything_goes_on_from_coco(self, stages, task):
        hand_over(stages["coco"], task.network)
        weights = read_state_dict(stages["coco"].weights)
        assert all(torch.equal(value, weights[name]) for name, value in task.network.state_dict().items())

    def test_vlr_began_with_the_weights_of_coco(self, stages):
        """What vlr does not train is as coco has left it."""
        coco, vlr = (read_state_dict(stages[name].weights) for name in ("coco", "vlr"))
        assert set(coco) == set(vlr)
        assert torch.equal(coco["relation.0.weight"], vlr["relation.0.weight"])
        assert not torch.equal(coco["itc_text.weight"], vlr["itc_text.weight"])

    @pytest.mark.parametrize("overrides", [["model.width=32"], ["model.fusion_depth=1"], ["fusion=none"]])
    def test_what_does_not_fit_is_an_error_and_changes_nothing(self, stages, overrides):
        network = build_model(compose(["experiment=smoke", *overrides]))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(UserError, match="these weights do not fit the model"):
            hand_over(stages["coco"], network)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_another_fusion_may_follow_imagenet(self, stages):
        hand_over(stages["imagenet"], build_model(compose(["experiment=smoke", "fusion=none"])))


class TestRestore:
    def test_the_weights_are_those_of_the_store(self, stages):
        model, weights = restore_model(stages["vlr"].path, stored_config(stages["vlr"].path))
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())

    def test_what_was_never_trained_is_as_the_seed_gives_it(self, stages):
        path = stages["imagenet"].path
        torch.manual_seed(1)
        first, _ = restore_model(path, stored_config(path))
        torch.manual_seed(2)
        second, _ = restore_model(path, stored_config(path))
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())

    def test_files_the_network_began_with_are_not_asked_for(self, copy):
        cfg = OmegaConf.load(copy / "config.yaml")
        OmegaConf.update(cfg, "patch_encoder.backbone.checkpoint", "/gone.pth", force_add=True)
        OmegaConf.update(cfg, "text_encoder.pretrained", "openai", force_add=True)
        OmegaConf.save(cfg, copy / "config.yaml")
        cfg = stored_config(copy)
        assert cfg.patch_encoder.backbone.checkpoint is None
        assert cfg.text_encoder.pretrained is None

    def test_files_of_a_package_are_looked_up_where_the_stage_is_loaded(self, copy):
        gone = "${package_file:no_such_package,gone.pth}"
        cfg = OmegaConf.load(copy / "config.yaml")
        OmegaConf.update(cfg, "patch_encoder.backbone.checkpoint", gone, force_add=True)
        OmegaConf.update(cfg, "text_encoder.folder", "${package_file:crossvit,models}", force_add=True)
        OmegaConf.save(cfg, copy / "config.yaml")
        OmegaConf.clear_resolver("package_file")  # as in a process that has composed nothing
        cfg = stored_config(copy)
        assert cfg.patch_encoder.backbone.checkpoint is None
        assert Path(cfg.text_encoder.folder).is_dir()
        cfg.text_encoder.folder = gone
        OmegaConf.save(cfg, copy / "config.yaml")
        with pytest.raises(UserError, match=r"config.yaml: needs the package no-such-package"):
            stored_config(copy)


class TestEvaluate:
    @pytest.fixture
    def arguments(self, root):
        cfg = compose([*SMOKE, f"paths.root={root}", "~suite.vsr_medium"], "pipeline")
        return cfg.suite, cfg.paths

    def test_asked_again_it_reads_what_it_kept(self, stages, arguments, monkeypatch):
        cells = evaluating.evaluate_stages([stages["vlr"]], *arguments)
        assert {"vqcmi", "vqcmi_fused", "vlr", "vlr_compositional", "twins", "blind_text"} <= {c.task for c in cells}
        assert "classification" not in {cell.task for cell in cells}
        assert {(c.stage, c.backbone, c.seed) for c in cells} == {("vlr", "CrossViT (ConvStem)", 0)}
        for cell in cells:
            assert 0 <= cell.low <= cell.value <= cell.high <= 1
        kept = sorted((stages["vlr"].path / "evaluations").iterdir())
        monkeypatch.setattr(evaluating, "load_subject", lambda *_: pytest.fail("measured again"))
        assert evaluating.evaluate_stages([stages["vlr"]], *arguments) == cells
        assert sorted((stages["vlr"].path / "evaluations").iterdir()) == kept
        assert StageStore(stages["vlr"].path.parent).get(stages["vlr"].fingerprint) is not None

    def test_another_measurement_is_made(self, stages, arguments, root):
        def cells(*overrides):
            cfg = compose([*SMOKE, f"paths.root={root}", "~suite.vsr_medium", *overrides], "pipeline")
            return evaluating.evaluate_stages([stages["coco"]], cfg.suite, cfg.paths)

        count = {c.candidates for c in cells("suite.coco.evaluator.candidates=4") if c.task == "vqcmi"}
        assert count == {4}
        assert {c.candidates for c in cells("suite.coco.evaluator.candidates=6") if c.task == "vqcmi"} == {6}

    def test_the_full_suite(self, stages, root, monkeypatch, tmp_path):
        attacks = [f"suite.robustness_{space}=null" for space in ("text", "patch", "pixel")]  # minutes
        cfg = compose([*SMOKE, f"paths.root={root}", "suite=full", "~suite.vsr_medium", *attacks], "pipeline")
        cells = evaluating.evaluate_stages([stages["vlr"]], cfg.suite, cfg.paths)
        found = {cell.task for cell in cells}
        assert {"vqcmi_n_way_fused", "zero_shot", "linear_probe", "knn", "quads_fused", "twins_blind"} <= found
        assert {cell.candidates for cell in cells if cell.task == "vqcmi_n_way"} == {16}
        assert {cell.metric for cell in cells if cell.chance is None} == {"ECE", "ceiling@16"}
        decision = json.loads((stages["vlr"].path / "evaluations" / "decision-calibration.json").read_text())
        assert set(decision["scores"]) == {"dual", "fused"} and decision["fitted_on"] == "dev"
        assert set(decision["data"]["splits"]) == {"dev", "test"}
        curves = evaluating.reliability_curves([stages["vlr"]], cells)
        queries = {cell.task: cell.queries for cell in cells if cell.metric == "ECE"}
        rows = {task: sum(one.rows for one in lines["VLR"]) for task, lines in curves.items()}
        assert rows == queries and set(rows) == {"calibration", "calibration_fused"}
        assert evaluating.reliability_curves([stages["vlr"]], []) == {}  # kept there, and no part of this table
        present(cells, tmp_path, curves)
        assert {path.name for path in (tmp_path / "plots").iterdir()} == {"table.png", "reliability.png"}
        fitted = crossvit.load_decision(stages["vlr"].path, "dual")
        assert fitted._asdict() == decision["scores"]["dual"]
        with pytest.raises(UserError, match="no decision for score 'cosine'"):
            crossvit.load_decision(stages["vlr"].path, "cosine")
        with pytest.raises(UserError, match="decision-mine.json is not there: crossvit evaluate run="):
            crossvit.load_decision(stages["vlr"].path, task="mine")
        monkeypatch.setattr(evaluating, "load_subject", lambda *_: pytest.fail("measured again"))
        assert evaluating.evaluate_stages([stages["vlr"]], cfg.suite, cfg.paths) == cells

    def test_a_split_that_is_only_learnt_from_counts_as_data(self, stages, root, tmp_path):
        """The probe reads the training pictures: with one more of them it is another measurement."""
        copy = tmp_path / "imagenet"
        shutil.copytree(root / "data" / "scenes" / "smoke" / "easy" / "imagenet", copy)
        cfg = compose([*SMOKE, f"paths.root={root}", "suite=full", f"suite.probe.data.root={copy}"], "pipeline")
        kept = stages["coco"].path / "evaluations"

        def count() -> int:
            suite = OmegaConf.create({"probe": OmegaConf.to_container(cfg.suite.probe, resolve=True)})
            evaluating.evaluate_stages([stages["coco"]], suite, cfg.paths)
            return len(list(kept.iterdir()))

        first = count()
        assert count() == first
        picture = next(copy.glob("train/*/*.JPEG"))
        shutil.copy(picture, picture.with_name("more.JPEG"))
        assert count() == first + 1

    def test_the_sum_of_both_scores_is_a_measurement_of_its_own(self, stages, root):
        cfg = compose([*SMOKE, f"paths.root={root}", "suite.coco.evaluator.with_dual=true"], "pipeline")
        suite = OmegaConf.masked_copy(cfg.suite, ["coco"])
        tasks = {cell.task for cell in evaluating.evaluate_stages([stages["vlr"]], suite, cfg.paths)}
        assert tasks == {"vqcmi", "vqcmi_fused", "vqcmi_sum"}

    def test_a_head_that_no_stage_has_trained_gives_no_figure(self, stages, arguments):
        tasks = {cell.task for cell in evaluating.evaluate_stages([stages["coco"]], *arguments)}
        assert {"vqcmi", "twins"} <= tasks
        assert not tasks & {"vlr", "vlr_compositional", "vqcmi_fused", "twins_fused", "blind_text"}
        tasks = {cell.task for cell in evaluating.evaluate_stages([stages["imagenet"]], *arguments)}
        assert "classification" in tasks


class TestLoad:
    def test_a_stage(self, stages):
        model, preprocess, tokenizer = crossvit.load(stages["vlr"].path)
        assert isinstance(model, CrossViT)
        assert not model.training
        image = preprocess(Image.new("RGB", (50, 40), "red"))
        assert image.shape == (3, 32, 32)
        tokens = tokenizer(["the red circle is left of the blue square", "a circle"])
        with torch.no_grad():
            assert model.match(image.expand(2, -1, -1, -1), tokens).shape == (2,)

    def test_a_stage_that_was_trained_on_a_mixture(self, stages, tmp_path):
        """Its pictures are fitted as those of the source that it is evaluated on."""
        copy = shutil.copytree(stages["vlr"].path, tmp_path / "stage")
        cfg = OmegaConf.load(copy / "config.yaml")
        source = cfg.data
        shared = {key: source[key] for key in ("image_size", "mean", "std")}
        cfg.data = shared | {"eval_source": "vsr", "sources": {"coco": None, "vsr": {"weight": None, "data": source}}}
        (copy / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
        picture = Image.new("RGB", (50, 40), "red")
        assert torch.equal(crossvit.load(copy)[1](picture), crossvit.load(stages["vlr"].path)[1](picture))

    def test_a_run_stands_for_its_last_stage(self, stages, root, tmp_path):
        chain = [{"path": str(stages[name].path)} for name in ("imagenet", "vlr")]
        (tmp_path / "chain.json").write_text(json.dumps(chain))
        model, _, _ = crossvit.load(str(tmp_path))
        assert torch.equal(model.itm.weight, read_state_dict(stages["vlr"].weights)["itm.weight"])

    @pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file"])
    def test_nonsense(self, tmp_path, what):
        path = {"nothing": tmp_path / "gone", "an empty folder": tmp_path, "a file": tmp_path / "file"}[what]
        if what == "a file":
            path.write_text("hello")
        with pytest.raises(UserError, match="neither a stage .* nor a run"):
            crossvit.load(path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '[{"path": 3}]', "\x00"])
    def test_a_damaged_run(self, tmp_path, text):
        (tmp_path / "chain.json").write_text(text)
        with pytest.raises(UserError, match=r"chain.json is damaged"):
            crossvit.load(tmp_path)

    def test_a_run_whose_stages_are_gone(self, tmp_path):
        (tmp_path / "chain.json").write_text(json.dumps([{"path": "../stages/abc"}]))
        with pytest.raises(UserError, match=r"which is not there"):
            crossvit.load(tmp_path)

    @pytest.mark.parametrize("file", ["weights.safetensors", "config.yaml", "provenance.json"])
    @pytest.mark.parametrize("how", ["emptied", "cut", "binary", "a list", "removed"])
    def test_a_damaged_stage(self, copy, file, how):
        path = copy / file
        content = {"emptied": b"", "cut": path.read_bytes()[:100], "binary": b"\xff\xfe\x00" * 50, "a list": b"[1, 2]"}
        path.unlink() if how == "removed" else path.write_bytes(content[how])
        with pytest.raises(UserError) as caught:
            crossvit.load(copy)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "key", ["patch_encoder", "vision", "text_encoder", "fusion", "tokenizer", "patch_encoder.backbone"]
    )
    @pytest.mark.parametrize("target", ["os.system", "torch.os.system", "subprocess.run"])
    def test_a_strangers_config_runs_nothing(self, copy, key, target, tmp_path):
        mark = tmp_path / "owned"
        cfg = OmegaConf.load(copy / "config.yaml")
        OmegaConf.update(cfg, key, {"_target_": target, "_args_": [f"touch {mark}"]}, merge=False)
        OmegaConf.save(cfg, copy / "config.yaml")
        with pytest.raises(UserError, match=f"_target_={target}"):
            crossvit.load(copy)
        assert not mark.exists()

    def test_weights_are_never_a_pickle(self, copy, tmp_path):
        class Evil:
            def __reduce__(self):
                return Path.touch, (tmp_path / "owned",)

        torch.save({"itm.weight": Evil()}, copy / "weights.safetensors")
        with pytest.raises(UserError, match="damaged"):
            crossvit.load(copy)
        assert not (tmp_path / "owned").exists()


def classify(model, preprocess, tokenizer) -> torch.Tensor:
    """A zero-shot script as open_clip's README has it."""
    image = preprocess(Image.new("RGB", (40, 60), (200, 30, 30))).unsqueeze(0)
    text = tokenizer(["a red circle", "a blue square", "a green triangle"])
    with torch.no_grad(), torch.autocast("cpu"):
        image_features = model.encode_image(image)
        text_features = model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        probabilities = (model.logit_scale.exp() * image_features @ text_features.T).softmax(dim=-1)
        again = model.encode_image(image, normalize=True)
        out = model(image, text)
    assert torch.allclose(again.float(), image_features.float(), atol=2e-2)
    features = (out["image_features"], out["text_features"]) if isinstance(out, dict) else out[:2]
    assert features[0].shape == image_features.shape and features[1].shape == text_features.shape
    return probabilities


@pytest.mark.parametrize("which", ["open_clip", "crossvit"])
def test_a_script_changes_only_in_how_the_model_is_loaded(which, stages, tmp_path):
    if which == "open_clip":
        import open_clip

        config = {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
        (tmp_path / "small-for-a-test.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path)
        model, _, preprocess = open_clip.create_model_and_transforms("small-for-a-test")
        model.eval()
        tokenizer = open_clip.get_tokenizer("small-for-a-test")
    else:
        model, preprocess, tokenizer = crossvit.load(stages["coco"].path)
    probabilities = classify(model, preprocess, tokenizer)
    assert probabilities.shape == (1, 3)
    assert probabilities.float().sum().item() == pytest.approx(1, abs=1e-2)
