import pytest

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
    with pytest.raises(UserError, match=r"val holds no class folder, and there is no LOC_val_solution\.csv"):
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
