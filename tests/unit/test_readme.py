"""What the documents show works: every command composes, every file of "Add to it" runs, every link leads somewhere."""

import ast
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crossvit.cli import COMMANDS, primary_and_overrides
from crossvit.config import chain_configs, check_signatures, compose, validate
from crossvit.data import scenes
from tests.documents import DOCUMENTS, ROOT, blocks, commands, files

README = ROOT / "README.md"
ADDED = files(README)
ADDED_OPTIONS = {(path.split("/")[1], Path(path).stem) for path in ADDED if path.startswith("conf/")}
SHOWN = sorted({shlex.join(words) for document in DOCUMENTS for words in commands(document)})
SHOWN_FIRST = {shlex.join(words) for words in commands(README)}


def uses_an_added_file(words: list[str]) -> bool:
    return any(tuple(word.split("=", 1)) in ADDED_OPTIONS for word in words)


def jobs(words: list[str]) -> list[list[str]]:
    """The overrides of the jobs of a command, which is the first word; of a sweep as many jobs as it takes to see every value once."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    flags = {"-m", "--multirun", "--cfg", "job"}
    command, *words = words
    axes = []
    for override in OverridesParser.create().parse_overrides([word for word in words if word not in flags]):
        if override.is_sweep_override():
            by_name = any(word.startswith("sweep=") for word in words)
            assert "-m" in words or command == "study" or by_name, f"{override.input_line} needs -m"
            one = not override.is_discrete_sweep()  # an interval, of which a tuned sweep draws
            values = [str(override.value().start)] if one else override.sweep_string_iterator()
            axes.append([f"{override.get_key_element()}={value}" for value in values])
        else:
            axes.append([override.input_line])
    return [[axis[job % len(axis)] for axis in axes] for job in range(max(map(len, axes), default=1))]


def test_the_documents_show_every_command():
    assert {shlex.split(shown)[0] for shown in SHOWN} == set(COMMANDS)


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(shown, marks=[] if shown in SHOWN_FIRST and " -m " not in shown else pytest.mark.slow)
        for shown in SHOWN
        if not uses_an_added_file(shlex.split(shown))
    ],
)
def test_command_composes(shown):
    command, *words = shlex.split(shown)
    primary, words = primary_and_overrides(command, words)
    for overrides in jobs([primary, *words]):
        if command in ("data", "sweep"):
            validate(compose(overrides, primary))
        else:
            for link in chain_configs(overrides, command):
                check_signatures(link.cfg)


def test_the_arm_that_a_document_adds_composes(tmp_path):
    (text,) = (block.text for block in blocks(ROOT / "docs" / "study.md") if block.language == "yaml")
    (tmp_path / "arm").mkdir()
    (tmp_path / "arm" / "more_matching.yaml").write_text(text, encoding="utf-8")
    given = ["arm=more_matching", f"hydra.searchpath=['file://{tmp_path}']"]
    found = chain_configs(given)[-1].cfg
    assert found.arm.name == "more_matching"
    assert found.objective != chain_configs([])[-1].cfg.objective


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        assert "://" in target or (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_picture_of_the_house_is_the_import_graph():
    """Every import between two rooms runs along the arrows, and every arrow stands for an import."""
    picture = next(block.text for block in blocks(README) if block.text.startswith("flowchart TD"))
    arrows = set(re.findall(r"^ *(\w+).*?--> (\w+)", picture, re.MULTILINE))
    rooms = {room for arrow in arrows for room in arrow}
    imports = {(room, other) for room, other in imports_between_rooms() if {room, other} <= rooms}
    run_by_name = {("job", "commands")}  # import_module
    assert arrows <= imports | run_by_name, f"no such import: {arrows - imports - run_by_name}"
    below = {room: reachable(room, arrows) for room in rooms}
    against = {(room, other) for room, other in imports if other not in below[room]}
    assert not against, f"imports that the picture does not show: {against}"
    assert all(room not in below[room] for room in rooms)


def imports_between_rooms() -> set[tuple[str, str]]:
    source = ROOT / "src" / "crossvit"
    found = set()
    for path in source.rglob("*.py"):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crossvit."):
                found.add((room, node.module.split(".")[1]))
    return {(room, other) for room, other in found if room != other}


def reachable(room: str, arrows: set[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    pending = [room]
    while pending:
        new = {other for start, other in arrows if start == pending[-1]} - found
        pending.pop()
        found |= new
        pending += new
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the code and its configs with the files of "Add to it" in their places, and a small corpus."""
    copy = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", copy / "conf")
    for path, text in ADDED.items():
        assert not (copy / path).exists(), f"{path} is there already"
        (copy / path).write_text(text, encoding="utf-8")
    corpus = scenes.generate(copy / "data" / "scenes" / "smoke", "easy", image_size=32, sizes="smoke")
    write_statements(corpus.path / "vsr", copy / "statements")
    return copy


def write_statements(vsr: Path, root: Path) -> None:
    """The statements of the corpus as the example's csv files."""
    root.mkdir()
    (root / "images").symlink_to(vsr / "images")
    for split in ("train", "dev", "test"):
        records = [json.loads(line) for line in (vsr / f"{split}.jsonl").read_text().splitlines()]
        with (root / f"{split}.csv").open("w", newline="") as file:
            rows = csv.DictWriter(file, ["image", "caption", "label"], extrasaction="ignore")
            rows.writeheader()
            rows.writerows(records)


@pytest.mark.slow
def test_what_is_added_runs(checkout):
    """The commands that use the added files, in smoke size, in one process of a fresh interpreter."""
    shown = [words for words in commands(README) if uses_an_added_file(words) and "--config-dir" not in words]
    used = {tuple(word.split("=", 1)) for words in shown for word in words}
    assert used >= ADDED_OPTIONS, f"never shown in a command: {ADDED_OPTIONS - used}"
    smoke = ["experiment=smoke", "logger=none", "callbacks=quiet"]
    lines = [[word.replace("root=DIR", "root=statements") for word in words] + smoke for words in shown]
    run(checkout, lines)
    stored = [json.loads(path.read_text()) for path in checkout.glob("runs/stages/*/provenance.json")]
    datasets = [stage["data"]["dataset"] for stage in stored]
    assert "StatementTableDataModule" in datasets
    assert (
        len([stage for stage in stored if stage["stage"] == "imagenet"]) >= 3
    )  # mobilenet, depthwise, and the default


def test_configs_of_ones_own_need_no_checkout(checkout, tmp_path):
    """`--config-dir` with the backbone that takes one yaml."""
    (tmp_path / "patch_encoder").mkdir()
    name = "conf/patch_encoder/mobilenet.yaml"
    (tmp_path / "patch_encoder" / "mine.yaml").write_text(ADDED[name])
    code = "import sys; from crossvit.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["train", "--config-dir", str(tmp_path), "stage=imagenet", "patch_encoder=mine", "--cfg", "job"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mobilenetv3_small_050" in done.stdout


def run(checkout: Path, lines: list[list[str]]) -> None:
    code = "import json, sys; from crossvit.cli import main; sys.exit(max(main(words) for words in json.loads(sys.argv[1])))"
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "CROSSVIT_ROOT": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(lines)], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
