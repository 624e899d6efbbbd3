"""The steps of the method, one file each, and how a config names them.

    config.steps = ConfigDict(sort_keys=False)  # in the order written
    config.steps.revisions = step(
        "critique_revise",
        {"model": "sandbox:models/helpful-m", "prompts": "prompts.jsonl", "constitution": ...},
        num_rounds=4,
    )

An input is the name of another step, "sandbox:..." for a file of the package, "tfds:..." for a
split of a TFDS data set, or a path; a role has one, a list, or a dict of them. Every module of
this package has three functions:

    default_config() -> ConfigDict
        every parameter of the step, each with its default. A step that reads files of others has
        `fields` and `data` (data/readers.py); of the latter, the config's own group holds.
    run(config, inputs, folder) -> {"records": int, "tokens": int, ...}
        does the step. `config` has the parameters, and `seed` and `mesh` besides; `inputs` has the
        roles with paths for references; `folder` is there, and empty, or as an interrupted run of
        the same step left it at its last good checkpoint (core/training_checkpoints.py; for
        steps that sample, core/blocks.py). More small numbers of the result go to the manifest and
        to summary.json.
    plan(config, planned) -> {"records": int, "tokens": int, "flops": float, ...}
        what `run` would take, by arithmetic. `planned` has the roles, with a dict for each
        reference: of a step what its own plan returned; of a file {"records", "tokens"}; of a model
        {"parameters"}. A step that has one input `model` passes its "parameters" on.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from cai_jax.core.configuration import assign, nearest
from cai_jax.errors import InputError

# Keys of a step's config that are no parameters of its kind.
RESERVED = ("kind", "inputs", "seed", "mesh")

LoadStage = Callable[[str], Any]


def load_stage(kind: str) -> ModuleType:
    """The module of a kind of step.

    Raises:
        InputError: there is no such kind.
    """
    if kind not in kinds():
        raise InputError(f"unknown step kind {kind!r}; {nearest(kind, kinds())}")
    return importlib.import_module(f"{__name__}.{kind}")


def kinds() -> list[str]:
    """All kinds of steps: the modules of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def step(
    kind: str,
    inputs: Mapping[str, Any],
    *,
    load: LoadStage = load_stage,
    **parameters: Any,
) -> ConfigDict:
    """One step of a config: its kind, its inputs, and the kind's parameters with these changed.

    Args:
        kind: a module of this package.
        inputs: role -> reference, list of references, or dict of references.
        load: finds the module of a kind.
        **parameters: values for keys of the kind's `default_config()`, a mapping for a group.

    Raises:
        InputError: unknown kind or parameter, with the nearest right one; a value of another type.
    """
    config = load(kind).default_config()
    for name, value in parameters.items():
        assign(config, name, value, f"step {kind!r}: {name}")
    config.kind = kind
    config.inputs = ConfigDict(sort_keys=False)
    for role, references in inputs.items():
        if isinstance(references, Mapping):
            config.inputs[role] = ConfigDict(sort_keys=False)
            for name, reference in references.items():
                config.inputs[role][name] = reference
        else:
            config.inputs[role] = references
    return config
