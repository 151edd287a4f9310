"""Composing, naming, chaining and checking configs."""

import importlib
import math
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from crossvit.config import chain_configs, check_signatures, compose, storable, validate
from crossvit.config.chain import is_stage_scoped
from crossvit.config.compose import package_file
from crossvit.config.explain import suggest
from crossvit.config.place import config_directory
from crossvit.config.targets import check_own_targets
from crossvit.errors import UserError


def error_of(*overrides: str, primary: str = "train") -> str:
    """The message a user sees for these overrides: one line."""
    with pytest.raises(UserError) as caught:
        chain_configs(list(overrides), primary)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestMisspelt:
    @pytest.mark.parametrize(
        ("override", "named", "meant"),
        [
            ("optimizer.lrr=1", "optimizer.lrr", "'optimizer.lr'"),
            ("model.widht=32", "model.widht", "'model.width'"),
            ("fusoin.width=32", "fusoin.width", "'fusion.width'"),
            ("lr=1", "lr", "'optimizer.lr'"),
            ("patch_encodr=resnet18", "patch_encodr", "'patch_encoder'"),
            ("patch_encoder=resnet8", "patch_encoder=resnet8", "'resnet18'"),
            ("stage=cocoo", "stage=cocoo", "'coco'"),
            ("experiment=real_scrach", "experiment=real_scrach", "'real_scratch'"),
            ("chain.cocco=[]", "chain.cocco", "'chain.coco'"),
            ("trainer.max_epoch=3", "trainer.max_epoch", "'trainer.max_epochs'"),
        ],
    )
    def test_names_the_key_and_suggests_the_right_one(self, override, named, meant):
        message = error_of(override)
        assert named in message
        assert f"Did you mean {meant}?" in message

    def test_a_far_off_option_lists_what_there_is(self):
        assert "Choose one of: constant, cosine." in error_of("scheduler=zzz")

    def test_a_value_that_cannot_be_read(self):
        message = error_of("trainer.max_epochs=a=b")
        assert "'trainer.max_epochs=a=b'" in message
        assert "quote" in message

    def test_a_group_set_to_null(self):
        assert error_of("seed=1", "experiment=null").startswith("experiment=null:")

    def test_an_unknown_primary(self):
        with pytest.raises(UserError, match="no primary config 'trian'. Did you mean 'train'?"):
            compose([], "trian")

    def test_suggest_is_silent_where_nothing_is_known(self):
        assert suggest("x", []) == ""


@pytest.fixture(scope="module")
def vlr():
    return compose()


def with_value(cfg, override: str):
    """A copy of a composed config with one value replaced: quicker than composing again."""
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist([override]))


class TestValues:
    @pytest.mark.parametrize(
        "override",
        [
            "seed=-1",
            "seed=1.5",
            "scenes.preset=esay",
            "optimizer.lr=0",
            "optimizer.lr=fast",
            "optimizer.weight_decay=-1",
            "data.batch_size=0",
            "optimizer.lr=true",
            "data.num_workers=-1",
            "data.max_bad_fraction=1.5",
            "trainer.precision=64",
            "trainer.precision=16-true",
            "compile=fast",
            "checkpoint_activations=1",
            "channels_last=always",
            "trainer.max_epochs=0",
            "trainer.limit_train_batches=1.5",
            "trainer.accumulate_grad_batches=0",
            "trainer.gradient_clip_val=-1",
            "stage.task=cross_model",
            "stage.mode=maximum",
            "model.width=63",
            "objective.itc.weight=-1",
            "scheduler.warmup=2",
            "transfer.stages=medical",
            "transfer.seeds=3",
            "transfer.seeds=[0,-1]",
            "vision.depth=-1",
            "fusion.depth=half",
            "model.grid=[4,100]",
            "trainer.deterministic=maybe",
            "objective.itm.generated_negatives=never",  # of a class of this project: by its signature
            "objective.adversarial.through_cnn=never",
            "data.flip=1",
        ],
    )
    def test_a_bad_value_names_its_key(self, vlr, override):
        with pytest.raises(UserError) as caught:
            validate(with_value(vlr, override))
        assert str(caught.value).startswith(override.partition("=")[0])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "override",
        [
            "seed=0",
            "optimizer.lr=1e-5",
            "optimizer.weight_decay=0",
            "trainer.precision=32",
            "trainer.precision=bf16-mixed",
            "trainer.precision=bf16-true",
            "trainer.precision=16-mixed",
            "compile=max-autotune",
            "compile=null",
            "channels_last=true",
            "trainer.limit_train_batches=1.0",
            "trainer.limit_train_batches=3",
            "trainer.gradient_clip_val=null",
            "scheduler.warmup=0",
            "transfer.stages=[medical]",
            "transfer.seeds=[0,1]",
        ],
    )
    def test_a_good_value_passes(self, vlr, override):
        validate(with_value(vlr, override))

    def test_a_near_miss_is_suggested(self):
        assert "Did you mean 'cross_modal'?" in error_of("stage.task=cross_model")

    def test_every_weight_zero(self):
        assert "every weight is 0" in error_of("objective.itc.weight=0", "objective.itm.weight=0")

    @pytest.mark.parametrize("length", ["null", "-1"])
    def test_a_length_that_nothing_bounds(self, length):
        found = error_of(f"trainer.max_epochs={length}", "trainer.max_time=00:00:00:03")
        assert found.startswith("trainer.max_epochs and trainer.max_steps: give one of them a number > 0")
        chain_configs([f"trainer.max_epochs={length}", "trainer.max_steps=3"])

    @pytest.mark.parametrize("devices", ["2", '"2"', '"0,1"', '"-1"', "[0,1]", "auto"])
    def test_several_devices_however_they_are_said(self, devices):
        found = error_of("trainer.accelerator=gpu", f"trainer.devices={devices}")
        assert "would start the whole command once for each device" in found

    @pytest.mark.parametrize("devices", ["1", '"1"', "[3]"])
    def test_one_device_however_it_is_said(self, devices):
        chain_configs(["trainer.accelerator=gpu", f"trainer.devices={devices}"])

    @pytest.mark.parametrize("strategy", ["fsdp", "model_parallel", "deepspeed_stage_2"])
    def test_weights_are_sharded_in_one_way(self, strategy):
        found = error_of(f"trainer.strategy={strategy}", "trainer.devices=1")
        assert found.startswith(f"trainer.strategy={strategy}") and "fsdp_spawn" in found

    def test_shards_scale_no_loss(self):
        found = error_of("trainer=fsdp_sim", "trainer.precision=16-mixed")
        assert found.startswith("trainer.precision=16-mixed") and "bf16-mixed" in found

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                "{evaluator:{_target_:crossvit.evaluation.matching.Matching}}",
                r"suite.mine: has no data \(/data@mine.data",
            ),
            (
                "{data:{_target_:crossvit.data.coco.COCODataModule}}",
                "suite.mine: has no evaluator .suite.mine.evaluator._target_",
            ),
            ("coco", "suite.mine: has no data"),
        ],
        ids=["no data", "no evaluator", "a word"],
    )
    def test_half_a_test_of_the_suite_is_named(self, entry, message):
        with pytest.raises(UserError, match=message):
            validate(compose([f"+suite.mine={entry}"], "pipeline"))

    def test_a_key_without_a_value_is_named(self):
        assert error_of("text_encoder=huggingface").startswith("text_encoder.folder: has no value yet")

    def test_an_interpolation_to_nowhere_is_named(self):
        message = error_of("optimizer.lr=${modle.width}")
        assert "optimizer" in message
        assert "'modle.width' not found" in message

    def test_an_interpolation_is_an_override_like_any_other(self):
        for link in chain_configs(["seed=${scenes.seed}", "scenes.seed=4"]):
            assert link.cfg.seed == 4

    def test_an_ancestors_error_names_its_stage(self):
        assert error_of("chain.coco=['trainer.max_epochs=0']").startswith("stage coco: trainer.max_epochs=0")
        assert error_of("trainer.max_epochs=0").startswith("trainer.max_epochs=0")


class TestTargets:
    @staticmethod
    def check(target: str, **keywords) -> None:
        check_own_targets({"node": {"_target_": target, "_partial_": True, **keywords}})

    def test_a_wrong_keyword_under_partial(self):
        self.check("crossvit.tasks.schedules.cosine", warmup=0.1)
        with pytest.raises(UserError, match="node.warmpu: .* takes no 'warmpu'. Did you mean 'warmup'?"):
            self.check("crossvit.tasks.schedules.cosine", warmpu=0.1)

    def test_keywords_of_a_base_class(self):
        self.check("crossvit.objectives.contrastive.ContrastiveLoss", weight=1)
        with pytest.raises(UserError, match="weigth"):
            self.check("crossvit.objectives.contrastive.ContrastiveLoss", weigth=1)

    def test_keywords_that_go_on_to_a_base_class(self):
        self.check("crossvit.tasks.patch_encoder.PatchEncoderTask", lr_scale={}, num_classes=3)
        with pytest.raises(UserError, match="lr_scales"):
            self.check("crossvit.tasks.patch_encoder.PatchEncoderTask", lr_scales={})

    def test_a_class_method(self):
        self.check("crossvit.models.text_encoder.TextEncoder.for_tokenizer", width=8, tokenizer=None)
        with pytest.raises(UserError, match="widht"):
            self.check("crossvit.models.text_encoder.TextEncoder.for_tokenizer", widht=8)
        with pytest.raises(UserError, match="has no 'TextEncoder.for_tokeniser'"):
            self.check("crossvit.models.text_encoder.TextEncoder.for_tokeniser")

    def test_a_class_that_is_not_there(self):
        with pytest.raises(UserError, match="Did you mean 'ContrastiveLoss'?"):
            self.check("crossvit.objectives.contrastive.ContrastivLoss")
        with pytest.raises(UserError, match="there is no module crossvit.objectivs"):
            self.check("crossvit.objectivs.contrastive.ContrastiveLoss")

    def test_nodes_inside_lists(self):
        with pytest.raises(UserError, match=r"a\[1\].floo"):
            check_own_targets({"a": [1, {"_target_": "crossvit.tasks.schedules.cosine", "floo": 0}]})

    def test_foreign_targets(self):
        node = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1.0}
        check_signatures(OmegaConf.create({"optimizer": node}))
        with pytest.raises(UserError, match="optimizer.amsgrd: torch.optim.AdamW takes no 'amsgrd'"):
            check_signatures(OmegaConf.create({"optimizer": {**node, "amsgrd": True}}))
        with pytest.raises(UserError, match="cannot be imported"):
            check_signatures(OmegaConf.create({"optimizer": {"_target_": "torch.optim.AdamX"}}))

    def test_own_class_on_a_foreign_base(self):
        node = {"_target_": "crossvit.callbacks.checkpoint.StageCheckpoint", "every_n_epochs": 1}
        check_own_targets({"checkpoint": node})
        with pytest.raises(UserError, match="Did you mean 'every_n_epochs'?"):
            check_own_targets({"checkpoint": {**node, "every_n_epoch": 1}})


class TestRunName:
    @staticmethod
    def name(*overrides: str) -> str:
        return compose(list(overrides)).run_name

    def test_says_what_is_trained(self):
        assert self.name() == "vlr-conv_stem-seed0"
        assert self.name("stage=coco", "seed=3", "patch_encoder=resnet18") == "coco-resnet18-seed3"

    def test_the_same_settings_give_the_same_name(self):
        first = self.name("optimizer.lr=1e-4", "fusion=late")
        assert first == self.name("fusion=late", "optimizer.lr=1e-4")
        assert first == self.name("fusion=late", "optimizer.lr=1", "optimizer.lr=1e-4")
        assert first != self.name("optimizer.lr=1e-5", "fusion=late")

    def test_paths_and_loggers_leave_it(self):
        assert self.name("paths.runs=/elsewhere", "logger=csv") == self.name()

    def test_it_can_be_given(self):
        cfg = compose(["run_name=mine", "paths.runs=out"])
        assert cfg.paths.run_dir == "out/train/mine"


class TestChain:
    def test_root_first(self):
        chain = chain_configs([])
        assert [(link.option, link.name) for link in chain] == [(n, n) for n in ("imagenet", "coco", "vlr")]
        assert [link.cfg.stage.task for link in chain] == ["patch_encoder", "cross_modal", "cross_modal"]

    def test_real_data_has_options_of_its_own_and_the_same_names(self):
        chain = chain_configs(["stage=real_vlr"])
        assert [(link.option, link.name) for link in chain] == [
            ("real_imagenet", "imagenet"),
            ("real_coco", "coco"),
            ("real_vlr", "vlr"),
        ]

    def test_another_parent(self):
        chain = chain_configs(["stage=coco", "stage.parent=imagenet_vit"])
        assert [link.option for link in chain] == ["imagenet", "imagenet_vit", "coco"]
        assert [link.option for link in chain_configs(["stage.parent=null"])] == ["vlr"]

    def test_overrides_of_one_stage_stay_with_the_stage_that_is_trained(self):
        imagenet, coco, vlr = (
            link.cfg
            for link in chain_configs(
                ["optimizer.lr=0.5", "data.batch_size=7", "trainer.max_epochs=3", "scheduler=constant", "objective=itm"]
            )
        )
        plain = {link.name: link.cfg for link in chain_configs([])}
        assert (vlr.optimizer.lr, vlr.data.batch_size, vlr.trainer.max_epochs) == (0.5, 7, 3)
        assert imagenet == OmegaConf.merge(plain["imagenet"], {"run_name": vlr.run_name})
        assert coco == OmegaConf.merge(plain["coco"], {"run_name": vlr.run_name})

    def test_the_model_the_seed_and_the_device_hold_for_all(self):
        overrides = [
            "patch_encoder=resnet34",
            "seed=5",
            "trainer=ddp_sim",
            "trainer.precision=bf16-mixed",
            "model.width=32",
        ]
        overrides += ["scenes.preset=hard", "data.num_workers=3", "debug=fast"]
        for link in chain_configs(overrides):
            cfg = link.cfg
            assert cfg.patch_encoder.backbone.name == "resnet34"
            assert (cfg.seed, cfg.model.width, cfg.scenes.preset, cfg.data.num_workers) == (5, 32, "hard", 3)
            assert (cfg.trainer.strategy, cfg.trainer.devices, cfg.trainer.precision) == ("ddp_spawn", 2, "bf16-mixed")
            assert cfg.trainer.limit_train_batches == 2

    def test_chain_reaches_one_stage(self):
        chain = {
            link.name: link.cfg
            for link in chain_configs(["chain.coco=['optimizer.lr=0.5','data.batch_size=9']", "optimizer.lr=0.25"])
        }
        assert chain["coco"].optimizer.lr == 0.5
        assert chain["coco"].data.batch_size == 9
        assert chain["vlr"].optimizer.lr == 0.25
        assert chain["imagenet"].optimizer.lr not in (0.5, 0.25)

    def test_chain_wins_over_the_same_key_given_without_it(self):
        chain = chain_configs(["chain.vlr=['objective=itm','optimizer.lr=2']", "objective=itc", "optimizer.lr=1"])
        assert chain[-1].cfg.objective.itm.weight == 1
        assert chain[-1].cfg.optimizer.lr == 2

    def test_chain_refuses_anything_else(self):
        assert "give a list of overrides" in error_of("chain.coco=3")
        assert error_of("chain.coco=['optimizer.lrr=3']").startswith("chain.coco: no key 'optimizer.lrr'")

    def test_all_stages_share_the_run_directory(self):
        directories = {
            link.cfg.paths.run_dir for link in chain_configs(["optimizer.lr=0.5", "chain.vlr=['data.batch_size=3']"])
        }
        assert len(directories) == 1

    def test_a_circle(self):
        assert error_of("stage.parent=vlr") == "stage.parent: the chain returns to 'vlr' (vlr -> vlr)"

    def test_an_unknown_parent(self):
        assert "Did you mean 'coco'?" in error_of("stage.parent=coccoo")

    def test_a_primary_without_a_stage(self):
        with pytest.raises(UserError, match="no stage"):
            chain_configs([], "data")

    def test_configs_are_read_only(self):
        for link in chain_configs([]):
            with pytest.raises(ReadonlyConfigError):
                link.cfg.seed = 3

    @pytest.mark.parametrize(
        "override",
        [
            "stage=coco",
            "stage.monitor=val/loss",
            "data=coco",
            "data.batch_size=3",
            "+data.new=3",
            "~callbacks.early_stopping",
            "objective.itc.weight=2",
            "optimizer.algorithm.eps=1e-8",
            "scheduler=constant",
            "trainer.max_steps=3",
            "++trainer.limit_train_batches=2",
        ],
    )
    def test_scoped_to_a_stage(self, override):
        assert is_stage_scoped(override)

    @pytest.mark.parametrize(
        "override",
        [
            "model=tiny",
            "patch_encoder=resnet18",
            "seed=1",
            "paths.data=x",
            "trainer=cpu",
            "trainer.precision=32",
            "trainer.devices=2",
            "logger=csv",
            "data.num_workers=3",
            "scenes.preset=easy",
            "debug=fast",
            "experiment=demo",
        ],
    )
    def test_shared_by_all_stages(self, override):
        assert not is_stage_scoped(override)

    def test_one_start_of_hydra_composes_them_once(self):
        found = []
        for _ in range(2):
            with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
                found += [chain_configs(["stage=imagenet", "seed=3"])[-1].cfg for _ in range(2)]
                assert chain_configs(["stage=imagenet", "seed=4"])[-1].cfg.seed == 4
        assert found[0] is found[1] and found[2] is found[3] and found[1] is not found[2]
        assert chain_configs(["stage=imagenet"])[-1].cfg is not chain_configs(["stage=imagenet"])[-1].cfg


class TestArm:
    def test_changes_the_stage_asked_for_alone(self):
        *parents, target = chain_configs(["arm=random_negatives"])
        assert target.cfg.objective.itm.hard_negatives == "random"
        plain = {link.name: link.cfg for link in chain_configs([])}
        for parent in parents:
            assert parent.cfg == OmegaConf.merge(plain[parent.name], {"run_name": target.cfg.run_name})

    def test_a_part_of_the_model_that_it_chooses_holds_for_the_whole_chain(self):
        *parents, target = chain_configs(["arm=pair_classifier"])
        assert {link.cfg.fusion._target_.rpartition(".")[2] for link in (*parents, target)} == {"NoFusion"}
        assert target.cfg.objective.relation.weight == 1
        assert parents[-1].cfg.objective.itc.weight == 1
        assert "relation" not in parents[0].cfg.objective

    def test_the_command_line_wins_over_it(self):
        for link in chain_configs(["arm=late", "fusion=merged"]):
            assert link.cfg.fusion._target_.endswith("MergedFusion")

    def test_it_wins_over_an_experiment(self):
        for link in chain_configs(["arm=late", "experiment=smoke"]):
            assert link.cfg.fusion._target_.endswith("LateFusion")

    def test_a_skipped_stage(self):
        names = {
            arm: [link.name for link in chain_configs([f"arm={arm}"])]
            for arm in ("vlr_only", "imagenet_vlr", "coco_vlr")
        }
        assert names == {"vlr_only": ["vlr"], "imagenet_vlr": ["imagenet", "vlr"], "coco_vlr": ["coco", "vlr"]}

    def test_its_file_has_its_name(self, tmp_path):
        assert error_of("arm=late", "arm.name=early") == (
            "arm=late: its arm.name is 'early'; write arm.name: late in conf/arm/late.yaml"
        )

    def test_what_the_recipe_says_of_a_stage_before_is_not_lost(self):
        message = error_of("stage=vlr_medium", "chain.vlr=['optimizer.lr=1e-4']")
        assert "chain.vlr: the recipe asks for trainer.max_epochs=12 there" in message
        *_, vlr, _ = chain_configs(["stage=vlr_medium", "chain.vlr=['trainer.max_epochs=3']"])
        assert vlr.cfg.trainer.max_epochs == 3  # said otherwise

    @pytest.mark.parametrize("debug", ["fast", "profile"])
    def test_the_lengths_of_debug_hold_for_every_stage(self, debug):
        assert {link.cfg.trainer.max_epochs for link in chain_configs(["stage=vlr_medium", f"debug={debug}"])} == {1}

    def test_what_it_says_of_a_stage_before_is_not_lost(self):
        asked = "chain.coco=['optimizer.lr=1e-3']"
        assert "chain.coco: arm coco_vlr asks for stage.parent=null there" in error_of("arm=coco_vlr", asked)
        coco, _ = chain_configs(["arm=coco_vlr", "chain.coco=['optimizer.lr=1e-3','stage.parent=null']"])
        assert coco.name == "coco" and coco.cfg.optimizer.lr == 1e-3
        assert chain_configs(["arm=late", asked])[1].cfg.optimizer.lr == 1e-3

    def test_length(self):
        def lengths(*overrides):
            return {
                link.name: (link.cfg.trainer.max_epochs, link.cfg.trainer.max_steps)
                for link in chain_configs(overrides)
            }

        plain = lengths()
        assert lengths("arm=longer_2") == plain | {"vlr": (2 * plain["vlr"][0], -1)}
        assert lengths("arm.length=1.01")["vlr"] == (plain["vlr"][0] + 1, -1)  # whole epochs, rounded up
        longer = math.ceil(1.2 * plain["vlr"][0])
        assert lengths("arm.length=1.2", "trainer.max_steps=10")["vlr"] == (longer, 12)  # either may be what ends it
        assert error_of("arm.length=0") == "arm.length=0: must be a number > 0"


def test_validate_accepts_a_config_without_a_chain():
    validate(compose(["scenes.preset=hard"], "data"))


def test_a_file_inside_a_package_is_found_and_a_missing_package_is_named():
    cfg = compose(["text_encoder=huggingface", "text_encoder.folder=${package_file:crossvit,models}"])
    assert Path(cfg.text_encoder.folder).is_dir()
    for place, message in (
        ("no_such_package,models", "needs the package no-such-package, which is not installed: pip install no-such"),
        ("crossvit,no_such_file", "the installed package crossvit has no no_such_file"),
    ):
        with pytest.raises(UserError, match=f"^(text_encoder|tokenizer).folder: {message}"):
            validate(compose(["text_encoder=huggingface", f"text_encoder.folder=${{package_file:{place}}}"]))


def test_a_stored_config_finds_the_files_of_a_package_wherever_it_lies(tmp_path, monkeypatch):
    for place in ("here", "there"):
        (tmp_path / place / "some_encoder" / "model").mkdir(parents=True)
        (tmp_path / place / "some_encoder" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "here")
    cfg = compose(["text_encoder=huggingface", "text_encoder.folder=${package_file:some_encoder,model}"])
    stored = storable(cfg)
    assert str(tmp_path / "here") not in stored
    assert OmegaConf.create(stored).tokenizer.folder == str(tmp_path / "here" / "some_encoder" / "model")
    monkeypatch.syspath_prepend(tmp_path / "there")
    importlib.invalidate_caches()
    assert OmegaConf.create(stored).tokenizer.folder == str(tmp_path / "there" / "some_encoder" / "model")
    cfg = compose(["text_encoder=huggingface", "text_encoder.folder=/elsewhere"])
    assert storable(cfg) == OmegaConf.to_yaml(cfg, resolve=True)


def test_a_package_is_not_imported_to_find_its_files(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with pytest.raises(UserError, match="'this.module' is not the name of a package"):
        package_file("this.module", "file")
    assert "this" not in sys.modules
