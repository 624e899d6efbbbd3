"""Compiles the steps of README.md's table ahead of time, and writes the table.

    python launch/compiled.py [--only=NAME ...] [--table]

Each case is a run of `cai_jax.compile_ahead`, with whatever flags the environment has; what it says
is kept in launch/compiled.json, under the case's name; the table is written between two marks in
launch/README.md. --only compiles some cases, --table none. A case takes minutes and some GB.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "launch" / "compiled.json"
README = ROOT / "launch" / "README.md"
MARKS = "<!-- compiled: begin, written by launch/compiled.py -->", "<!-- compiled: end -->"
GIB = 2**30
KEPT = (
    *("step", "kind", "devices", "mesh", "batch", "parameters", "peak_bytes", "arguments_bytes"),
    *("temporaries_bytes", "held_bytes", "hbm_capacity_bytes", "fits", "flops", "hbm_bytes"),
    *("collective_bytes", "sent_bytes", "required_sent_bytes", "tokens", "estimated_seconds"),
    *("estimated_mfu", "compile_seconds"),
)


class Case(NamedTuple):
    """One line of the table."""

    config: str
    chips: str  # as they are rented
    topology: str
    step: str
    changes: dict[str, Any]  # keys of the config


LONG = {"sequence_length": 4096, "remat": "layer"}


def _changes(step: str, mesh: tuple[int, int, int], **of_step: Any) -> dict[str, Any]:
    axes = dict(zip(("data", "fsdp", "tensor"), mesh))
    return {
        **{f"mesh.{axis}": size for axis, size in axes.items()},
        **{f"steps.{step}.{name}": value for name, value in of_step.items()},
    }


CASES = {
    "8b-finetune-v6e-16": Case(
        "configs/llama31_8b.py",
        "v6e-16",
        "v6e:4x4",
        "sl_cai",
        _changes("sl_cai", (1, 16, 1), rows=16, **LONG),
    ),
    "8b-finetune-v6e-16-32-rows": Case(
        "configs/llama31_8b.py",
        "v6e-16",
        "v6e:4x4",
        "sl_cai",
        _changes("sl_cai", (1, 16, 1), rows=32, **LONG),
    ),
    "8b-finetune-v5p-16": Case(
        "configs/llama31_8b.py",
        "v5p-16",
        "v5p:2x2x2",
        "sl_cai",
        _changes("sl_cai", (1, 8, 1), rows=8, **LONG),
    ),
    "8b-finetune-v5e-16": Case(
        "configs/llama31_8b.py",
        "v5e-16",
        "v5e:4x4",
        "sl_cai",
        _changes("sl_cai", (1, 16, 1), rows=16, moment_dtype="bfloat16", **LONG),
    ),
    "8b-ppo-v6e-16": Case(
        "configs/llama31_8b.py",
        "v6e-16",
        "v6e:4x4",
        "rl_cai",
        _changes("rl_cai", (1, 16, 1), remat="layer", prompts_per_iteration=64),
    ),
    "8b-ppo-v5p-16": Case(
        "configs/llama31_8b.py",
        "v5p-16",
        "v5p:2x2x2",
        "rl_cai",
        _changes("rl_cai", (1, 8, 1), remat="layer", prompts_per_iteration=64),
    ),
    "8b-preference-v6e-16": Case(
        "configs/llama31_8b.py",
        "v6e-16",
        "v6e:4x4",
        "preference",
        _changes("preference", (1, 16, 1), pairs=32, remat="layer"),
    ),
    "52b-finetune-v5p-256": Case(
        "configs/paper_52b.py",
        "v5p-256",
        "v5p:4x4x8",
        "sl_cai",
        _changes("sl_cai", (1, 128, 1), rows=256, accumulate=1, **LONG),
    ),
    "70b-finetune-v5p-128": Case(
        "configs/llama31_70b.py",
        "v5p-128",
        "v5p:4x4x4",
        "sl_cai",
        _changes("sl_cai", (1, 64, 1), rows=64, **LONG),
    ),
}


def command(case: Case) -> list[str]:
    """What compiles it, without `python`."""
    return [
        *("-m", "cai_jax.compile_ahead", f"--config={case.config}", f"--topology={case.topology}"),
        f"--step={case.step}",
        *(f"--config.{name}={value}" for name, value in case.changes.items()),
    ]


def compiled(case: Case) -> dict[str, Any]:
    """What compile_ahead prints of it, as far as it is kept; or the line with which it refuses."""
    line = [sys.executable, *command(case)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]}
    found = json.loads(done.stdout)
    return {name: found[name] for name in KEPT} | {"by": versions()}


def versions() -> str:
    """Of the compiler."""
    names = []
    for name in ("jax", "libtpu"):
        try:
            names.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)


def table(results: dict[str, Any]) -> str:
    """The table's text, in the order of CASES."""
    lines = [
        "| chips | step | mesh, batch | peak on a device | FLOPs | HBM | sent, of needed | "
        "estimated time | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        if name in results:
            lines.append(f"| {' | '.join(row(name, case, results[name]))} |")
    by = sorted({found["by"] for found in results.values() if "by" in found})
    return "\n".join(
        [*lines, "", f"By {'; '.join(by)}. The commands: `python` and", ""]
    ) + commands(results)


def commands(results: dict[str, Any]) -> str:
    """One for each line of the table."""
    lines = [f"    {shlex.join(command(case))}" for name, case in CASES.items() if name in results]
    return "\n".join(["", *lines])


def row(name: str, case: Case, found: dict[str, Any]) -> list[str]:
    """The columns of one case."""
    if "refused" in found:
        return [case.chips, name, found["refused"], *[""] * 6]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    batch = ", ".join(f"{size} {unit}" for unit, size in found["batch"].items())
    capacity = found["hbm_capacity_bytes"]
    memory = f"{found['peak_bytes'] / GIB:.1f} GiB of {capacity / GIB:.0f}"
    if not found["fits"]:
        return [case.chips, name, f"{mesh}; {batch}", f"{memory}: does not fit", *[""] * 5]
    needed = found["required_sent_bytes"]
    sent = f"{found['sent_bytes'] / 1e9:.0f} GB"
    if needed:
        sent += f", {found['sent_bytes'] / needed:.2f} x"
    return [
        f"{case.chips} ({found['devices']} devices)",
        name,
        f"{mesh}; {batch.replace('_', ' ')}",
        memory,
        f"{found['flops'] / 1e12:.0f} T",
        f"{found['hbm_bytes'] / 1e9:.0f} GB",
        sent,
        f"{found['estimated_seconds']:.2f} s",
        f"{100 * found['estimated_mfu']:.0f} %",
    ]


def write_table(results: dict[str, Any]) -> None:
    """Puts the table between its marks in the README."""
    text = README.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{after}")


def main() -> None:
    """Runs the job."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--only", action="append", metavar="NAME", choices=list(CASES))
    flags.add_argument("--table", action="store_true", help="compile nothing")
    options = flags.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in [] if options.table else options.only or CASES:
        results[name] = compiled(CASES[name])
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps(results[name]), flush=True)
    write_table(results)


if __name__ == "__main__":
    main()
