"""The steps of a config: what each is and reads, and their order."""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cai_jax import checkpoints
from cai_jax.core import mesh, monitoring
from cai_jax.core.configuration import assign, nearest, plain
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.readers import default_data
from cai_jax.errors import InputError
from cai_jax.stages import RESERVED, LoadStage

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of a config, all references to shared values resolved."""

    name: str
    kind: str
    config: dict[str, Any]  # the kind's parameters, `seed` and `mesh`; `data` is the config's
    inputs: dict[str, Any]  # role -> reference, list or dict of references
    sources: tuple[str, ...]  # the names of the steps that it reads
    stage: Any  # the module of its kind

    def references(self) -> Iterator[tuple[str, str, str]]:
        """(label, role, reference) of each input; a label is "data[0]" or "models.sl_cai"."""
        for role, value in self.inputs.items():
            yield from ((f"{role}{label}", role, reference) for label, reference in _leaves(value))

    def map_inputs(self, function: Callable[[str, str], Any]) -> dict[str, Any]:
        """The inputs with `function(role, reference)` in the place of each reference."""

        def mapped(role: str, value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: mapped(role, item) for key, item in value.items()}
            if isinstance(value, list):
                return [mapped(role, item) for item in value]
            return function(role, value)

        return {role: mapped(role, value) for role, value in self.inputs.items()}


def _leaves(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from ((f".{key}{label}", leaf) for label, leaf in _leaves(item))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from ((f"[{i}]{label}", leaf) for label, leaf in _leaves(item))
    else:
        yield "", value


def read_steps(config: ConfigDict, load_stage: LoadStage) -> list[Step]:
    """The steps of a config, each after those that it reads, else in the order written.

    Raises:
        InputError: no seed or steps, an unknown kind or parameter, a cycle.
    """
    for key, kind in (("seed", int), ("steps", ConfigDict)):
        if key not in config or not isinstance(config[key], kind):
            raise InputError(f"config.{key}: expected {kind.__name__}, found none in the config")
    if not config.steps:
        raise InputError("config.steps: expected at least one step, found none")
    if config.seed < 0:
        raise InputError(f"config.seed: expected 0 or more, found {config.seed}")
    shared = {"seed": config.seed, "mesh": _read_group(config, "mesh", mesh.default_config())}
    if "data" in config:
        shared["data"] = _read_group(config, "data", default_data())
        BadRecords(shared["data"]["on_bad_record"])
    if "monitoring" in config:
        shared["monitoring"] = _read_group(config, "monitoring", monitoring.default_config())
        monitoring.check(shared["monitoring"])
    names = list(config.steps)
    steps = [_read_step(name, config.steps[name], names, shared, load_stage) for name in names]
    ordered: list[Step] = []
    while len(ordered) < len(steps):
        done = {step.name for step in ordered}
        waiting = [step for step in steps if step.name not in done]
        ready = [step for step in waiting if done.issuperset(step.sources)]
        if not ready:
            rest = ", ".join(step.name for step in waiting)
            raise InputError(f"config.steps: {rest}: each waits for another; break the cycle")
        ordered.append(ready[0])
    return ordered


def _read_group(
    config: ConfigDict, name: str, group: ConfigDict, where: str = "config"
) -> dict[str, Any]:
    """A group of keys: what the config names of it, if anything, and the rest by default."""
    if name not in config:
        return plain(group)
    given = config[name]
    if not isinstance(given, ConfigDict):
        raise InputError(f"{where}.{name}: expected a group of keys, found {given!r}")
    for key in given:
        assign(group, key, given[key], f"{where}.{name}: {key}")
    return plain(group)


def _read_step(
    name: str, config: Any, names: list[str], shared: dict[str, Any], load_stage: LoadStage
) -> Step:
    where = f"config.steps.{name}"
    if not NAME.fullmatch(name):
        raise InputError(f"{where}: expected a name of letters, digits, _ and -")
    if not isinstance(config, ConfigDict) or "kind" not in config or "inputs" not in config:
        raise InputError(f"{where}: expected a step with `kind` and `inputs`, as stages.step makes")
    try:
        stage = load_stage(config.kind)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    known = stage.default_config()
    for key in config:
        if key not in known and key not in RESERVED:
            raise InputError(f"{where}: unknown parameter {key!r}; {nearest(key, known)}")
    for key in known:
        if key not in config:
            raise InputError(f"{where}: parameter {key!r} is missing; make it with stages.step")
    parameters = {key: plain(config[key], f"{where}.{key}") for key in known}
    # Said once for all steps, and no matter of those that read no files or train nothing.
    shared = {k: v for k, v in shared.items() if k in known or k not in ("data", "monitoring")}
    if "mesh" in config:
        shared["mesh"] = _read_group(config, "mesh", mesh.default_config(), where)
    inputs = plain(config.inputs, f"{where}.inputs")
    step = Step(name, config.kind, parameters | shared, inputs, (), stage)
    for label, _, reference in step.references():
        if not isinstance(reference, str) or not reference:
            raise InputError(
                f"{where}.inputs.{label}: expected a step, a path or sandbox:..., found "
                f"{reference!r}; set it in the config or on the command line"
            )
    found = (source_of(reference, names) for _, _, reference in step.references())
    sources = [source for source in found if source is not None]
    return dataclasses.replace(step, sources=tuple(dict.fromkeys(sources)))


def source_of(reference: str, names: Collection[str]) -> str | None:
    """The step of `names` that a reference means, or None: its name, or, for the model that it
    kept after iteration N, its name and @N."""
    name, _ = checkpoints.split_snapshot(reference)
    return reference if reference in names else name if name in names else None


def select(steps: Sequence[Step], names: Collection[str], flag: str) -> list[str]:
    """The steps given on the command line, checked and in the order of `steps`."""
    known = [step.name for step in steps]
    for name in names:
        if name not in known:
            raise InputError(f"{flag}: unknown step {name!r}; {nearest(name, known)}")
    return [name for name in known if name in names]
