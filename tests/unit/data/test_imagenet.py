import io
import logging
import sys
import tarfile

import numpy as np
import pytest
import torch

from crossvit.data.imagenet import ImageNetDataModule
from crossvit.errors import UserError


def make(root, **options):
    return ImageNetDataModule(root=root, image_size=8, batch_size=4, **options)


def test_classes_are_the_sorted_folders_with_their_names(imagenet_root):
    data = make(imagenet_root)
    assert data.classes == [("n001", "tench, Tinca tinca"), ("n002", "goldfish")]
    assert data.num_classes == 2


def test_names_are_optional(imagenet_root):
    (imagenet_root / "LOC_synset_mapping.txt").unlink()
    assert make(imagenet_root).classes == [("n001", "n001"), ("n002", "n002")]


def test_labels(imagenet_root):
    data = make(imagenet_root)
    batches = list(data.image_loader("val"))
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5]]
    assert [batch.label.tolist() for batch in batches] == [[0, 0, 0, 1], [1, 1]]
    index = data.index("val")
    assert [index.pictures.names[i].split("/")[0] for i in range(6)] == ["n001"] * 3 + ["n002"] * 3


def test_only_pictures_count(imagenet_root):
    (imagenet_root / "train/n001/notes.txt").write_text("x")
    assert make(imagenet_root).index("train").counts == {"samples": 22, "classes": 2}


def test_kaggle_form(imagenet_root, picture, tmp_path):
    kaggle = tmp_path / "kaggle"
    images = kaggle / "ILSVRC/Data/CLS-LOC"
    images.mkdir(parents=True)
    (imagenet_root / "train").rename(images / "train")
    for i in range(3):
        picture(images / f"val/ILSVRC2012_val_{i:08d}.JPEG", i)
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4" for i, wnid in enumerate(("n002", "n001", "n002"))]
    table = kaggle / "LOC_val_solution.csv"
    table.write_text("ImageId,PredictionString\n" + "\n".join(rows))
    data = make(kaggle)
    data.validate()
    assert data.index("val").labels.tolist() == [1, 0, 1]
    table.write_text("ImageId,PredictionString\n" + "\n".join(rows[:2]))
    with pytest.raises(UserError, match=r"LOC_val_solution\.csv: no known class for ILSVRC2012_val_00000002"):
        make(kaggle).validate()
    table.unlink()
    with pytest.raises(
        UserError, match=r"val holds no class folder, and there is no LOC_val_solution\.csv and no devkit"
    ):
        make(kaggle).validate()


def test_class_without_a_training_folder(imagenet_root, picture):
    picture(imagenet_root / "val/n003/a.JPEG")
    with pytest.raises(UserError, match="n003: this class has no folder"):
        make(imagenet_root).validate()


def test_class_without_a_picture(imagenet_root):
    (imagenet_root / "train/n003").mkdir()
    with pytest.raises(UserError, match="n003: no picture of this class"):
        make(imagenet_root).validate()


def test_missing_split(imagenet_root):
    with pytest.raises(UserError, match=r"test is not a folder(.|\n)*<root>/val/<class>"):
        make(imagenet_root, test_split="test").validate()


@pytest.fixture
def flat_root(imagenet_root, picture):
    """Class folders for training; three validation pictures in a flat folder, numbered 1, 2 and 4."""
    for path in sorted((imagenet_root / "val").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for i in (1, 2, 4):
        picture(imagenet_root / f"val/ILSVRC2012_val_{i:08d}.JPEG", i)
    (imagenet_root / "LOC_synset_mapping.txt").unlink()
    return imagenet_root


def devkit_files() -> dict[str, bytes]:
    """The two files of ILSVRC2012_devkit_t12 that matter: two classes numbered against their order, and their parent."""
    scipy_io = pytest.importorskip("scipy.io")
    fields = (
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    )
    rows = [
        (1, "n002", "goldfish, Carassius auratus", "a fish", 0, np.array([]), 0, 11),
        (2, "n001", "tench, Tinca tinca", "a fish", 0, np.array([]), 0, 11),
        (3, "n000", "fish", "an animal", 2, np.array([1, 2]), 1, 0),
    ]
    synsets = np.zeros((3, 1), dtype=[(name, object) for name in fields])
    for i, row in enumerate(rows):
        synsets[i, 0] = row
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets})
    folder = "ILSVRC2012_devkit_t12/data"
    return {
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n2\n1\n",
        f"{folder}/meta.mat": meta.getvalue(),
    }


def write_devkit(root, packed):
    files = devkit_files()
    if not packed:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("packed", [False, True])
def test_flat_validation_with_the_devkit(flat_root, packed, caplog):
    write_devkit(flat_root, packed)
    data = make(flat_root)
    with caplog.at_level(logging.INFO, "crossvit.data.imagenet"):
        data.validate()
    assert data.index("val").labels.tolist() == [1, 0, 1]
    assert data.classes == [("n001", "tench, Tinca tinca"), ("n002", "goldfish, Carassius auratus")]
    assert "ImageNet train: class folders" in caplog.text
    assert "ImageNet val: a flat folder, classes from ILSVRC2012_" in caplog.text
    assert data.manifest()["sha256"] == make(flat_root).manifest()["sha256"]


def test_devkit_without_scipy(flat_root, monkeypatch):
    write_devkit(flat_root, packed=False)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"meta\.mat needs scipy: pip install 'crossvit\[imagenet\]'"):
        make(flat_root).validate()
    (flat_root / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n" + "".join(f"ILSVRC2012_val_{i:08d},n001 1 2 3 4\n" for i in (1, 2, 4))
    )
    data = make(flat_root)
    assert data.index("val").labels.tolist() == [0, 0, 0]
    assert data.classes == [("n001", "n001"), ("n002", "n002")]


def test_flat_validation_with_what_others_made_of_the_devkit(flat_root):
    labels = flat_root / "imagenet_2012_validation_synset_labels.txt"
    labels.write_text("n002\nn001\nn001\nn002\n")
    assert make(flat_root).index("val").labels.tolist() == [1, 0, 1]
    labels.write_text("n002\nn001\n")
    with pytest.raises(
        UserError, match=r"synset_labels\.txt: no known class for ILSVRC2012_val_00000004\.JPEG \(found None\)"
    ):
        make(flat_root).validate()
    labels.unlink()
    torch.save(
        ({"n001": ("tench",), "n002": ("goldfish", "gold")}, ["n002", "n001", "n001", "n002"]), flat_root / "meta.bin"
    )
    data = make(flat_root)
    assert data.index("val").labels.tolist() == [1, 0, 1]
    assert data.classes[1] == ("n002", "goldfish, gold")


def test_damaged_devkit(flat_root):
    pytest.importorskip("scipy.io")
    archive = flat_root / "ILSVRC2012_devkit_t12.tar.gz"
    archive.write_bytes(b"not a tar")
    with pytest.raises(UserError, match=r"devkit_t12\.tar\.gz: not the devkit"):
        make(flat_root).validate()
    archive.unlink()
    folder = flat_root / "ILSVRC2012_devkit_t12/data"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"ILSVRC2012_validation_ground_truth\.txt: No such file"):
        make(flat_root).validate()
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n")
    (folder / "meta.mat").write_bytes(b"x" * 200)
    with pytest.raises(UserError, match="ground_truth.txt: not the devkit"):
        make(flat_root).validate()


def test_an_empty_root_says_where_the_data_are(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty is empty\.(.|\n)*<root>/train/<class>(.|\n)*https://image-net\.org(.|\n)*138 GB"
    ):
        make(tmp_path / "empty").validate()
    with pytest.raises(UserError, match=r"gone is not a folder\.(.|\n)*Licence"):
        make(tmp_path / "gone").validate()
