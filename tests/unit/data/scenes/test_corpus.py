"""`generate`: repeatable, atomic, and clear about what it finds in its folder."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from crossvit.data.scenes import corpus as corpus_module
from crossvit.data.scenes import generate, read_manifest
from crossvit.errors import UserError

TINY = {
    "imagenet_train": 1,
    "imagenet_val": 1,
    "coco_train": 4,
    "coco_val": 2,
    "vsr_train": 8,
    "vsr_dev": 4,
    "vsr_test": 4,
    "vsr_test_compositional": 4,
    "nlvr2_train": 4,
    "nlvr2_dev": 4,
    "nlvr2_test1": 4,
}


def tree(folder):
    """sha256 of every file by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("preset", ["easy", "hard"])
def test_same_arguments_same_bytes_and_another_seed_other_ones(tmp_path, preset):
    first, again, other = (
        generate(tmp_path / name, preset, seed=seed, image_size=24, sizes=TINY)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert tree(first.path) == tree(again.path)
    assert first.images_sha256 == again.images_sha256
    assert other.images_sha256 != first.images_sha256
    assert all(other.annotations[name] != entry for name, entry in first.annotations.items() if "synset" not in name)


def test_bytes_do_not_depend_on_the_process(tmp_path):
    """Sets and dicts keyed by strings are ordered by a per-process hash seed."""
    for seed in ("1", "2"):
        code = f"from crossvit.data.scenes import generate; generate({str(tmp_path / seed)!r}, 'hard', sizes={TINY!r})"
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert tree(tmp_path / "1" / "hard") == tree(tmp_path / "2" / "hard")


def test_manifest_describes_the_files(tmp_path):
    manifest = generate(tmp_path, sizes=TINY, image_size=24)
    files = tree(manifest.path)
    del files["manifest.json"]
    assert {name: entry["sha256"] for name, entry in manifest.annotations.items()}.items() <= files.items()
    pictures = sorted(set(files) - set(manifest.annotations))
    listing = "".join(f"{files[name]}  {name}\n" for name in pictures)
    assert hashlib.sha256(listing.encode()).hexdigest() == manifest.images_sha256
    assert manifest.arguments == {**manifest.arguments, "preset": "easy", "seed": 0, "image_size": 24, "sizes": TINY}


def test_a_second_call_keeps_the_corpus(tmp_path, monkeypatch):
    first = generate(tmp_path, sizes=TINY, image_size=24)
    monkeypatch.setattr(corpus_module, "_make", lambda *_: pytest.fail("made again"))
    assert generate(tmp_path, sizes=TINY, image_size=24) == first


@pytest.mark.parametrize("victim", ["vsr/train.jsonl", "coco/train2017/000000000001.jpg"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_corpus_is_made_again(tmp_path, victim, damage):
    before = tree(generate(tmp_path, sizes=TINY, image_size=24).path)
    file = tmp_path / "easy" / victim
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    assert tree(generate(tmp_path, sizes=TINY, image_size=24).path) == before


def test_other_arguments_in_the_same_folder_are_refused(tmp_path):
    before = tree(generate(tmp_path, sizes=TINY, image_size=24).path)
    with pytest.raises(UserError, match=r"easy holds .*\(seed\).* another place"):
        generate(tmp_path, sizes=TINY, image_size=24, seed=1)
    assert tree(tmp_path / "easy") == before


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "easy").mkdir()
    (tmp_path / "easy" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no scenes corpus"):
        generate(tmp_path, sizes=TINY)
    assert visible(tmp_path / "easy") == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "esay"}, "did you mean 'easy'"),
        ({"image_size": 8}, "image_size=8"),
        ({"image_size": 32.0}, "image_size=32.0"),
        ({"seed": -1}, "seed=-1"),
        ({"sizes": {"coco": 1}}, "no key 'coco'"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        generate(tmp_path / "root", **arguments)
    assert not (tmp_path / "root").exists()


def test_a_root_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the scenes corpus"):
        generate(tmp_path / "file" / "root", sizes=TINY)


def test_a_failure_in_mid_write_leaves_nothing(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, sizes=TINY, image_size=24, progress=stop)
    assert not list(tmp_path.glob("*easy*partial*"))
    assert visible(tmp_path) == []


def test_a_killed_run_leaves_nothing_that_looks_finished_and_the_next_one_cleans_up(tmp_path):
    code = (
        "import time\nfrom crossvit.data.scenes import generate\n"
        f"generate({str(tmp_path)!r}, sizes={TINY!r}, image_size=24, progress=lambda done, total: time.sleep(60))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".easy.partial/imagenet/train/*/*.JPEG")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".easy.partial").is_dir()
    assert visible(tmp_path) == []
    manifest = generate(tmp_path, sizes=TINY, image_size=24)
    assert manifest.is_intact()
    assert not (tmp_path / ".easy.partial").exists()


def test_two_runs_at_once_both_return_the_one_corpus(tmp_path):
    code = (
        "from crossvit.data.scenes import generate\n"
        f"print(generate({str(tmp_path)!r}, sizes={TINY!r}, image_size=24).images_sha256)"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    digests = {run.communicate(timeout=60)[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert digests == {read_manifest(tmp_path / "easy").images_sha256}


def test_progress_counts_every_picture(tmp_path):
    calls = []
    manifest = generate(tmp_path, sizes=TINY, image_size=24, progress=lambda *call: calls.append(call))
    total = sum(counts["images"] for counts in manifest.counts.values())
    assert calls[-1] == (total, total)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_no_torch(tmp_path):
    code = "import sys, crossvit.data.scenes; print(json.dumps('torch' in sys.modules))".replace("sys,", "sys, json,")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) is False
