"""A stage's directory that a stranger has made: it is read, or refused, and nothing in it is run or leads elsewhere."""

import hashlib
import json
import os
import pickle
import shutil
import struct
from itertools import product

import lightning as L
import pytest
import torch
import torch.distributed.elastic.multiprocessing.subprocess_handler  # so that its class can be reached by attributes
import yaml
from omegaconf import OmegaConf

import crossvit
from crossvit.commands.evaluate import stored_stages
from crossvit.config import chain_configs, storable
from crossvit.errors import UserError
from crossvit.models.weights import read_state_dict
from crossvit.stages.build import build_model
from crossvit.stages.evaluating import check_places, evaluate_stages
from crossvit.stages.restore import stored_config
from crossvit.stages.store import StageStore
from tests.watched import Watched, batches

SMALL = ["model.vision_depth=1", "model.text_depth=1", "model.fusion_depth=1"]


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A stage as training leaves it, its weights those of the start."""
    cfg = chain_configs(["stage=vlr", "stage.parent=null", *SMALL])[-1].cfg
    store = StageStore(tmp_path_factory.mktemp("store"))
    with store.claim("0" * 16) as claim:
        record = {"stage": "vlr", "provides": [""], "trained_modules": [], "metrics": {}, "seconds": 0}
        stored = claim.commit(build_model(cfg).state_dict(), storable(cfg), record)
    return stored.path


@pytest.fixture
def stage(honest, tmp_path):
    """A copy to spoil, in a home of its own."""
    return shutil.copytree(honest, tmp_path / "home" / "stage")


@pytest.fixture
def mark(tmp_path):
    """What a payload would make."""
    return tmp_path / "owned"


def spoil(stage, key: str, value) -> None:
    content = yaml.safe_load((stage / "config.yaml").read_text())
    node = content
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    (stage / "config.yaml").write_text(yaml.safe_dump(content))


def untouched(stage, mark) -> None:
    assert not mark.exists()
    assert sorted(path.name for path in stage.parents[1].iterdir()) == ["home"]
    assert [path.name for path in stage.parent.iterdir()] == ["stage"]


def test_an_honest_one_is_loaded(stage):
    model, _, tokenizer = crossvit.load(stage)
    assert model.encode_text(tokenizer(["a red circle"])).shape == (1, 64)


def targets(mark) -> dict[str, dict]:
    """Nodes that would do harm, by what they are."""
    nn = "torch.nn.functional.torch"
    return {
        "a program": {"_target_": "os.system", "_args_": [f"touch {mark}"]},
        "an import of torch": {"_target_": "torch.os.system", "_args_": [f"touch {mark}"]},
        "a class that starts a program": {
            "_target_": f"{nn}.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
            "entrypoint": "touch", "args": [str(mark)], "env": {}, "stdout": None, "stderr": None, "local_rank_id": 0,
        },
        "a pickle": {"_target_": "torch.load", "f": "x", "weights_only": False},
        "a pickle by a class method": {
            "_target_": "lightning.pytorch.LightningModule.load_from_checkpoint",
            "checkpoint_path": "x", "weights_only": False,
        },
        "a pickle by timm": {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": "x"},
        "a class that writes": {"_target_": f"{nn}.utils.tensorboard.SummaryWriter", "log_dir": str(mark)},
        "a file store": {"_target_": f"{nn}.distributed.FileStore", "file_name": str(mark)},
        "a command line": {"_target_": "lightning.pytorch.cli.LightningCLI", "args": ["fit"]},
        "a trainer": {"_target_": "lightning.Trainer", "default_root_dir": str(mark)},
        "a logger": {"_target_": "crossvit.loggers.wandb.wandb_logger", "save_dir": str(mark), "name": "x"},
        "a logger of lightning": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(mark)},
        "a reader that runs commands": {"_target_": "crossvit.data.shards.stream.StreamDataModule", "root": f"pipe:touch {mark}"},
        "a checkpoint writer": {"_target_": "timm.utils.CheckpointSaver", "model": None, "optimizer": None},
        "a model that is fetched": {
            "_target_": "open_clip.model.CustomTextCLIP", "embed_dim": 8, "text_cfg": {"hf_model_name": "stranger/model"},
            "vision_cfg": {"timm_model_name": "hf_hub:stranger/model", "timm_model_pretrained": True},
        },
        "a store": {"_target_": "crossvit.stages.store.StageStore", "root": str(mark)},
    }  # fmt: skip


def everything_somewhere(*places: str) -> list:
    """(place, what): every node at the first place and the first node at every place; the rest of the product is slow."""
    first, *_ = whats = list(targets(""))
    return [
        pytest.param(place, what, marks=[pytest.mark.slow] * (place != places[0] and what != first))
        for place, what in product(places, whats)
    ]


@pytest.mark.parametrize(
    ("place", "what"),
    everything_somewhere("text_encoder", "patch_encoder", "vision", "fusion", "tokenizer", "vision.width"),
)
def test_a_config_that_builds_something_else(stage, mark, what, place):
    spoil(stage, place, targets(mark)[what])
    with pytest.raises(UserError, match=r"_target_=.*(may be built here|cannot be imported)|damaged"):
        crossvit.load(stage)
    untouched(stage, mark)


@pytest.mark.parametrize(("place", "what"), everything_somewhere("optimizer.algorithm", "scheduler", "objective.itm"))
def test_the_task_of_a_stored_config(stage, mark, what, place):
    """An evaluation rebuilds it for its classifier."""
    from crossvit.stages.build import build_task

    spoil(stage, place, targets(mark)[what] | {"weight": 1.0})
    with pytest.raises(UserError, match=r"_target_=.*(may be built here|cannot be imported)"):
        build_task(stored_config(stage))
    untouched(stage, mark)


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:MARKER}",
        "a ${oc.env:MARKER,x} b",
        "${${x}:MARKER}",
        r"\${oc.env:MARKER}",
        "${package_file:torch,${oc.env:MARKER}}",
        "${oc.decode:${oc.env:MARKER}}",
        "${model.name}",
    ],
)
def test_nothing_is_looked_up(stage, monkeypatch, value):
    monkeypatch.setenv("MARKER", "v4lue-of-the-environment")
    spoil(stage, "run_name", value)
    with pytest.raises(UserError, match="is not resolved, and is not looked up") as caught:
        stored_config(stage)
    assert "v4lue" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [r'"\x24{oc.env:MARKER}"', r'{"\x24{oc.env:MARKER}": 1}', r'["\u0024{oc.env:MARKER}"]']
)
def test_nothing_that_yaml_has_spelt_otherwise_is_looked_up(stage, monkeypatch, text):
    monkeypatch.setenv("MARKER", "v4lue-of-the-environment")
    config = stage / "config.yaml"
    config.write_text(config.read_text() + f"\nmore: {text}\n")
    with pytest.raises(UserError, match=r"\$\{oc\.env:MARKER\} is not resolved, and is not looked up"):
        stored_config(stage)


@pytest.mark.parametrize("path", ["../../../../etc/passwd", "/etc/passwd", "nn/../../x"])
def test_a_file_of_a_package_lies_in_it(stage, path):
    spoil(stage, "run_name", f"${{package_file:torch,{path}}}")
    with pytest.raises(UserError, match="the installed package torch has no"):
        stored_config(stage)


def test_yaml_makes_no_objects(stage, mark):
    with (stage / "config.yaml").open("a") as stream:
        stream.write(f"evil: !!python/object/apply:os.system ['touch {mark}']\n")
    with pytest.raises(UserError, match="damaged"):
        crossvit.load(stage)
    untouched(stage, mark)


TIMM = {"_target_": "crossvit.models.timm_backbone.TimmBackbone", "name": "resnet10t"}


@pytest.mark.parametrize(
    "named", [{"pretrained": True}, {"checkpoint": "/etc/hostname"}], ids=lambda named: next(iter(named))
)
def test_initial_weights_are_asked_for_nowhere(stage, mark, named):
    """Not in the places that a config has for them, and not in one that is nested elsewhere."""
    spoil(stage, "patch_encoder.backbone", {"_target_": "torch.nn.Sequential", "_args_": [TIMM | named]})
    spoil(stage, "text_encoder.pretrained", "openai")
    cfg = stored_config(stage)
    (key,) = named
    assert not cfg.patch_encoder.backbone._args_[0][key] and cfg.text_encoder.pretrained is None
    assert cfg.callbacks.checkpoint is not None
    untouched(stage, mark)


def lying(kind: str) -> bytes:
    """A safetensors file whose header is no true one."""
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    if kind == "longer than the file":
        return struct.pack("<Q", 2**40) + b"{}"
    if kind == "negative":
        return b"\xff" * 8 + b"{}"
    if kind == "beyond the end":
        header["w"]["data_offsets"], header["w"]["shape"] = [0, 2**50], [2**48]
    elif kind == "overlapping":
        header["v"] = header["w"]
    elif kind == "another shape":
        header["w"]["shape"] = [2**31]
    elif kind == "no such type":
        header["w"]["dtype"] = "PICKLE"
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 8


@pytest.mark.parametrize(
    "kind", ["longer than the file", "negative", "beyond the end", "overlapping", "another shape", "no such type"]
)
def test_weights_whose_header_lies(stage, kind):
    (stage / "weights.safetensors").write_bytes(lying(kind))
    with pytest.raises(UserError, match="damaged, or not a file of plain tensors"):
        crossvit.load(stage)


@pytest.mark.parametrize("name", ["weights.safetensors", "x.pth", "x.ckpt", "x.pt"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_weights_that_are_a_payload(stage, mark, name, how):
    file = stage / name
    if how == "pickle":
        file.write_bytes(pickle.dumps({"state_dict": {"w": Payload(mark)}}))
    else:
        torch.save({"state_dict": {"w": torch.zeros(1)}, "hyper_parameters": Payload(mark)}, file)
    with pytest.raises(UserError, match="damaged, or not a file of plain tensors"):
        read_state_dict(file)
    untouched(stage, mark)


def test_a_checkpoint_to_resume_from_that_is_a_payload(stage, mark):
    last = stage / "last.ckpt"
    torch.save({"state_dict": {}, "epoch": 0, "x": Payload(mark)}, last)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=stage,
    )  # fmt: skip
    with pytest.raises(pickle.UnpicklingError):
        trainer.fit(Watched(), batches(2), ckpt_path=str(last), weights_only=True)
    untouched(stage, mark)


def test_a_chain_that_names_a_folder_of_somebody_else(tmp_path):
    """It is said to be damaged, and stays where it is: only a training moves what it finds damaged in its own store."""
    mine = tmp_path / "models" / "mine"
    mine.mkdir(parents=True)
    (mine / "weights.safetensors").write_bytes(b"precious")
    run = tmp_path / "run"
    run.mkdir()
    (run / "chain.json").write_text(json.dumps([{"path": "../models/mine"}]))
    with pytest.raises(UserError, match=r"mine is damaged \(complete.json is missing"):
        stored_stages(run)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]
    assert (mine / "weights.safetensors").read_bytes() == b"precious"


@pytest.mark.parametrize("folder", ["../../../home", "..", "a/b", "/tmp/x", "~root"])
def test_a_corpus_is_not_written_where_a_stage_says(stage, folder):
    with pytest.raises(UserError, match=f"scenes.folder={folder} leads out of paths.scenes"):
        check_places(OmegaConf.create({"scenes": {"folder": folder}}), stage)


def test_an_evaluation_asks_before_it_writes(stage, tmp_path):
    """The hashes are those of the changed files: a stranger can write them as well."""
    spoil(stage, "scenes.folder", "../../../home")
    marker = json.loads((stage / "complete.json").read_text())
    marker["config.yaml"] = hashlib.sha256((stage / "config.yaml").read_bytes()).hexdigest()
    (stage / "complete.json").write_text(json.dumps(marker))
    cfg = chain_configs(["stage=vlr", f"paths.root={tmp_path}/root"])[-1].cfg
    with pytest.raises(UserError, match="leads out of paths.scenes"):
        evaluate_stages(stored_stages(stage), cfg.suite, cfg.paths)
    assert not (tmp_path / "root").exists()


def test_figures_are_not_written_through_a_link(stage, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (stage / "evaluations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link to somewhere else"):
        check_places(OmegaConf.create({}), stage)
