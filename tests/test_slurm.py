"""launch/slurm.sbatch under a Slurm of one node that this test starts, and ends.

It needs Debian's slurmctld, slurmd, slurm-client and munge; no root, and nothing of /etc.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from several_hosts import (
    ROOT,
    SHORT,
    SLOWLY,
    check_same,
    compiled_as_usual,
    run_alone,
    texts,
    write_config,
    write_world,
)

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
DAEMONS = ("munged", "slurmctld", "slurmd")
PATIENCE = 600  # seconds, on a busy machine
CONFIG = """
ClusterName=test
SlurmctldHost={host}(localhost)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
FirstJobId={job}
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=localhost NodeHostname={host} NodeAddr=localhost CPUs=2
PartitionName=all Nodes=ALL Default=YES
"""
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not all(shutil.which(name, path=PATH) for name in (*DAEMONS, "sbatch")),
        reason="needs Slurm: apt-get install slurmctld slurmd slurm-client munge",
    ),
]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


class Cluster:
    """A node of two CPUs that is known as localhost."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        # JAX makes the coordinator's port of the job's number.
        config = CONFIG.format(
            folder=folder,
            host=socket.gethostname().split(".")[0],
            user=getpass.getuser(),
            ports=(free_port(), free_port()),
            job=1 + os.getpid() % 4000,
        )
        (folder / "slurm.conf").write_text(config)
        # What this process was told of devices is not what a user's shell has.
        environment = compiled_as_usual(1)
        self.environment = environment | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons = []

    def start(self):
        f = self.folder
        munge = [f"--{name}={f}/munge{end}" for name, end in (("socket", ""), ("pid-file", ".pid"))]
        munge += [f"--key-file={f}/key", f"--seed-file={f}/seed", f"--log-file={f}/munge.log"]
        self._begin("munged", "--foreground", "--force", *munge)
        until((f / "munge").exists, self.said)
        self._begin("slurmctld", "-D")
        self._begin("slurmd", "-D", "-N", "localhost")
        until(lambda: self.tell("sinfo", "-h", "-o", "%T", check=False) == "idle", self.said)

    def _begin(self, name, *arguments):
        with open(self.folder / f"{name}.said", "w") as said:
            command = [shutil.which(name, path=PATH), *arguments]
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=said, stderr=said)
            )

    def said(self):
        return {path.name: path.read_text() for path in self.folder.glob("*.said")}

    def tell(self, *command, check=True):
        """What a command of Slurm prints, given in the repository's root."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments):
        """The number of a new job of two tasks on this machine's CPUs."""
        options = ["--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1"]
        options += [f"--output={self.folder}/%j.log", "--parsable"]
        return self.tell("sbatch", *options, "launch/slurm.sbatch", *arguments)

    def end_of(self, job):
        """How a job ended, once it has, and what its tasks said: (state, exit status, log)."""
        shown = ""

        def ended():
            nonlocal shown
            shown = self.tell("scontrol", "show", "job", job)
            return any(word in shown for word in ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL"))

        until(ended, self.said)
        fields = dict(word.split("=", 1) for word in shown.split() if "=" in word)
        log = (self.folder / f"{job}.log").read_text()
        return fields["JobState"], fields["ExitCode"], log

    def close(self):
        """Ends the jobs first, and then the daemons."""
        self.tell("scancel", "--full", f"--user={getpass.getuser()}", check=False)
        for process in reversed(self._daemons):
            process.terminate()
            process.wait(timeout=60)


def until(true, said):
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, said()
        time.sleep(0.1)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path / "slurm")
    try:
        made.start()
        yield made
    finally:
        made.close()


def test_two_tasks_join_stop_together_and_go_on_to_the_texts_of_one(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    write_config(tmp_path, SHORT, 2)
    # The script runs in the repository's root.
    config = (tmp_path / "config.py").read_text()
    for words in ('"model", ', '"prompts.jsonl', '"demonstrations.jsonl'):
        config = config.replace(words, f'"{tmp_path}/{words[1:]}')
    (tmp_path / "config.py").write_text(config)
    run = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/two", SLOWLY]
    job = cluster.submit(*run)
    metrics = tmp_path / "two" / "sl" / "metrics.jsonl"
    until(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 3, cluster.said)
    cluster.tell("scancel", "--signal=TERM", job)
    state, status, log = cluster.end_of(job)
    assert (state, status) == ("FAILED", f"{128 + signal.SIGTERM}:0"), log
    assert log.count("terminated in sl; the same command goes on") == 2
    done = metrics.read_text().count("\n")
    saved = sorted((tmp_path / "two" / "sl" / "unfinished").glob("*/position.json"))
    assert int(saved[-1].parent.name) == done >= 3

    state, status, log = cluster.end_of(cluster.submit(*run))
    assert (state, status) == ("COMPLETED", "0:0"), log
    assert f"sl: goes on from checkpoint {done}" in log
    shards = sorted(path.name for path in (tmp_path / "two" / "pairs").glob("*.jsonl"))
    assert shards == [f"pairs-0000{host}-of-00002.jsonl" for host in (0, 1)]
    run_alone("one")
    assert set(texts("one")) == {"pairs/pairs"}
    check_same("two", "one")
