"""Compiles the steps of README.md's table ahead of time, and writes the table.

    python launch/compiled.py [--only=NAME ...] [--again] [--table]

Each case is a run of `cai_jax.compile_ahead`, with whatever flags the environment has; what it says
is kept in launch/compiled.json, under the case's name; the table is written between two marks in
launch/README.md, and the plot of weak scaling into docs/weak_scaling.svg. A case whose command was
compiled by the same versions is not compiled again, so that a run that was stopped goes on; --again
compiles it nevertheless. --only compiles some cases, --table none. A case takes minutes and GB.
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
PLOT = ROOT / "docs" / "weak_scaling.svg"
MARKS = "<!-- compiled: begin, written by launch/compiled.py -->", "<!-- compiled: end -->"
GIB = 2**30
KEPT = (
    *("step", "kind", "devices", "mesh", "batch", "parameters", "peak_bytes", "arguments_bytes"),
    *("temporaries_bytes", "held_bytes", "hbm_capacity_bytes", "fits", "flops", "hbm_bytes"),
    *("collective_bytes", "sent_bytes", "required_sent_bytes", "tokens", "estimated_seconds"),
    *("estimated_mfu", "compile_seconds"),
)
OF_PROGRAM = ("name", "peak_bytes", "estimated_seconds", "sent_bytes", "required_sent_bytes")


class Case(NamedTuple):
    """One line of the table."""

    config: str
    chips: str  # as they are rented
    topology: str
    step: str
    changes: dict[str, Any]  # keys of the config


WEAK = (8, 64, 512)  # simulated devices, with the same rows on each
TOPOLOGIES = {
    **{"v5e-16": "v5e:4x4", "v6e-16": "v6e:4x4", "v6e-256": "v6e:16x16"},
    **{"v5p-16": "v5p:2x2x2", "v5p-128": "v5p:4x4x4", "v5p-256": "v5p:4x4x8"},
    **{f"cpu-{devices}": f"cpu:{devices}" for devices in WEAK},
}
CONFIGS = {
    "1b": "configs/llama32_1b.py",
    "8b": "configs/llama31_8b.py",
    "70b": "configs/llama31_70b.py",
    "52b": "configs/paper_52b.py",
}
STEPS = {"finetune": "sl_cai", "preference": "preference", "ppo": "rl_cai", "decode": "compare"}


def case(model: str, kind: str, chips: str, mesh: tuple[int, int, int], **of_step: Any) -> Case:
    """A step of a model's config on chips; the mesh is data x fsdp x tensor."""
    step = STEPS[kind]
    where = "sampling_mesh" if kind == "decode" else "mesh"
    changes = {f"{where}.{axis}": size for axis, size in zip(("data", "fsdp", "tensor"), mesh)}
    changes |= {f"steps.{step}.{name}": value for name, value in of_step.items()}
    return Case(CONFIGS[model], chips, TOPOLOGIES[chips], step, changes)


LAYER = {"remat": "layer"}
LONG = LAYER | {"sequence_length": 4096}
SMALL = {"moment_dtype": "bfloat16"}  # for chips of 16 GiB

CASES = {
    "8b-finetune-v6e-16": case("8b", "finetune", "v6e-16", (1, 16, 1), rows=16, **LONG),
    "8b-finetune-v5p-16": case("8b", "finetune", "v5p-16", (1, 8, 1), rows=8, **LONG),
    "8b-finetune-v5e-16": case("8b", "finetune", "v5e-16", (1, 16, 1), rows=16, **SMALL, **LONG),
    "70b-finetune-v5p-128": case("70b", "finetune", "v5p-128", (1, 16, 4), rows=64, **LONG),
    "70b-finetune-v6e-256": case("70b", "finetune", "v6e-256", (1, 64, 4), rows=192, **LONG),
    "52b-finetune-v5p-256": case(
        "52b", "finetune", "v5p-256", (1, 16, 8), rows=128, accumulate=1, **LONG
    ),
    "8b-ppo-v6e-16": case("8b", "ppo", "v6e-16", (1, 4, 4), prompts_per_iteration=64, **LAYER),
    "8b-ppo-v5p-16": case("8b", "ppo", "v5p-16", (1, 8, 1), prompts_per_iteration=64, **LAYER),
    "8b-ppo-v5e-16": case(
        "8b", "ppo", "v5e-16", (1, 4, 4), prompts_per_iteration=32, **SMALL, **LAYER
    ),
    "52b-ppo-v5p-256": case(
        "52b", "ppo", "v5p-256", (1, 16, 8), prompts_per_iteration=256, **LAYER
    ),
    "8b-preference-v6e-16": case("8b", "preference", "v6e-16", (1, 16, 1), pairs=64, **LAYER),
    "8b-preference-v5p-16": case("8b", "preference", "v5p-16", (1, 8, 1), pairs=32, **LAYER),
    "8b-preference-v5e-16": case(
        "8b", "preference", "v5e-16", (1, 16, 1), pairs=32, **SMALL, **LAYER
    ),
    # Weights are read for each token: whole on each of the devices that split the batch, since what
    # fsdp splits would be sent for each token.
    "8b-decode-v6e-16": case("8b", "decode", "v6e-16", (2, 1, 8), batch_size=256),
    "8b-decode-v5p-16": case("8b", "decode", "v5p-16", (1, 1, 8), batch_size=256),
    "8b-decode-v5e-16": case("8b", "decode", "v5e-16", (2, 1, 8), batch_size=128),
    "70b-decode-v5p-128": case("70b", "decode", "v5p-128", (8, 1, 8), batch_size=256),
    "70b-decode-v6e-256": case("70b", "decode", "v6e-256", (32, 1, 8), batch_size=512),
    "52b-decode-v5p-256": case("52b", "decode", "v5p-256", (8, 1, 16), batch_size=256),
}


WEAK_CASES = {
    f"1b-weak-{devices}": case(
        "1b", "finetune", f"cpu-{devices}", (1, devices, 1), rows=devices, **LAYER
    )
    for devices in WEAK
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
    asked = {"command": shlex.join(command(case)), "by": versions()}
    if done.returncode:
        return {"refused": done.stderr.strip().splitlines()[-1]} | asked
    found = json.loads(done.stdout)
    programs = [{name: of[name] for name in OF_PROGRAM} for of in found["programs"]]
    return {name: found[name] for name in KEPT} | {"programs": programs} | asked


def is_known(case: Case, found: dict[str, Any]) -> bool:
    """Whether `found` is of the case as it is now, and of these versions."""
    return (found["command"], found["by"]) == (shlex.join(command(case)), versions())


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
        "estimated time | MFU | chip-hours a billion tokens |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in CASES.items():
        columns = [case.chips, name, "not compiled yet", *[""] * 7]
        if name in results:
            columns = row(name, case, results[name])
        lines.append(f"| {' | '.join(columns)} |")
    by = sorted({found["by"] for found in results.values()})
    return "\n".join(
        [*lines, "", f"By {'; '.join(by)}. The commands: `python` and", ""]
    ) + commands(results)


def commands(results: dict[str, Any]) -> str:
    """One for each line of the table."""
    return "\n".join(
        ["", *(f"    {results[name]['command']}" for name in CASES if name in results)]
    )


def row(name: str, case: Case, found: dict[str, Any]) -> list[str]:
    """The columns of one case."""
    if "refused" in found:
        return [case.chips, name, found["refused"], *[""] * 7]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1)
    batch = ", ".join(f"{size} {unit}" for unit, size in found["batch"].items())
    capacity = found["hbm_capacity_bytes"]
    memory = f"{found['peak_bytes'] / GIB:.1f} GiB of {capacity / GIB:.0f}"
    if not found["fits"]:
        return [case.chips, name, f"{mesh}; {batch}", f"{memory}: does not fit", *[""] * 6]
    seconds = found["estimated_seconds"]
    sent = f"{found['sent_bytes'] / 1e9:.0f} GB"
    for of in found["programs"]:
        if of["required_sent_bytes"]:
            sent += f"; {of['name']} {of['sent_bytes'] / of['required_sent_bytes']:.2f} x"
    return [
        f"{case.chips} ({found['devices']} devices)",
        name,
        f"{mesh}; {batch.replace('_', ' ')}",
        memory,
        f"{found['flops'] / 1e12:.0f} T",
        f"{found['hbm_bytes'] / 1e9:.0f} GB",
        sent,
        f"{seconds:.2f} s",
        f"{100 * found['estimated_mfu']:.0f} %",
        f"{found['devices'] * seconds / 3600 / found['tokens'] * 1e9:.0f}",
    ]


def plot(results: dict[str, Any]) -> str:
    """What a device does, holds and sends, over what it does on 8: an SVG, as weak scaling has it.

    Args:
        results: with all of WEAK_CASES.
    """
    found = [results[name] for name in WEAK_CASES]
    lines = {"FLOPs": "flops", "bytes of memory": "hbm_bytes", "bytes sent": "sent_bytes"}
    width, height, left, top = 640, 320, 60, 20
    step, unit = (width - left - 150) / (len(found) - 1), (height - top - 50) / 1.5
    drawn = []
    for mark in (0.0, 0.5, 1.0, 1.5):
        y = height - 50 - unit * mark
        drawn.append(f'<path d="M{left} {y:.0f}H{width - 150}" stroke="#ccc"/>')
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{mark}</text>')
    for number, devices in enumerate(WEAK):
        x = left + number * step
        drawn.append(f'<text x="{x:.0f}" y="{height - 30}" text-anchor="middle">{devices}</text>')
    drawn.append(f'<text x="{left}" y="{height - 8}">devices; per device, over that of 8</text>')
    for number, (name, key) in enumerate(lines.items()):
        colour, shares = ("#06c", "#c60", "#090")[number], [of[key] / found[0][key] for of in found]
        at = [f"{left + i * step:.0f} {height - 50 - unit * y:.1f}" for i, y in enumerate(shares)]
        drawn.append(f'<path d="M{"L".join(at)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        label = f"{name}: {shares[-1]:.2f}"
        y = top + 20 * (number + 1)
        drawn.append(f'<text x="{width - 140}" y="{y}" fill="{colour}">{label}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    return "\n".join([f'{head} font-family="sans-serif" font-size="13">', *drawn, "</svg>", ""])


def write(results: dict[str, Any]) -> None:
    """Puts the table between its marks in the README, and the plot into its file."""
    if all(name in results for name in WEAK_CASES):
        PLOT.write_text(plot(results))
    text = README.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    README.write_text(f"{before}{MARKS[0]}\n\n{table(results)}\n\n{MARKS[1]}{after}")


def read() -> dict[str, Any]:
    """What is known."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    """Runs the job."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--only", action="append", metavar="NAME", choices=[*CASES, *WEAK_CASES])
    flags.add_argument("--again", action="store_true", help="compile what is known too")
    flags.add_argument("--table", action="store_true", help="compile nothing")
    options = flags.parse_args()
    cases = CASES | WEAK_CASES
    for name in [] if options.table else options.only or cases:
        known = read()
        if name in known and is_known(cases[name], known[name]) and not options.again:
            continue
        found = compiled(cases[name])
        print(name, json.dumps(found), flush=True)
        results = read() | {name: found}  # others may have written meanwhile
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        write(results)
    write(read())


if __name__ == "__main__":
    main()
