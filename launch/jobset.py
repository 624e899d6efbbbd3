#!/usr/bin/env python3
"""A run on GKE as a JobSet, which is launch/jobset.yaml with another name, slice and arguments:

    launch/jobset.py [--dry-run] NAME TYPE IMAGE --config=... --workdir=...

TYPE as in launch/tpu_vm.sh. The workdir lies in /runs, the volume that the file mounts. It is given
to `kubectl apply`, or with --dry-run printed. As other scripts here it begins cells and sweeps.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from cai_jax.errors import InputError, exits_on_input_error

# Of a type: its generation, what GKE calls it, its dimensions, and what the type counts in a chip.
TYPES = {
    "v5litepod": ("v5e", "tpu-v5-lite-podslice", 2, 1),
    "v5p": ("v5p", "tpu-v5p-slice", 3, 2),
    "v6e": ("v6e", "tpu-v6e-slice", 2, 1),
}


def slice_of(type_: str) -> tuple[str, str, str, int, int]:
    """(generation, accelerator, topology, hosts, chips of a host) of a type like v6e-8.

    Raises:
        InputError: there is no such slice.
    """
    match = re.fullmatch(r"(v5litepod|v5p|v6e)-(\d+)", type_)
    generation, accelerator, dimensions, counts = TYPES[match[1] if match else "v6e"]
    chips = int(match[2]) // counts if match else 0
    power = chips.bit_length() - 1
    if chips < 4 or chips != 2**power:
        raise InputError(
            "expected a type like v5litepod-8, v5p-8 or v6e-8, of 4, 8, 16 ... chips, found "
            f"{type_}"
        )
    # As even as can be: 2x4 of eight chips; 2x2x1 of four.
    sides = [2 ** ((power + i) // dimensions) for i in range(dimensions)]
    sides.sort(key=lambda side: (side == 1, side))
    on_host = chips if dimensions == 2 and chips <= 8 else 4
    return generation, accelerator, "x".join(map(str, sides)), chips // on_host, on_host


def filled(name: str, type_: str, image: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JobSet of launch/jobset.yaml for this run."""
    generation, accelerator, topology, hosts, chips = slice_of(type_)
    jobset: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    jobset["metadata"]["name"] = name
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    job["parallelism"] = job["completions"] = hosts
    pod = job["template"]["spec"]
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (container,) = pod["containers"]
    container["image"] = image
    container["command"][-1] = generation
    container["args"] = list(arguments)
    container["resources"]["limits"]["google.com/tpu"] = chips
    return jobset


@exits_on_input_error
def main() -> None:
    """Fills the file, and applies or prints it."""
    given = sys.argv[1:]
    dry_run = given[:1] == ["--dry-run"]
    given = given[dry_run:]
    if len(given) < 5 or any(word.startswith("--") for word in given[:3]):
        raise InputError(
            "expected NAME TYPE IMAGE --config=FILE --workdir=DIR; see launch/jobset.py"
        )
    name, type_, image, *arguments = given
    text = yaml.safe_dump(filled(name, type_, image, arguments), sort_keys=False, width=1000)
    if dry_run:
        print(f"---\n{text}", end="")
    else:
        subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=True)


if __name__ == "__main__":
    main()
