"""Where every dataset comes from, and its tree: one text in the class, shown in errors and in docs/data.md."""

import inspect
import re

import pytest
import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

from crossvit.config import chain_configs, config_directory
from crossvit.errors import UserError
from tests.documents import ROOT, blocks

DOCUMENT = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
OPTIONS = sorted(path.stem for path in (config_directory() / "data").glob("*.yaml"))
OWN = {
    "table",
    "labelled_table",
    "caption_folder",
    "saved_dataset",
    "class_shards",
    "statement_shards",
    "stream",
}  # nobody publishes them
GENERATED = {option for option in OPTIONS if option.startswith("scenes_")} | {"mixture"}
VARIANTS = {"nlvr_dev", "itm_flickr8k"}  # other splits or paths of a dataset that is there


def target(option: str) -> type:
    """The class of an option, which it may take from another."""
    path = config_directory() / "data" / f"{option}.yaml"
    content = yaml.safe_load(path.read_text())
    base = next((name for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"), None)
    return get_object(content["_target_"]) if "_target_" in content else target(base)


@pytest.mark.parametrize("option", [option for option in OPTIONS if option not in GENERATED])
def test_the_document_shows_what_the_error_shows(option):
    kind = target(option)
    assert f"```\n{kind.LAYOUT}\n```" in DOCUMENT
    if option not in OWN:
        assert f"```\n{kind.DOWNLOAD}\n```" in DOCUMENT
        assert re.search("https://", kind.DOWNLOAD) and "Licence: " in kind.DOWNLOAD


@pytest.mark.parametrize("option", [o for o in OPTIONS if not o.startswith("scenes_") and o not in VARIANTS])
def test_the_document_names_the_option_in_a_heading(option):
    headings = [line for line in DOCUMENT.splitlines() if line.startswith("## ")]
    assert any(f"`data={option}`" in heading for heading in headings)


CLASSES = {target(option) for option in OPTIONS if option not in {*GENERATED, "stream"}}  # whose root is a folder
NEEDED = {"source": "coco", "part": "relation"}


@pytest.mark.parametrize("kind", sorted(CLASSES, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_an_empty_root_shows_the_tree_and_the_way_to_the_data(kind, tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    parameters = {name for base in kind.__mro__ for name in inspect.signature(base.__init__).parameters}
    needed = {name: value for name, value in NEEDED.items() if name in parameters}
    data = kind(root=tmp_path / "empty", image_size=8, batch_size=4, tokenizer=tokenizer, **needed)
    with pytest.raises(UserError) as caught:
        data.check_split("test")
    message = str(caught.value)
    assert message.startswith(f"data.root={tmp_path / 'empty'} is empty.")
    assert kind.LAYOUT in message and message.endswith(kind.DOWNLOAD)


def test_the_mixture_of_the_document_composes(tmp_path):
    (text,) = (block.text for block in blocks(ROOT / "docs" / "data.md") if block.language == "yaml")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "new.yaml").write_text(text, encoding="utf-8")
    given = ["stage=coco", "data=new", "paths.coco=a", "paths.flickr30k=b", f"hydra.searchpath=['file://{tmp_path}']"]
    sources = OmegaConf.to_container(chain_configs([*given, "stage.parent=null"])[-1].cfg.data.sources)
    assert sources["own"] is None
    assert (sources["flickr"]["weight"], sources["coco"]["weight"]) == (0.5, 1.0)
    assert sources["flickr"]["data"]["source"] == "flickr30k"
