"""Where a result comes from."""

import subprocess

from crossvit.stages.provenance import environment, git_commit


def test_another_projects_checkout_is_not_ours(tmp_path):
    assert git_commit(tmp_path) is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_commit(tmp_path) is None


def test_changed_files_are_marked(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True,
            capture_output=True,
        )

    package = tmp_path / "src" / "crossvit"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    git("init", "-q")
    assert git_commit(package) is None  # nothing committed yet
    git("add", ".")
    git("commit", "-q", "-m", "a")
    clean = git_commit(package)
    assert len(clean) == 40
    (package / "a.py").write_text("2")
    assert git_commit(package) == clean + "+"


def test_environment_names_versions_and_command():
    record = environment()
    assert record["versions"]["lightning"].startswith("2.")
    assert record["command"]
