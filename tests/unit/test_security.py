"""What could run a stranger's code, or write where it is told to: each place in the source is listed here with its reason."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "crossvit"

JUDGED = {
    ("job.py", "import_module"): "crossvit.commands.<one of COMMANDS>",
    ("metrics/__init__.py", "import_module"): "names of this package's own modules",
    ("__init__.py", "import_module"): "names of this package's own modules",
    ("config/targets.py", "get_object"): "imports what the user's own config names, to look at its keywords",
    (
        "stages/build.py",
        "get_object",
    ): "after the name has been held against the rooms; what it finds is held against them as well",
    ("stages/build.py", "instantiate"): "after require_trusted",
    ("stages/provenance.py", "subprocess.run"): "git, with fixed arguments",
    (
        "data/shards/fetching.py",
        "subprocess.Popen",
    ): "a shell for data.shards=pipe:COMMAND, which only a user's own config holds; else a list",
    ("models/weights.py", "torch.load"): "weights_only=True",
    ("callbacks/checkpoint.py", "torch.load"): "weights_only=True",
    ("sharding.py", "torch.load"): "weights_only=True",
    ("callbacks/preempted.py", "subprocess.run"): "scontrol, with the job's own number",
    ("data/devkit.py", "torch.load"): "weights_only=True",
    ("data/devkit.py", "pickle"): "the name of an exception",
    ("callbacks/checkpoint.py", "pickle"): "the name of an exception",
}
LOADS = {"torch.load", "np.load", "numpy.load"}
DANGEROUS = {
    *LOADS, "eval", "exec", "compile", "__import__", "import_module", "importlib.import_module", "get_object", "get_class",
    "get_method", "instantiate", "hydra.utils.instantiate", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "joblib.load", "shutil.unpack_archive", "torch.hub.load", "load_from_checkpoint",
    "torch.package.PackageImporter", "torch.jit.load",
}  # fmt: skip
METHODS = {"extractall", "extract", "load_from_checkpoint", "unpack_archive"}
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def found(path: Path) -> set[tuple[str, ast.AST]]:
    """(name, node) of every call and import of a file that a judge must see."""
    hits = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            hits |= {(alias.name, node) for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            hits.add((node.module, node))
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in DANGEROUS or name.startswith("subprocess.") or name.rpartition(".")[2] in METHODS:
                hits.add((name, node))
    return hits


ALL = [(str(p.relative_to(SOURCE)), name, node) for p in sorted(SOURCE.rglob("*.py")) for name, node in found(p)]


def test_every_place_is_judged_and_every_judgement_has_its_place():
    assert {(file, name) for file, name, _ in ALL} == set(JUDGED)


@pytest.mark.parametrize(("file", "node"), [(file, node) for file, name, node in ALL if name in LOADS])
def test_loading_runs_no_code(file, node):
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    assert keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False", file


def test_lightning_resumes_without_running_code():
    """`trainer.fit` reads a checkpoint."""
    calls = [
        node
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and any(keyword.arg == "ckpt_path" for keyword in node.keywords)
    ]
    assert calls
    for call in calls:
        assert {"weights_only": "True"}.items() <= {k.arg: ast.unparse(k.value) for k in call.keywords}.items()


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "import pickle",
        "eval(x)",
        "tar.extractall(d)",
        "subprocess.run('x', shell=True)",
        "yaml.load(t)",
    ],
)
def test_the_search_finds_what_it_should(tmp_path, code):
    (tmp_path / "x.py").write_text(code)
    assert found(tmp_path / "x.py")
