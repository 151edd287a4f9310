"""Runs a suite of evaluators over a stored stage and turns what they measure into table cells."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crossvit.errors import UserError
from crossvit.evaluation.calibration import RELIABILITY
from crossvit.evaluation.subject import Measurement, Subject
from crossvit.metrics import Bin
from crossvit.report.atomic import write_atomically
from crossvit.report.cells import Cell
from crossvit.stages.build import EVALUATOR, build_data, build_task, build_tokenizer, make
from crossvit.stages.corpus import prepare_corpus
from crossvit.stages.failures import EVALUATION, explained
from crossvit.stages.restore import restore_model, stage_directories, stored_config
from crossvit.stages.store import StoredStage

log = logging.getLogger(__name__)

FORMAT = 6
"""Of what evaluators measure; one more where they measure more, or otherwise, so that what is kept beside a stage is measured again."""

DATASETS = {
    "imagenet": "ImageNet",
    "imagenet_vit": "ImageNet (ViT)",
    "coco": "COCO",
    "vlr": "VLR",
    "coco_itm": "COCO (matching)",
    "coco_medium": "COCO (medium)",
    "vlr_medium": "VLR (medium)",
    "vlr_hard": "VLR (hard)",
    "medical": "MIMIC-CXR",
    "scenes_control": "Scenes (control)",
}
"""What the table calls a stage by the data that it was trained on last."""


def evaluate_stages(
    stages: list[StoredStage], suite: DictConfig, paths: DictConfig, scenes: Mapping[str, Any] | None = None
) -> list[Cell]:
    """The cells of each stage on every entry of a suite.

    Interpolations in the suite and in `paths` (picture size, corpus) are read in the stage's own config; `paths`, and what `scenes` holds
    of the corpus, come from the caller. What was measured is kept beside the stage, under a hash of the entry and its data, so that
    asking again costs nothing.
    """
    cells: list[Cell] = []
    opened: dict[str, Any] = {}
    for stored in stages:
        cfg = stored_config(stored.path)
        check_places(cfg, stored.path)
        cfg.paths = OmegaConf.to_container(paths)
        cfg.suite = OmegaConf.to_container(suite)
        cfg.scenes.update(dict(scenes or {}))
        subject = None
        for name, entry in cfg.suite.items():
            if entry is None:
                continue
            plain = _resolved(entry, f"suite.{name}", stored)
            address = json.dumps([plain["data"], OmegaConf.to_container(cfg.tokenizer, resolve=True)])
            if address not in opened:
                opened[address] = open_data(cfg, name, entry)
            data = opened[address]
            evaluator = make_evaluator(name, entry, data)
            if plain["evaluator"].get("surrogate") is not None:
                plain["evaluator"]["surrogate"] = stage_directories(Path(plain["evaluator"]["surrogate"]))[-1].name
            plain["data"] = {
                key: value for key, value in plain["data"].items() if not key.endswith(("root", "roots", "_file"))
            }
            key = hashlib.sha256(
                json.dumps([FORMAT, plain, data.manifest(evaluator.splits)], sort_keys=True).encode()
            ).hexdigest()[:16]
            kept = stored.path / "evaluations" / f"{key}.json"
            if not kept.is_file():
                log.info("testing %s on %s", stored.provenance["stage"], name)
                subject = replace(subject or load_subject(stored, cfg), kept={})
                with explained(f"suite.{name}", EVALUATION):
                    measured = [m.to_json() for m in evaluator(subject)]
                write_atomically(kept, json.dumps({"figures": measured, "kept": subject.kept}).encode())
            content = json.loads(kept.read_text())
            for file, beside in content["kept"].items():  # another suite may have left its own under this name
                path, text = kept.with_name(f"{file}.json"), json.dumps(beside, indent=2)
                if (
                    not path.is_file() or path.read_text() != text
                ):  # a store that cannot be written to can still be asked
                    write_atomically(path, text.encode())
            cells += [to_cell(Measurement.from_json(row), stored, cfg) for row in content["figures"]]
    return cells


def reliability_curves(stages: Sequence[StoredStage], cells: Sequence[Cell]) -> dict[str, dict[str, list[Bin]]]:
    """{task: {row: bins}} of the calibrated tasks among `cells`, which `evaluate_stages` has measured of these stages."""
    curves: dict[str, dict[str, list[Bin]]] = {}
    for stored in stages:
        row = row_label(stored)
        calibrated = [cell.task for cell in cells if cell.row == row and cell.metric == "ECE"]
        for name in dict.fromkeys(task.removesuffix("_fused") for task in calibrated):
            kept = json.loads((stored.path / "evaluations" / f"{RELIABILITY}{name}.json").read_text())
            for task, bins in kept.items():
                curves.setdefault(task, {})[row] = [Bin(*one) for one in bins]
    return curves


def check_places(cfg: DictConfig, directory: Path) -> None:
    """A stage may be a stranger's: the corpus and the figures that its evaluation writes stay where such files belong. Raises UserError."""
    folder = str(cfg.scenes.get("folder")) if "scenes" in cfg else ""
    if len(Path(folder).parts) > 1 or folder == ".." or folder.startswith("~"):
        raise UserError(f"{directory}: scenes.folder={folder} leads out of paths.scenes; it must be one name")
    kept = directory / "evaluations"
    if kept.is_symlink():
        raise UserError(f"{kept} is a link to somewhere else: remove it, figures are kept in the stage's own directory")


def _resolved(entry: DictConfig, name: str, stored: StoredStage) -> dict:
    try:
        return OmegaConf.to_container(entry, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} does not fit the config of {stored.path} ({reason}): train that stage again") from None


def check_suite(cfg: DictConfig) -> None:
    """Raises UserError where the data of a test is not what it should be; a pipeline asks before it trains."""
    for name, entry in cfg.suite.items():
        if entry is not None:
            make_evaluator(name, entry, open_data(cfg, name, entry))


def make_evaluator(name: str, entry: DictConfig, data):
    """The evaluator of one entry of the suite on its data; every split that it reads is checked. Raises UserError naming the entry."""
    try:
        surrogate = entry.evaluator.get("surrogate")
        models = {"surrogate": last_model(Path(surrogate))} if surrogate is not None else {}
        evaluator = make(entry.evaluator, EVALUATOR, data=data, **models)
        for split in evaluator.splits:
            data.check_split(split)
    except UserError as error:
        raise UserError(f"suite.{name}.evaluator: {error}") from None
    return evaluator


def open_data(cfg: DictConfig, name: str, entry: DictConfig):
    """The LightningDataModule of one entry of the suite, its layout checked."""
    try:
        prepare_corpus(cfg, entry.data)
        data = build_data(entry.data, build_tokenizer(cfg), train_split=None)
        data.validate()
    except UserError as error:
        raise UserError(f"suite.{name}: {error}") from None
    return data


def last_model(path: Path):
    """The CrossViT of a stage, or of the last stage of a run."""
    directory = stage_directories(path)[-1]
    return restore_model(directory, stored_config(directory))[0]


def load_subject(stored: StoredStage, cfg: DictConfig) -> Subject:
    """The stage's network on the best device there is; what no stage has trained is as the stage's own seed initialises it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, weights = restore_model(stored.path, cfg)
    classifier = None
    head = [value for name, value in weights.items() if name.startswith("classifier.") and name.endswith("weight")]
    if head:
        task = build_task(cfg, num_classes=head[0].shape[0])
        task.network.load_state_dict(weights)
        classifier = task.to(device)

    record = stored.provenance
    trained, last = (frozenset(record.get(key, ())) for key in ("trained_modules", "trained_here"))
    return Subject(model.to(device), trained, device, classifier, cfg.seed, trained_last=last)


def to_cell(measurement: Measurement, stored: StoredStage, cfg: DictConfig) -> Cell:
    """A measurement in its place in the table."""
    estimate, stage = measurement.estimate, stored.provenance["stage"]
    return Cell(
        row=row_label(stored),
        dataset=row_label(stored),
        backbone=backbone_label(cfg),
        stage=stage,
        task=measurement.task,
        direction=measurement.direction,
        metric=measurement.metric,
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        candidates=measurement.candidates,
        chance=measurement.chance,
        queries=estimate.queries,
        seed=cfg.seed,
    )


def row_label(stored: StoredStage) -> str:
    """What the table calls the data that a stage was trained on last."""
    stage = stored.provenance["stage"]
    return DATASETS.get(stage, stage)


def backbone_label(cfg: DictConfig) -> str:
    """What the table calls the network: the patch encoder's backbone, within CrossViT where text is part of the stage."""
    node = cfg.patch_encoder.get("backbone") or cfg.patch_encoder
    name = str(node.get("name") or node["_target_"].rsplit(".", 1)[-1])
    return f"CrossViT ({name})" if cfg.stage.task == "cross_modal" else name
