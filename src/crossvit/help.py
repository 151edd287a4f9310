"""The help pages, made from the files in conf/ so that they name every option there is."""

import textwrap
from pathlib import Path

from crossvit.config.place import config_directory

TRAINING_KEYS = {
    "seed=0": "random seed of everything",
    "optimizer.lr=1e-3": "base learning rate",
    "data.batch_size=256": "global batch size, over all devices",
    "data.num_workers=4": "processes that read samples",
    "trainer.max_epochs=10": "length of the stage (or trainer.max_steps=...)",
    "trainer.precision=bf16-mixed": "32, bf16-mixed or 16-mixed",
    "scenes.preset=easy": "difficulty of the embedded corpus: easy, medium, hard",
    "'chain.coco=[\"optimizer.lr=1e-4\"]'": "overrides for one earlier stage of the chain",
    "paths.store=DIR": "where finished stages are kept",
    "run_name=NAME": "name of the run directory below paths.runs",
}
EVALUATION_KEYS = {
    "run=DIR": "a run of train or pipeline, or a stored stage",
    "suite=scenes": "what is measured",
    "data.num_workers=4": "processes that read samples",
    "scenes.preset=easy": "difficulty of the embedded corpus: easy, medium, hard",
    "paths.data=DIR": "where the data lie",
    "run_name=NAME": "name of the directory below paths.runs for the table",
}
STUDY_KEYS = {
    "study=scenes": "which one: its arms, seeds, metrics and claims",
    "arm=late": "these arms alone, e.g. arm=base,late",
    "seed=0": "these seeds alone, e.g. seed=0,1",
    "stage=vlr": "the last stage of the chain, which the arms change",
    "paths.results=DIR": "where the cells and the report are kept",
    "paths.store=DIR": "where finished stages are kept, which the arms share",
}
SWEEP_KEYS = {
    "paths.runs=DIR": "where the runs lie that were swept",
}
DATA_KEYS = {
    "scenes.preset=easy": "easy, medium or hard",
    "scenes.seed=0": "the same arguments give the same bytes",
    "scenes.image_size=32": "side of a picture in pixels",
    "paths.scenes=DIR": "where the corpus is written",
}
PACK_KEYS = {
    "data=coco": "what is written: an option of conf/data",
    "data.root=DIR": "where it lies",
    "out=DIR": "folder of the shards",
    "splits=[train,val]": "these splits alone",
    "samples_per_shard=10000": "of each tar but the last",
    "shuffle=true": "whether training samples are written in a drawn order",
    "workers=2": "processes that write",
}
VERIFY_KEYS = {
    "data=coco": "what is checked: an option of conf/data",
    "data.root=DIR": "where it lies",
    "splits=[train,val]": "these splits alone",
    "decode=false": "the annotations alone, and whether the files exist",
    "workers=2": "processes that read pictures",
    "allow=[leaks]": "faults that are none",
    "json=true": "the report as json",
}
KEYS = {
    "data": DATA_KEYS,
    "pack": PACK_KEYS,
    "verify": VERIFY_KEYS,
    "evaluate": EVALUATION_KEYS,
    "study": STUDY_KEYS,
    "report": STUDY_KEYS,
    "sweep": SWEEP_KEYS,
}
EXAMPLES = {
    "train": (
        "crossvit train                                   the whole chain on the embedded corpus",
        "crossvit train stage=imagenet patch_encoder=resnet18",
        "crossvit train -m patch_encoder=resnet18,resnet34 stage=imagenet,coco,vlr",
        "crossvit train sweep=seeds                       a sweep by name; again to train what is missing",
        "crossvit train trainer=ddp_sim                   two processes on the CPU",
        "crossvit train --cfg job                         the composed config",
    ),
    "pipeline": (
        "crossvit pipeline                                train the chain on the embedded corpus and test it",
        "crossvit pipeline scenes.preset=medium seed=1",
        "crossvit pipeline experiment=real_scratch paths.imagenet=DIR paths.coco=DIR paths.vlr=DIR",
    ),
    "evaluate": ("crossvit evaluate run=runs/demo                  test every stage of a run again",),
    "study": (
        "crossvit study study=smoke                       two arms, one seed, a handful of samples",
        "crossvit study                                   every cell of study=scenes; again to go on where it stopped",
        "crossvit study arm=late seed=0                   one cell",
    ),
    "report": ("crossvit report study=smoke                      what is there, complete or not",),
    "sweep": (
        "crossvit sweep status                            the sweep that was started last",
        "crossvit sweep status NAME                       another one, by its name or its folder",
        "crossvit sweep report NAME                       table.md, .csv and .json in its folder",
    ),
    "data": (
        "crossvit data make scenes scenes.preset=easy",
        "crossvit data verify data=coco data.root=DIR",
        "crossvit data pack data=coco data.root=DIR out=DIR",
    ),
    "pack": ("crossvit data pack data=coco data.root=DIR out=DIR", "crossvit data pack data=imagenet out=DIR"),
    "verify": (
        "crossvit data verify data=coco data.root=DIR",
        "crossvit data verify data=imagenet data.root=DIR workers=8 json=true",
    ),
}


def front_page(commands: dict[str, str]) -> str:
    """What `crossvit --help` prints."""
    lines = ["usage: crossvit <command> [key=value ...]", ""]
    lines += [f"  {name:10} {summary}" for name, summary in commands.items()]
    lines += [
        "",
        "crossvit <command> --help lists the options. Flags of Hydra work too: -m (sweep), --cfg job, --info.",
    ]
    return "\n".join(lines)


def command_page(command: str, summary: str) -> str:
    """What `crossvit <command> --help` prints."""
    usage = {"data": "crossvit data make scenes", "sweep": "crossvit sweep status|report [NAME or DIR]"} | {
        name: f"crossvit data {name}" for name in ("pack", "verify")
    }
    usage = usage.get(command, f"crossvit {command}")
    lines = [f"usage: {usage} [key=value ...]", "", f"{summary[0].upper()}{summary[1:]}.", ""]
    if command not in ("data", "sweep"):
        lines += ["Choices (group=option):"]
        groups = config_groups(config_directory())
        for group, options in ({"data": groups["data"]} if command in ("pack", "verify") else groups).items():
            text = ", ".join(options)
            lines += textwrap.wrap(text, 116, initial_indent=f"  {group:14} ", subsequent_indent=" " * 17)
        lines += [""]
    lines += ["Keys used most:"]
    keys = KEYS.get(command, TRAINING_KEYS)
    lines += [f"  {key:38} {meaning}" for key, meaning in keys.items()]
    lines += ["", "Examples:", *(f"  {example}" for example in EXAMPLES[command]), ""]
    lines += ["All keys: --cfg job. Sweep: -m with comma-separated values. Hydra's own flags: --hydra-help."]
    return "\n".join(lines)


def config_groups(root: Path) -> dict[str, list[str]]:
    """Config group -> its options, from the files below `root`. Hydra's own groups are left out."""
    groups = {}
    for directory in sorted(path for path in root.iterdir() if path.is_dir() and path.name != "hydra"):
        options = sorted(path.stem for path in directory.glob("*.yaml"))
        if options:
            groups[directory.name] = options
    return groups
