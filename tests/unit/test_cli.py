"""The command line: what it imports, exit codes, messages, sweeps."""

import json
import logging
import os
import signal
import subprocess
import sys
import types

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from crossvit import cli, job
from crossvit.errors import Stopped, UserError
from crossvit.signals import answered

HEAVY = {"torch", "lightning", "numpy", "timm", "open_clip", "wandb", "torchmetrics", "pandas"}


@pytest.fixture(autouse=True)
def _logging_restored():
    """Hydra sets up logging for each job: the root's handlers, its level and that of this project's messages."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    levels = {logger: logger.level for logger in (root, logging.getLogger("crossvit"))}
    yield
    root.handlers[:] = handlers
    for logger, level in levels.items():
        logger.setLevel(level)


@pytest.fixture
def train(monkeypatch):
    """Stands in for `crossvit.commands.train`: records the configs it is called with and does what `train.act` says."""
    module = types.ModuleType("crossvit.commands.train")
    module.seen = []
    module.act = lambda cfg: None

    def run(cfg):
        module.seen.append(cfg)
        return module.act(cfg)

    module.run = run
    monkeypatch.setitem(sys.modules, "crossvit.commands.train", module)
    return module


@pytest.fixture
def crossvit(tmp_path, capfd):
    """Runs the command line in this process: (exit code, stdout, stderr). Trains the first stage where no other is named."""

    def call(*arguments: str, runs: bool = True) -> tuple[int, str, str]:
        added = [f"paths.runs={tmp_path}/runs"] if runs else []
        if runs and arguments[0] == "train" and not any("stage=" in a or "chain." in a for a in arguments):
            added.append("stage=imagenet")
        code = cli.main([*arguments, *added])
        return code, *capfd.readouterr()

    return call


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["pipeline", "-h"],
        ["train", "--cfg", "job"],
        ["data", "make", "scenes", "--cfg", "job"],
        ["data", "pack", "--cfg", "job"],
    ],
    ids=" ".join,
)
def test_answers_without_importing_anything_heavy(arguments):
    code = (
        "import sys; from crossvit.cli import main; code = main(sys.argv[1:]); "
        "print(*sorted(m for m in sys.modules if '.' not in m), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stderr.split())


class TestHelp:
    def test_front_page_names_every_command(self, crossvit):
        for arguments in ([], ["--help"]):
            code, out, _ = crossvit(*arguments, runs=False)
            assert code == 0
            assert all(f"  {command} " in out for command in cli.COMMANDS)

    def test_version(self, crossvit):
        code, out, _ = crossvit("--version", runs=False)
        assert code == 0
        assert out.startswith("crossvit ")

    @pytest.mark.parametrize("command", cli.COMMANDS)
    def test_command_page_lists_the_options_there_are(self, crossvit, command):
        code, out, _ = crossvit(command, "--help", runs=False)
        assert code == 0
        assert max(map(len, out.splitlines())) <= 120
        if command not in ("data", "sweep"):
            assert "resnet18, resnet34, resnet50" in out
            assert "trainer        auto, cpu, ddp, ddp_sim" in out

    def test_keys_it_names_exist(self, crossvit, train):
        from crossvit.help import KEYS, TRAINING_KEYS

        for command, keys in {"train": TRAINING_KEYS, **KEYS}.items():
            words = {
                "data": ["data", "make", "scenes"],
                "sweep": ["sweep", "status"],
                "pack": ["data", "pack"],
                "verify": ["data", "verify"],
            }
            words = words.get(command, [command])
            code, _, err = crossvit(*words, *(key.strip("'") for key in keys), "--cfg", "job", runs=False)
            assert code == 0, err

    @pytest.mark.slow
    def test_examples_compose(self, crossvit):
        import shlex

        from crossvit.help import EXAMPLES

        for line in (line for lines in EXAMPLES.values() for line in lines):
            command, *arguments = shlex.split(line.partition("  ")[0])
            assert command == "crossvit"
            if "-m" in arguments or "--cfg" in arguments:
                continue
            code, _, err = crossvit(*arguments, "--cfg", "job", runs=False)
            assert code == 0, err

    def test_a_group_that_is_taken_out_starts_no_sweep(self, crossvit, train, tmp_path):
        assert crossvit("train", "~sweep", "~cluster")[0] == 0
        assert not (tmp_path / "runs" / "sweeps").exists()

    def test_hydras_own_page(self, crossvit):
        with pytest.raises(SystemExit) as left:
            crossvit("train", "--hydra-help", runs=False)
        assert left.value.code == 0


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["trian"], "no command 'trian'. Did you mean 'train'?"),
            (["train", "optimizer.lrr=1"], "no key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
            (["train", "patch_encoder=resnet8"], "patch_encoder=resnet8: no such option. Did you mean 'resnet18'?"),
            (["train", "scenes.preset=esay"], "scenes.preset=esay: not known. Did you mean 'easy'?"),
            (["train", "+fusion.widht=3"], "Did you mean 'width'?"),
            (["train", "-cn", "trian"], "no primary config 'trian'"),
            (["train", "--run", "-m"], "Only one of"),
            (["train", "run_name=a-{0..3}"], "braces need quotes of their own: \"run_name='a-{0..3}'\""),
            (["train", "-m", "paths.coco=a,b"], "paths.coco says where things lie"),
            (["train", "-m", "logger=csv,none"], "logger says where things lie"),
            (["train", "~objective"], "objective: a stage needs one; leave ~objective out, or choose objective=OPTION"),
            (["train", "~optimizer"], "optimizer: a stage needs one; leave ~optimizer out"),
            (["train", "~callbacks"], "callbacks: a stage needs one; leave ~callbacks out, or choose callbacks=quiet"),
            (["train", "~data"], "data: a stage needs one; leave ~data out"),
            (["train", "~trainer"], "trainer: a stage needs one; leave ~trainer out"),
            (["train", "~scheduler"], "scheduler: a stage needs one; leave ~scheduler out"),
            (["train", "~fusion"], "fusion: a stage needs one; leave ~fusion out"),
            (["train", "~logger"], "logger: a stage needs one; leave ~logger out, or choose logger=none"),
            (["train", "objective=null"], "objective=null: leave it out. Choose one of: "),
            (["sweep", "status", "logger=csv"], "sweep has no config group 'logger': use it with another command"),
            (["data"], "usage: crossvit data make scenes"),
            (["data", "mkae", "scenes"], "usage: crossvit data make scenes"),
        ],
    )
    def test_one_line_and_code_2(self, crossvit, train, arguments, message):
        code, _, err = crossvit(*arguments)
        assert code == 2
        assert err.startswith("crossvit: error: ")
        assert message in err
        assert err.count("\n") == 1
        assert not train.seen

    def test_a_stray_rank_silences_nothing(self, crossvit, train, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        code, _, err = crossvit("train", "optimizer.lr=-1")
        assert code == 2 and err.startswith("crossvit: error: optimizer.lr")

    @pytest.fixture
    def second_of_two(self, monkeypatch):
        for name, value in {"TORCHELASTIC_RUN_ID": "some", "RANK": "1", "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)

    def test_a_process_behind_the_first_waits_to_be_ended(self, crossvit, train, second_of_two, monkeypatch):
        monkeypatch.setattr(job.time, "sleep", lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
        assert crossvit("train", "optimizer.lr=-1")[::2] == (2, "")

    def test_it_may_be_interrupted_meanwhile(self, crossvit, train, second_of_two, monkeypatch):
        def interrupted(seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(job.time, "sleep", interrupted)
        assert crossvit("train", "optimizer.lrr=1")[::2] == (2, "")

    def test_a_process_behind_the_first_speaks_where_it_is_alone(self, crossvit, train, second_of_two, monkeypatch):
        waited = []
        monkeypatch.setattr(job.time, "sleep", waited.append)
        code, _, err = crossvit("train", "optimizer.lr=-1")
        assert code == 2 and err.startswith("crossvit: error: optimizer.lr")
        assert waited == [job.SECONDS_TO_SPEAK]

    def test_a_cluster_that_is_not_there(self, crossvit, train, monkeypatch):
        monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
        code, _, err = crossvit("train", "cluster=slurm", "seed=0,1")
        assert (
            code == 2
            and "crossvit: error: cluster=slurm: there is no srun here: start it on a machine of the cluster" in err
        )
        assert "Traceback" not in err

    def test_a_bad_value_leaves_no_run_directory(self, crossvit, train, tmp_path):
        assert crossvit("train", "seed=-1")[0] == 2
        assert not list((tmp_path / "runs" / "train").iterdir())

    def test_an_error_of_the_command(self, crossvit, train):
        def act(cfg):
            raise UserError("data.root=/nowhere: no such folder")

        train.act = act
        code, _, err = crossvit("train")
        assert (code, err) == (2, "crossvit: error: data.root=/nowhere: no such folder\n")

    def test_an_error_behind_instantiate(self, crossvit, train):
        def act(cfg):
            try:
                raise UserError("no such file")
            except UserError as error:
                raise RuntimeError("Error in call to target") from error

        train.act = act
        assert crossvit("train")[::2] == (2, "crossvit: error: no such file\n")

    def test_a_bug_shows_where_and_gives_code_1(self, crossvit, train):
        def act(cfg):
            return 1 / 0

        train.act = act
        code, _, err = crossvit("train")
        assert code == 1
        assert err.count("ZeroDivisionError: division by zero") == 1
        assert "in act" in err

    @pytest.mark.parametrize("lightning", [False, True], ids=["plain", "turned into an exit"])
    def test_ctrl_c(self, crossvit, train, lightning):
        def act(cfg):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                if lightning:
                    sys.exit(1)
                raise

        train.act = act
        assert crossvit("train")[0] == 130


class TestJob:
    def test_the_command_gets_a_read_only_config_and_the_run_directory_holds_it(self, crossvit, train, tmp_path):
        assert crossvit("train", "seed=3")[0] == 0
        (cfg,) = train.seen
        with pytest.raises(ReadonlyConfigError):
            cfg.seed = 4
        directory = tmp_path / "runs" / "train" / "imagenet-conv_stem-seed3"
        assert cfg.paths.run_dir == str(directory)
        written = OmegaConf.load(directory / "config.yaml")
        assert (written.seed, written.run_name, written.data.seed) == (3, "imagenet-conv_stem-seed3", 3)
        assert "${" not in (directory / "config.yaml").read_text()
        assert OmegaConf.load(directory / "overrides.yaml") == [
            "seed=3",
            f"paths.runs={tmp_path}/runs",
            "stage=imagenet",
        ]

    def test_the_working_directory_stays(self, crossvit, train):
        train.act = lambda cfg: train.seen.append(os.getcwd())
        crossvit("train")
        assert train.seen[-1] == os.getcwd()

    def test_chain_overrides_of_the_stage_itself_are_in(self, crossvit, train):
        assert crossvit("train", "chain.vlr=['optimizer.lr=0.5']")[0] == 0
        assert train.seen[0].optimizer.lr == 0.5

    def test_every_stage_of_the_chain_is_checked_first(self, crossvit, train):
        code, _, err = crossvit("train", "chain.imagenet=['optimizer.lr=-1']")
        assert code == 2
        assert "stage imagenet: optimizer.lr=-1" in err
        assert not train.seen

    def test_flags_may_stand_anywhere(self, crossvit, train):
        code, out, _ = crossvit("train", "seed=3", "--cfg", "job", "model.width=8")
        assert code == 0
        assert "seed: 3" in out
        assert not train.seen

    def test_cfg_resolved(self, crossvit):
        code, out, err = crossvit("train", "--cfg", "job", "--resolve")
        assert code == 0, err
        assert "run_name: imagenet-conv_stem-seed0" in out

    def test_a_directory_of_the_users_own(self, crossvit, train, tmp_path):
        (tmp_path / "mine" / "experiment").mkdir(parents=True)
        (tmp_path / "mine" / "experiment" / "small.yaml").write_text("# @package _global_\nmodel:\n  width: 8\n")
        arguments = ["--config-dir", str(tmp_path / "mine")]
        code, _, err = crossvit("train", "experiment=small", *arguments)
        assert code == 0, err
        assert train.seen[0].model.width == 8
        assert "Did you mean 'small'?" in crossvit("train", "experiment=smal", *arguments)[2]
        assert "Did you mean 'model.width'?" in crossvit("train", "model.widht=3", *arguments)[2]

    def test_data_make_scenes(self, crossvit, monkeypatch):
        module = types.ModuleType("crossvit.commands.data")
        module.run = lambda cfg: seen.append(cfg)
        seen = []
        monkeypatch.setitem(sys.modules, "crossvit.commands.data", module)
        assert crossvit("data", "make", "scenes", "scenes.preset=hard")[0] == 0
        assert (seen[0].make, seen[0].scenes.preset) == ("scenes", "hard")
        assert "Did you mean 'scenes'?" in crossvit("data", "make", "scnes")[2]


class TestSweep:
    def test_a_job_for_each_combination_in_its_own_directory(self, crossvit, train):
        assert crossvit("train", "-m", "patch_encoder=resnet18,resnet34", "stage=imagenet,coco")[0] == 0
        names = [cfg.paths.run_dir.rpartition("/")[2] for cfg in train.seen]
        assert names == [f"{s}-{p}-seed0" for p in ("resnet18", "resnet34") for s in ("imagenet", "coco")]
        assert [cfg.stage.name for cfg in train.seen] == ["imagenet", "coco"] * 2

    def test_the_others_go_on_after_a_failure(self, crossvit, train):
        def act(cfg):
            if cfg.seed == 1:
                raise UserError("seed 1 is unlucky")

        train.act = act
        code, _, err = crossvit("train", "-m", "seed=0,1,2")
        assert code == 2
        assert [cfg.seed for cfg in train.seen] == [0, 1, 2]
        assert err.count("crossvit: error: seed 1 is unlucky") == 1

    def test_a_job_that_sbatch_refuses(self, crossvit, train, tmp_path, monkeypatch):
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
        for name in ("sbatch", "srun"):
            (tmp_path / name).write_text(
                "#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n"
            )
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        code, _, err = crossvit("train", "cluster=slurm", "cluster.partition=gpu")
        assert code == 2
        assert "crossvit: error: cluster=slurm: sbatch: error: invalid partition specified: gpu; sinfo says" in err
        assert "Traceback" not in err
        assert not train.seen

    def test_a_misspelt_key_stops_it_before_the_first_job(self, crossvit, train):
        code, _, err = crossvit("train", "-m", "seed=0,1", "optimizer.lrr=3")
        assert code == 2
        assert "Did you mean 'optimizer.lr'?" in err
        assert not train.seen


class TestSweepRecord:
    """What the jobs of a sweep leave behind, and what of it `crossvit sweep` shows."""

    @pytest.mark.slow
    def test_a_sweep_that_is_cut_off_and_started_again(self, crossvit, train, tmp_path):
        from crossvit.sweeps import Sweep

        seen = []

        def states():
            (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
            return [job.state for job in Sweep.read(folder).jobs]

        def act(cfg):
            seen.append(states())
            if cfg.seed == 0:
                raise UserError("seed 0 is unlucky")
            if len(seen) == 2:
                raise KeyboardInterrupt

        train.act = act
        assert crossvit("train", "sweep=seeds", "seed=0,1,2")[0] == 130
        assert seen == [["running", "missing", "missing"], ["failed", "running", "missing"]]
        assert states() == ["failed", "interrupted", "missing"]
        (folder,) = (tmp_path / "runs" / "sweeps").iterdir()
        assert folder.name.startswith("seeds-")
        code, out, _ = crossvit("sweep", "status")
        assert code == 0
        assert {"seed=1", "interrupted"} < set(out.split()) and "seed 0 is unlucky" in out
        assert f"1 failed, 1 interrupted, 1 missing\nsweep: {folder}\n" in out

        def learn(cfg):
            with open(f"{cfg.paths.run_dir}/chain.json", "w") as chain:
                json.dump([{"stage": cfg.stage.name}], chain)
            return 0.25 + cfg.seed / 4

        train.act = learn
        code, _, err = crossvit("train", "seed=0,1,2", "sweep=seeds")
        assert code == 0
        assert err.splitlines()[-1] == f"sweep {folder.name}: 3 finished; crossvit sweep status {folder.name}"
        code, out, err = crossvit("sweep", "report", folder.name)
        assert code == 0, err
        assert "val/acc@1: 50.0 ± 25.0" in " ".join(out.split())
        cells = json.loads((folder / "table.json").read_text())
        assert [(c["row"], c["backbone"], c["task"], c["seed"], c["value"]) for c in cells] == [
            ("all seeds", "ConvStem", "validation", seed, 0.25 + seed / 4) for seed in range(3)
        ]
        assert (folder / "table.csv").read_text().count("\n") == 4

    def test_a_tuned_sweep_goes_on_until_it_has_its_trials(self, crossvit, train, tmp_path):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="needs pip install crossvit[tune]")

        def act(cfg):
            if len(train.seen) == 2:
                raise UserError("the second is unlucky")
            return cfg.optimizer.lr

        train.act = act
        for trials, begun in ((2, 2), (2, 3), (2, 3), (3, 4)):  # the one that fails does not count
            code, _, err = crossvit("train", "sweep=tune", f"tune.trials={trials}")
            assert (code, len(train.seen)) == (0, begun), err
        folder = tmp_path / "runs" / "sweeps" / "tune-imagenet"
        best = OmegaConf.load(folder / "optimization_results.yaml")
        rates = [cfg.optimizer.lr for cfg in train.seen]
        assert best.best_value == max(rate for number, rate in enumerate(rates) if number != 1)
        assert all(1e-4 <= rate <= 1e-2 for rate in rates)
        assert "3 finished, 1 failed" in crossvit("sweep", "status", "tune-imagenet")[1]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["sweep"], "usage: crossvit sweep status"),
            (["sweep", "stauts"], "usage: crossvit sweep status"),
            (["sweep", "status"], "holds no sweep: start one with crossvit train -m"),
            (["train", "sweep=sedes"], "sweep=sedes: no such option. Did you mean 'seeds'?"),
        ],
    )
    def test_misuse(self, crossvit, train, words, message):
        code, _, err = crossvit(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err

    def test_processes_that_would_run_the_command_again_are_refused(self, crossvit, train):
        """Each would train other hyper-parameters, and nobody would see it."""
        code, _, err = crossvit("train", "-m", "seed=0", "trainer.strategy=ddp", "trainer.devices=2")
        assert code == 2 and not train.seen
        for way in ("trainer=ddp or trainer.strategy=ddp_spawn", "cluster=slurm", "one run at a time, without -m"):
            assert way in err
        assert crossvit("train", "-m", "seed=0", "trainer=ddp_sim")[0] == 0
        assert len(train.seen) == 1

    def test_one_run_of_them_is_refused_too(self, crossvit, train):
        code, _, err = crossvit("train", "trainer.strategy=ddp", "trainer.devices=2")
        assert code == 2 and not train.seen
        assert "would start the whole command once for each device" in err and "torchrun" in err

    @pytest.mark.parametrize(
        ("variables", "words", "message"),
        [
            (
                {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2"},
                ["train", "-m", "seed=0"],
                "a sweep under torchrun",
            ),
            (
                {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
                ["study", "arm=base", "seed=0"],
                "start it without srun",
            ),
            ({"WORLD_SIZE": "2"}, ["train"], "WORLD_SIZE is set: start one process"),
        ],
    )
    def test_several_processes_for_what_one_does_are_refused(
        self, crossvit, train, monkeypatch, variables, words, message
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        code, _, err = crossvit(*words)
        assert code == 2 and not train.seen
        assert message in err

    @pytest.mark.parametrize(("option", "extra"), [("sweep=tune", "tune"), ("cluster=slurm", "slurm")])
    def test_a_package_that_is_not_there_is_named(self, crossvit, train, monkeypatch, option, extra):
        """Its config composes without it."""
        from hydra.core.plugins import Plugins

        known = Plugins.instance().class_name_to_class
        for name in [name for name in known if name.startswith("hydra_plugins.")]:
            monkeypatch.delitem(known, name)
        assert crossvit("train", option, "--cfg", "job")[0] == 0
        code, _, err = crossvit("train", option)
        assert (code, err.splitlines()[-1]) == (
            2,
            f"crossvit: error: needs a package that is not installed: pip install crossvit[{extra}]",
        )


class TestVerify:
    """`crossvit data verify` on a folder of two captioned pictures a split."""

    @pytest.fixture
    def root(self, tmp_path):
        from PIL import Image

        root = tmp_path / "coco"
        (root / "annotations").mkdir(parents=True)
        for first, split in ((0, "train"), (2, "val")):
            (root / f"{split}2017").mkdir()
            images = [{"id": first + i, "file_name": f"{first + i}.png"} for i in range(2)]
            for image in images:
                Image.effect_noise((20, 20), 50 + image["id"]).convert("RGB").save(
                    root / f"{split}2017" / image["file_name"]
                )
            notes = [{"id": i["id"], "image_id": i["id"], "caption": f"picture {i['id']}"} for i in images]
            (root / f"annotations/captions_{split}2017.json").write_text(
                json.dumps({"images": images, "annotations": notes})
            )
        return root

    def test_exit_codes(self, crossvit, root, tmp_path):
        command = ["data", "verify", "data=coco", f"data.root={root}", "workers=1"]
        code, out, _ = crossvit(*command)
        assert code == 0 and out.endswith("no fault\n")
        (root / "val2017" / "2.png").write_bytes((root / "train2017" / "1.png").read_bytes())
        code, out, err = crossvit(*command, "json=true", "run_name=again")
        report = json.loads(out)
        assert code == 1 and [found["check"] for found in report["findings"] if found["fault"]] == ["leaks"]
        assert err.splitlines()[-1].startswith("crossvit: 1 faults; all of it in ")
        assert json.loads((tmp_path / "runs/verify/again/report.json").read_text()) == report
        assert crossvit(*command, "allow=[leaks]")[0] == 0
        assert crossvit(*command, "splits=val")[0] == 0

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("data.root=/nowhere", "data.root=/nowhere is not a folder."),
            ("splits=[tset]", "captions_tset2017.json is not there (nor is the form of 2014)"),
            ("splits=[]", "splits=[]: name the splits to check"),
            ("workers=0", "workers=0: must be a whole number >= 1"),
            ("allow=[leak]", "allow=leak is not one of"),
        ],
    )
    def test_misuse(self, crossvit, root, given, message):
        code, out, err = crossvit("data", "verify", "data=coco", f"data.root={root}", given)
        assert (code, out) == (2, "")
        assert any(line.startswith("crossvit: error: ") and message in line for line in err.splitlines())

    def test_a_mixture_is_checked_by_its_sources(self, crossvit):
        code, _, err = crossvit("data", "verify", "data=mixture")
        assert (code, err) == (
            2,
            "crossvit: error: data=mixture: check each of its sources by itself, e.g. data=coco.\n",
        )

    def test_help(self, crossvit):
        code, out, _ = crossvit("data", "verify", "--help", runs=False)
        assert code == 0 and "usage: crossvit data verify" in out and "karpathy_coco" in out and "fusion" not in out


def test_what_a_library_makes_of_a_signal_is_still_its_end():
    with pytest.raises(Stopped) as leaving, answered():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise ValueError("cannot compose") from error
    assert leaving.value.code == 128 + signal.SIGTERM
