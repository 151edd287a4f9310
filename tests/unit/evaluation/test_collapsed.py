"""A model that has collapsed, whose embeddings and logits are the same for everything, gets exactly chance from every evaluator."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from crossvit.config import compose
from crossvit.data.sugarcrepe import KINDS
from crossvit.evaluation.subject import Subject
from crossvit.report.cells import HEADINGS
from crossvit.stages.build import build_model
from crossvit.stages.corpus import make_scenes
from crossvit.stages.evaluating import make_evaluator, open_data
from tests.films import few_films, few_films_of_openi

WITHOUT_CHANCE = {"ECE": 0.0, "ceiling@16": 1.0}  # of equal scores everything is in the shortlist
SUITES = {
    "scenes": {"imagenet", "coco", "twins", "vsr", "vsr_compositional", "vsr_medium"},
    "full": {"coco_n_way", "zero_shot", "probe", "quads", "calibration"},
    "real": {"imagenet", "coco", "vlr", "nlvr", "zero_shot", "probe", "calibration"},
    "compositional": {"sugarcrepe", "winoground"},
    "medical": {"mimic", "mimic_precision", "mimic_zero_shot"},
    "openi": {"openi", "openi_precision", "openi_zero_shot"},
    "medical_real": {"mimic", "mimic_precision", "mimic_zero_shot", "scenes"},
    "aro": {"relation", "attribution", "order_coco", "order_flickr30k"},
}
SUITES["full"] |= SUITES["scenes"] | {f"robustness_{space}" for space in ("text", "patch", "pixel")}


class ConstantMap(nn.Module):
    """(B, 3, H, W) -> (B, C, H / 8, W / 8) of ones."""

    stride = 8

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, image):
        return image.new_ones(len(image), self.num_channels, image.shape[-2] // 8, image.shape[-1] // 8)


def collapse(cfg) -> Subject:
    """As if every part were trained, and to nothing."""
    model = build_model(cfg)
    model.patch_encoder.backbone = ConstantMap(model.patch_encoder.num_channels)
    model.vision.pool = lambda tokens: tokens.new_ones(len(tokens), tokens.shape[-1])
    for head in (model.itc_image, model.itc_text):
        head.unit = lambda pooled: nn.functional.normalize(pooled.new_ones(len(pooled), 64), dim=1)
    nn.init.zeros_(model.itm.weight)
    nn.init.constant_(model.itm.bias, 0.3)
    classifier = nn.Sequential(nn.Flatten(), nn.LazyLinear(24))
    classifier(torch.zeros(1, 3, cfg.model.image_size, cfg.model.image_size))
    nn.init.zeros_(classifier[1].weight)
    nn.init.constant_(classifier[1].bias, 0.3)
    trained = {name for name, _ in model.named_children()} | {"classifier"}
    return Subject(model, frozenset(trained - {"two_image"}), torch.device("cpu"), classifier)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The smoke corpus, and beside it a few statements of NLVR, items of SugarCrepe and examples of Winoground on its pictures."""
    root = tmp_path_factory.mktemp("collapsed")
    cfg = compose(["experiment=smoke", f"paths.root={root}"], "pipeline")
    make_scenes(cfg, "easy")
    easy = Path(cfg.paths.scenes) / "easy"
    pictures = sorted((easy / "vsr" / "images").iterdir())
    captions = [f"a red circle {word}" for word in ("left", "right", "above", "below")]
    nlvr, sugarcrepe, winoground = (root / name for name in ("nlvr", "sugarcrepe", "winoground"))
    for folder in (nlvr / "dev" / "images" / "0", sugarcrepe, winoground / "images"):
        folder.mkdir(parents=True)
    rows = []
    for i in range(4):
        for k in range(1 + i % 3):  # sentences of one, two and three pictures
            shutil.copy(pictures[3 * i + k], nlvr / "dev" / "images" / "0" / f"dev-{i}-0-{k}.png")
        rows.append({"sentence": captions[i], "label": str(i % 2 == 0), "identifier": f"{i}-0", "directory": "0"})
    (nlvr / "dev" / "dev.json").write_text("\n".join(map(json.dumps, rows)))
    for kind in KINDS:
        items = {
            str(i): {"filename": pictures[i].name, "caption": captions[i % 4], "negative_caption": captions[1 - i % 2]}
            for i in range(3)
        }
        (sugarcrepe / f"{kind}.json").write_text(json.dumps(items))
    rows = []
    for number in range(3):
        for i in range(2):
            shutil.copy(pictures[2 * number + i], winoground / "images" / f"ex_{number}_img_{i}.png")
        images = {f"image_{i}": f"ex_{number}_img_{i}" for i in range(2)}
        rows.append({"id": number, "caption_0": captions[number], "caption_1": captions[number + 1], **images})
    (winoground / "examples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    few_films(root / "mimic")
    few_films_of_openi(root / "openi")
    write_aro(root, pictures, captions)
    return root


def write_aro(root: Path, pictures: list[Path], captions: list[str]) -> None:
    """Items on parts of pictures, and Karpathy's test splits of three pictures with a caption of seven words each."""
    shutil.copytree(pictures[0].parent, root / "aro" / "images")
    box = {"bbox_x": 4, "bbox_y": 4, "bbox_w": 20, "bbox_h": 16}
    items = [
        {"image_path": picture.name, "true_caption": captions[0], "false_caption": captions[1], **box}
        for picture in pictures[:3]
    ]
    for part in ("relation", "attribution"):
        (root / "aro" / f"visual_genome_{part}.json").write_text(json.dumps(items))
    for source in ("coco", "flickr30k"):
        shutil.copytree(pictures[0].parent, root / source / "images")
        records = [
            {
                "filepath": "images",
                "filename": picture.name,
                "imgid": i,
                "split": "test",
                "sentences": [{"raw": f"{captions[i]} a blue square", "sentid": i, "imgid": i, "tokens": []}],
            }
            for i, picture in enumerate(pictures[:3])
        ]
        if source == "flickr30k":
            records = [{key: value for key, value in record.items() if key != "filepath"} for record in records]
        (root / source / f"dataset_{source}.json").write_text(json.dumps({"images": records, "dataset": source}))


def configuration(root: Path, suite: str):
    easy = root / "data" / "scenes" / "smoke" / "easy"
    on_scenes = [
        *(f"paths.{name}={easy / name}" for name in ("imagenet", "coco")),
        f"paths.vlr={easy / 'vsr'}",
        *(f"suite.{name}.data.image_roots=[{easy / 'vsr' / 'images'}]" for name in ("vlr", "calibration")),
        *(f"suite.{name}.data.num_workers=0" for name in sorted(SUITES["real"])),
    ]
    elsewhere = [
        f"suite.sugarcrepe.data.image_roots=[{easy / 'vsr' / 'images'}]",
        f"paths.coco={easy / 'coco'}",
        *(f"suite.{name}.data.num_workers=0" for name in ("sugarcrepe", "winoground")),
    ]
    films = [
        f"paths.mimic_cxr={root / 'mimic'}",
        f"paths.openi={root / 'openi'}",
        *(f"suite.{name}.data.num_workers=0" for name in sorted(SUITES[suite])),
    ]
    aro = [
        *(f"paths.{name}={root / name}" for name in ("aro", "coco", "flickr30k")),
        *(f"suite.{name}.data.captions_root={easy / 'coco'}" for name in ("relation", "attribution")),
        *(
            f"suite.{name}.data.kinds=[shuffle_within_trigrams,shuffle_trigrams]"
            for name in ("order_coco", "order_flickr30k")
        ),
        *(f"suite.{name}.data.num_workers=0" for name in SUITES["aro"]),
    ]
    more = {
        "real": [*on_scenes, f"paths.nlvr={root / 'nlvr'}"],
        "compositional": elsewhere,
        "aro": aro,
        "full": [
            f"suite.robustness_{space}.evaluator.{key}"
            for space in ("text", "patch", "pixel")
            for key in ("limit=16", "steps=2", "restarts=1", "fit_split=dev")
        ],
    }.get(suite, films)
    places = [f"paths.root={root}", *(f"paths.{name}={root / name}" for name in ("sugarcrepe", "winoground"))]
    return compose(["experiment=smoke", f"suite={suite}", *places, *more], "pipeline")


@pytest.mark.parametrize("suite", ["full", "real", "compositional", "aro", "medical", "openi", "medical_real"])
def test_chance_everywhere(root, suite):
    cfg = configuration(root, suite)
    assert set(cfg.suite) == SUITES[suite]
    subject = collapse(cfg)
    for name, entry in cfg.suite.items():
        measured = make_evaluator(name, entry, open_data(cfg, name, entry))(subject)
        assert measured, name
        for measurement in measured:
            assert measurement.task in HEADINGS
            if "blind" in measurement.task:
                continue
            value = measurement.estimate.value
            expected = 0.5 if measurement.task.startswith("robustness") else WITHOUT_CHANCE.get(measurement.metric)
            expected = expected if measurement.chance is None else measurement.chance
            assert value == pytest.approx(expected, abs=1e-6), (name, measurement)
            assert measurement.estimate.low <= value <= measurement.estimate.high


def test_the_quick_suite_is_part_of_the_full_one(root):
    quick = compose(["experiment=smoke", f"paths.root={root}"], "pipeline").suite
    assert set(quick) == SUITES["scenes"]


def test_nothing_trained_gives_no_figure_that_needs_training(root):
    """Only the columns that every stage has are left: matching and twins, at chance."""
    cfg = configuration(root, "full")
    subject = collapse(cfg)
    subject.trained, subject.classifier = frozenset(), None
    tasks = set()
    for name in ("imagenet", "zero_shot", "probe", "quads", "calibration", "vsr", "twins"):
        entry = cfg.suite[name]
        tasks |= {m.task for m in make_evaluator(name, entry, open_data(cfg, name, entry))(subject)}
    assert tasks == {"twins"}
