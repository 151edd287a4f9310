"""One figure of a result table, and the words it is printed with."""

from dataclasses import dataclass, fields

HEADINGS = {
    "vqcmi": "VQCMI: natural-image matching",
    "mimic": "MIMIC-III: medical (MIMIC-CXR layout)",
    "mimic_fused": "Medical, fused score",
    "mimic_strict": "Medical, own report alone is right",
    "mimic_fused_strict": "Medical, own report alone is right, fused score",
    "mimic_precision": "Medical, precision by class",
    "mimic_zero_shot": "Medical, labels by prompts",
    "openi": "OpenI",
    "openi_fused": "OpenI, fused score",
    "openi_strict": "OpenI, own report alone is right",
    "openi_fused_strict": "OpenI, own report alone is right, fused score",
    "openi_precision": "OpenI, precision by class",
    "openi_zero_shot": "OpenI, labels by prompts",
    "scenes": "Scenes (control)",
    "scenes_fused": "Scenes (control), fused score",
    "vqcmi_fused": "VQCMI, fused score",
    "vqcmi_n_way": "N-way matching",
    "vqcmi_n_way_fused": "N-way matching, fused score",
    "vqcmi_sum": "VQCMI, sum of fused and dual score",
    "classification": "Classification",
    "zero_shot": "Zero-shot classification",
    "linear_probe": "Linear probe",
    "knn": "Nearest neighbours",
    "vlr": "VLR true/false",
    "vlr_compositional": "VLR true/false, held-out combinations",
    "vlr_medium": "VLR true/false, preset medium",
    "vlr_published": "VLR true/false, published pairs",
    "nlvr2": "Two-image statements",
    "twins": "Caption or twin",
    "twins_fused": "Caption or twin, fused score",
    "twins_blind": "Caption or twin, blind, text only",
    "quads": "Two captions by two pictures",
    "quads_fused": "Two captions by two pictures, fused score",
    "sugarcrepe": "SugarCrepe",
    "sugarcrepe_fused": "SugarCrepe, fused score",
    "sugarcrepe_blind": "SugarCrepe, blind, text only",
    "winoground": "Winoground",
    "winoground_fused": "Winoground, fused score",
    "aro": "ARO",
    "aro_fused": "ARO, fused score",
    "aro_blind": "ARO, blind, text only",
    "aro_order_coco": "ARO COCO-Order",
    "aro_order_coco_fused": "ARO COCO-Order, fused score",
    "aro_order_flickr30k": "ARO Flickr30k-Order",
    "aro_order_flickr30k_fused": "ARO Flickr30k-Order, fused score",
    "nlvr": "NLVR true/false",
    "calibration": "True/false at a fitted threshold",
    "calibration_fused": "True/false at a fitted threshold, fused score",
    "robustness_text": "True/false under attack, word embeddings",
    "robustness_patch": "True/false under attack, patches",
    "robustness_pixel": "True/false under attack, pixels",
    "blind_text": "Blind, text only",
    "blind_image": "Blind, image only",
    "nlvr_blind_text": "NLVR true/false, blind, text only",
    "nlvr_blind_image": "NLVR true/false, blind, image only",
    "nlvr2_blind_text": "Two-image statements, blind, text only",
    "nlvr2_blind_image": "Two-image statements, blind, image only",
}
SOURCE_TASKS = ("vqcmi", "mimic")  # the two tasks of the source document's table, always shown
CHAIN = ("imagenet", "coco", "vlr", "medical")
PLAIN = ("mean rank",)  # metrics that are no fractions
NOT_MEASURED = "not measured yet"
ABSENT = {"mimic": "not measured yet (medical data is not part of this run)"}


@dataclass(frozen=True)
class Cell:
    """One figure. Values are fractions, printed in percent (those of `PLAIN` are not); the keys of `table.json`, in this order.

    `row` tells apart rows that share dataset and backbone (the arms of an ablation); `task` is a key of `HEADINGS` or any other name.
    """

    row: str
    dataset: str  # what the row was trained on last, as printed: "ImageNet", "COCO", "VLR"
    backbone: str  # "ResNet-18", "CrossViT"
    stage: str  # "imagenet", "coco", "vlr"
    task: str
    direction: str | None  # "image->text", "text->image"; None where there is none
    metric: str  # "Acc@1", "AUROC", a twin's kind
    value: float | None  # None: measured, but not a number
    low: float | None = None  # 95 % interval
    high: float | None = None
    candidates: int | None = None
    chance: float | None = None
    queries: int | None = None
    seed: int | None = None


KEYS = tuple(field.name for field in fields(Cell))


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in percent: 0.752 -> "75.2"; small ones keep two significant digits: 0.0002 -> "0.02"."""
    if value is None:
        return "n/a"
    scaled = 100 * value
    return f"{scaled:.2g}" if 0 < abs(scaled) < 0.05 else f"{scaled:.{digits}f}"


def shown(metric: str, value: float | None) -> str:
    """A value of a metric as it is printed: in percent, or plain for those of `PLAIN`."""
    return f"{value:.1f}" if metric in PLAIN and value is not None else percent(value)
