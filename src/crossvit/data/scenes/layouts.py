"""The corpus in the official layouts: ImageNet class folders, COCO captions 2017, VSR jsonl and NLVR2 json.

Field names and types are those of the originals (NLVR2 labels are the strings "True" and "False", VSR votes are
strings), with two additions: `kind`, the step between a statement and its twin, and `scenes` files with the symbols of
every picture.
"""

from random import Random

from crossvit.data.scenes.describe import describe, draw_template
from crossvit.data.scenes.grammar import RELATION_WORDS, noun_phrase, realise
from crossvit.data.scenes.graph import CLASSES
from crossvit.data.scenes.image_pairs import PairSet, make_pair_sets
from crossvit.data.scenes.logic import And, Caption, Compare, Count, Related, phrases
from crossvit.data.scenes.presets import Preset
from crossvit.data.scenes.quads import Quad, make_quads
from crossvit.data.scenes.sample import ScenePool, class_scene
from crossvit.data.scenes.twins import kinds_for, twin
from crossvit.data.scenes.write import CorpusWriter

_FIRST_VSR_ID = 500_000  # keeps VSR's picture numbers apart from COCO's
_NLVR2_DIRECTORIES = 100
_LICENSE = {"id": 1, "name": "Generated, no rights reserved", "url": ""}


def wnid(label: int) -> str:
    """The folder name of class `label`: shaped like a WordNet id, in a range WordNet does not use."""
    return f"n990{label:05d}"


def write_imagenet(writer: CorpusWriter, preset: Preset, rng: Random, sizes: dict[str, int]) -> None:
    """`imagenet/{train,val}/<wnid>/*.JPEG` and `LOC_synset_mapping.txt`; `sizes` counts pictures a class."""
    names = "".join(f"{wnid(label)} {colour} {shape}\n" for label, (colour, shape) in enumerate(CLASSES))
    writer.text("imagenet/LOC_synset_mapping.txt", names)
    pictures, number = [], 0
    for label in range(len(CLASSES)):
        for _ in range(sizes["imagenet_val"]):
            number += 1
            path = f"imagenet/val/{wnid(label)}/ILSVRC2012_val_{number:08d}.JPEG"
            pictures.append((path, class_scene(rng, preset, label)))
        for i in range(sizes["imagenet_train"]):
            path = f"imagenet/train/{wnid(label)}/{wnid(label)}_{i + 1}.JPEG"
            pictures.append((path, class_scene(rng, preset, label)))
    writer.images(pictures)
    for split in ("train", "val"):
        writer.counts[f"imagenet/{split}"] = {
            "images": len(CLASSES) * sizes[f"imagenet_{split}"],
            "classes": len(CLASSES),
        }


def _captions(pool: ScenePool) -> tuple:
    """A scene of the pool with two or three different true captions [(caption, template, text)]."""
    wanted = pool.rng.choice((2, 3))
    while True:
        scene, found = pool.draw(), {}
        for _ in range(8 * wanted):
            caption = describe(scene, pool.preset, pool.rng)
            if caption is not None and pool.mentions_well(caption):
                template = draw_template(pool.preset, pool.rng)
                found.setdefault(realise(caption, template), (caption, template))
            if len(found) == wanted:
                pool.keep(scene)
                return scene, [(caption, template, text) for text, (caption, template) in found.items()]


def _negatives(scene, caption: Caption, template: int, pool: ScenePool) -> list[dict[str, str]]:
    rows = []
    for kind in kinds_for(caption, pool.preset):
        false = twin(caption, kind, scene, pool.preset, pool.rng, pool.mentions_well)
        if false is not None:
            rows.append({"caption": realise(false, template), "kind": kind})
    return rows


def write_coco(writer: CorpusWriter, pool: ScenePool, split: str, number: int, first_id: int) -> None:
    """`coco/<split>/<12 digits>.jpg` and, under `annotations/`, captions_, negatives_ and scenes_`<split>`.json.

    Picture numbers count from `first_id`; caption ids are 10 x picture number + 0..2.
    """
    pictures, images, annotations, negatives, scenes = [], [], [], {}, {}
    for image_id in range(first_id, first_id + number):
        scene, captions = _captions(pool)
        name = f"{image_id:012d}.jpg"
        pictures.append((f"coco/{split}/{name}", scene))
        size = {"height": writer.image_size, "width": writer.image_size}
        source = {"license": 1, "coco_url": "", "flickr_url": "", "date_captured": "2024-01-01 00:00:00"}
        images.append({"id": image_id, "file_name": name, **size, **source})
        scenes[str(image_id)] = scene.to_dict()
        for k, (caption, template, text) in enumerate(captions):
            caption_id = image_id * 10 + k
            annotations.append({"id": caption_id, "image_id": image_id, "caption": text})
            negatives[str(caption_id)] = _negatives(scene, caption, template, pool)
    info = {"description": f"CrossViT scenes, preset {pool.preset.name}", "url": "", "version": "1.0", "year": 2024}
    info |= {"contributor": "crossvit.data.scenes", "date_created": "2024/01/01"}
    document = {"info": info, "licenses": [_LICENSE], "images": images, "annotations": annotations}
    writer.json(f"coco/annotations/captions_{split}.json", document)
    writer.json(f"coco/annotations/negatives_{split}.json", negatives)
    writer.json(f"coco/annotations/scenes_{split}.json", scenes)
    writer.images(pictures)
    writer.counts[f"coco/{split}"] = {
        "images": number,
        "captions": len(annotations),
        "negatives": sum(map(len, negatives.values())),
    }


def _relation_name(caption: Caption) -> str:
    match caption:
        case Related(relation=relation):
            return RELATION_WORDS[relation]["short"]
        case And(second=second):
            return _relation_name(second)
        case Compare(comparison=comparison):
            return comparison
        case Count():
            return "count"
        case _:
            return "present"


def _vsr_rows(quad: Quad, names: tuple[str, str]) -> list[dict]:
    rows = []
    for j, name in enumerate(names):
        for i, caption in enumerate(quad.captions):
            mentioned = [noun_phrase(phrase) for phrase in phrases(caption)][-2:]
            rows.append(
                {
                    "image": name,
                    "image_link": "",
                    "caption": realise(caption, quad.template),
                    "label": int(i == j),
                    "relation": _relation_name(caption),
                    "subj": mentioned[0],
                    "obj": mentioned[1] if len(mentioned) > 1 else "",
                    "annotator_id": 0,
                    "vote_true_validator_id": "[]",
                    "vote_false_validator_id": "[]",
                    "kind": quad.kind,
                }
            )
    return rows


def write_vsr(writer: CorpusWriter, pools: dict[str, ScenePool], sizes: dict[str, int]) -> None:
    """`vsr/<split>.jsonl` for every pool, in their order, `vsr/images/<12 digits>.jpg` and `vsr/scenes.json`."""
    image_id, pictures, scenes = _FIRST_VSR_ID, [], {}
    for split, pool in pools.items():
        rows = []
        for quad in make_quads(pool, sizes[f"vsr_{split}"] // 4):
            names = (f"{image_id:012d}.jpg", f"{image_id + 1:012d}.jpg")
            image_id += 2
            for name, scene in zip(names, quad.scenes, strict=True):
                pictures.append((f"vsr/images/{name}", scene))
                scenes[name] = scene.to_dict()
            rows += _vsr_rows(quad, names)
        writer.json_lines(f"vsr/{split}.jsonl", rows)
        writer.counts[f"vsr/{split}"] = {"images": len(rows) // 2, "statements": len(rows)}
    writer.json("vsr/scenes.json", scenes)
    writer.images(pictures)


def _nlvr2_rows(pair_set: PairSet, split: str, number: int) -> list[dict]:
    rows = []
    for j in range(2):
        for i, statement in enumerate(pair_set.statements):
            row = {
                "identifier": f"{split}-{number}-{j}-{i}",
                "sentence": realise(statement, pair_set.template),
                "label": str(i == j),
                "left_url": "",
                "right_url": "",
                "synset": "scene",
                "query": "",
                "writer": "0",
                "validation": {},
                "extra_validations": {},
                "kind": pair_set.kind,
            }
            if split == "train":
                row["directory"] = number % _NLVR2_DIRECTORIES
            rows.append(row)
    return rows


def write_nlvr2(writer: CorpusWriter, pool: ScenePool, split: str, number: int) -> None:
    """`nlvr2/data/<split>.json` (one object a line), `nlvr2/images/...png`, and `nlvr2/data/scenes_<split>.json` by
    picture.

    Pictures lie in `images/train/<directory>/` for training and `images/<split>/` otherwise; `number` counts
    statements.
    """
    rows, pictures, scenes = [], [], {}
    for i, pair_set in enumerate(make_pair_sets(pool, number // 4)):
        folder = f"train/{i % _NLVR2_DIRECTORIES}" if split == "train" else split
        for j, pair in enumerate(pair_set.pairs):
            for k, scene in enumerate(pair):
                name = f"{split}-{i}-{j}-img{k}.png"
                pictures.append((f"nlvr2/images/{folder}/{name}", scene))
                scenes[name] = scene.to_dict()
        rows += _nlvr2_rows(pair_set, split, i)
    writer.json_lines(f"nlvr2/data/{split}.json", rows)
    writer.json(f"nlvr2/data/scenes_{split}.json", scenes)
    writer.images(pictures)
    writer.counts[f"nlvr2/{split}"] = {"images": len(pictures), "statements": len(rows)}
