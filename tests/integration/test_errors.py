"""What a user gets wrong: one line or two that name it, exit code 2, before anything long begins."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pipelin"], "no command 'pipelin'. Did you mean 'pipeline'?"),
        (["pipeline", "optimizer.lrr=1"], "no key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        (["pipeline", "patch_encoder=resnet8"], "patch_encoder=resnet8: no such option. Did you mean 'resnet18'?"),
        (["train", "scenes.preset=esay"], "scenes.preset=esay: not known. Did you mean 'easy'?"),
        (["train", "+optimizer.algorithm.epss=1", "stage=imagenet"], "takes no 'epss'. Did you mean 'eps'?"),
        (["train", "stage=imagenet", "trainer.precision=8"], "trainer.precision=8"),
    ],
    ids=["command", "key", "option", "value", "keyword under _partial_", "precision"],
)
def test_one_line_before_data_is_read(crossvit, tmp_path, arguments, message):
    done = crossvit(*arguments, *([f"paths.root={tmp_path}"] if "=" in " ".join(arguments) else []))
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("crossvit: error: ")
    assert message in done.err
    assert not (tmp_path / "data").exists()
    assert not list(tmp_path.glob("runs/stages/*"))


def test_a_wrong_root_shows_what_belongs_there(job, tmp_path):
    done = job("train", "stage=real_imagenet", f"paths.root={tmp_path}", "paths.imagenet=/nowhere/imagenet")
    assert done.code == 2
    assert "crossvit: error: stage imagenet: data.root=/nowhere/imagenet is not a folder." in done.err
    assert "train/<" in done.err  # the tree
    assert "Traceback" not in done.err


def test_a_folder_of_something_else(job, tmp_path):
    (tmp_path / "photos" / "train").mkdir(parents=True)
    done = job("train", "stage=real_imagenet", f"paths.root={tmp_path}", f"paths.imagenet={tmp_path}/photos")
    assert done.code == 2
    assert "photos" in done.err
    assert "Traceback" not in done.err


def test_a_batch_larger_than_the_data(vlr, job, tmp_path):
    done = job(*vlr, "data.batch_size=4096")
    assert done.code == 2
    assert "data.batch_size=4096 is more than the 80 training samples" in done.err
    assert not list(tmp_path.glob("runs/stages/*"))


def test_an_unknown_prefix_of_lr_scale(vlr, job, tmp_path):
    done = job(*vlr, "+optimizer.lr_scale.patch_encodr=0.1")
    assert done.code == 2
    assert "stage vlr: optimizer.lr_scale.patch_encodr: no parameter's name begins so" in done.err
    assert not list(tmp_path.glob("runs/stages/*"))
