"""A SLURM of one node on this machine, for as long as it is needed: munged, slurmctld and slurmd in a folder of their own.

`python tests/slurm/cluster.py` starts one and prints what a shell needs to use it, until it is interrupted. Debian's packages slurm-wlm and
munge bring the programs; nothing of their installed configuration is touched, and exactly the processes that were started are ended.
"""

import contextlib
import ctypes
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue")
CONF = """\
ClusterName=crossvit
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
JobRequeue=1
KillWait=20
ReturnToService=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs that are not installed here."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextlib.contextmanager
def one_node() -> Iterator[dict[str, str]]:
    """Starts the node and gives the variables under which sbatch, srun, scontrol and squeue find it.

    Raises RuntimeError with the end of the logs where it does not come up.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: that of a socket has at most 107 characters
    started: list[subprocess.Popen] = []
    variables = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    variables["PATH"] = f"{variables.get('PATH', '')}:/usr/sbin:/sbin"

    def start(*command: str) -> None:
        log = (folder / f"{command[0]}.out").open("wb")
        started.append(
            subprocess.Popen(
                command, env=variables, stdout=log, stderr=log, start_new_session=True, preexec_fn=_end_with_the_parent
            )
        )

    def answers(*command: str) -> str | None:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None

    try:
        _configure(folder)
        files = {name: f"--{name}-file={folder / name}" for name in ("key", "pid", "log", "seed")}
        start("munged", "--foreground", "--force", f"--socket={folder / 'munge.socket'}", *files.values())
        _wait(folder, "munged", lambda: (folder / "munge.socket").exists(), started[-1])
        start("slurmctld", "-D", "-c")
        _wait(folder, "slurmctld", lambda: "UP" in (answers("scontrol", "ping") or ""), started[-1])
        start("slurmd", "-D", "-N", _host())
        _wait(folder, "slurmd", lambda: "idle" in (answers("sinfo", "-h", "-o", "%T") or ""), started[-1])
        yield variables
    finally:
        answers("scancel", "--user", getpass.getuser())
        for process in reversed(started):
            _end(process)
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _configure(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(128))
    (folder / "key").chmod(0o600)
    controller, daemon = _free_ports(2)
    values = {"host": _host(), "folder": folder, "user": getpass.getuser(), "controller": controller, "daemon": daemon}
    (folder / "slurm.conf").write_text(CONF.format(**values, cpus=os.cpu_count()))


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait(folder: Path, name: str, ready, process: subprocess.Popen, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            logs = [
                path.read_text(errors="replace")[-2000:]
                for path in (folder / f"{name}.out", folder / f"{name}.log")
                if path.is_file()
            ]
            raise RuntimeError(f"{name} does not come up:\n" + "\n".join(logs))
        time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    if missing():
        raise SystemExit(f"not installed: {', '.join(missing())} (Debian: apt-get install slurm-wlm munge)")
    with one_node() as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
