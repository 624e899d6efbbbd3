"""What a run will take, by arithmetic: `python -m cai_jax.run ... --dry_run`."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax import costs, inputs, shapes
from cai_jax.core.progress import duration
from cai_jax.pipeline import Step, source_of
from cai_jax.resume import Outside

COLUMNS = ("records", "tokens", "flops")


class Plan(NamedTuple):
    """Of a run: what each step takes, by its name."""

    counts: dict[str, dict[str, Any]]
    costs: dict[str, costs.Cost]  # of the steps that hold a model
    device: costs.Hardware | None
    notes: list[str]  # what was assumed, for people


def plan(steps: Sequence[Step], given: Outside, hardware: str = "") -> Plan:
    """Each step's counts, from the counts of its inputs, its memory and its time.

    Reads files, never a model's weights; a hub's model needs not be here.

    Args:
        steps: each after those that it reads.
        given: where references to the outside lead.
        hardware: a key of `costs.HARDWARE`, or "".

    Raises:
        InputError: unknown hardware, or a model whose shape is nowhere.
    """
    device = costs.hardware(hardware)
    models = known_models(steps, given)
    plans: dict[str, dict[str, Any]] = {}
    counted: dict[tuple[str, str], dict[str, Any]] = {}
    taken: dict[str, costs.Cost] = {}
    for step in steps:

        def planned(role: str, reference: str, step: Step = step) -> dict[str, Any]:
            source = source_of(reference, step.sources)
            if source is not None:
                return plans[source]
            if (role, reference) not in counted:
                model = models.get(reference) if role in inputs.MODEL_ROLES else None
                counted[role, reference] = (
                    {"parameters": model.parameters}
                    if model
                    else inputs.count(role, given.path(step, role, reference))
                )
            return counted[role, reference]

        found = step.map_inputs(planned)
        model = found.get("model")
        passed_on = {"parameters": model["parameters"]} if model and "parameters" in model else {}
        plans[step.name] = passed_on | step.stage.plan(ConfigDict(step.config), found)
        read: dict[str, list[shapes.Model]] = {}
        for _, role, reference in step.references():
            if role in inputs.MODEL_ROLES and reference in models:
                read.setdefault(role, []).append(models[reference])
        cost = costs.cost(step.kind, step.config, plans[step.name], read, device)
        if cost:
            taken[step.name] = cost
    sources = {m.source: r for r, m in models.items() if shapes.is_elsewhere(r)}
    notes = [f"the shape of {reference} is from {source}" for source, reference in sources.items()]
    return Plan(plans, taken, device, notes)


def known_models(steps: Sequence[Step], given: Outside) -> dict[str, shapes.Model]:
    """The models that steps read, by reference: folders, hub ids, and the steps that train one."""
    models: dict[str, shapes.Model] = {}
    for step in steps:
        for _, role, reference in step.references():
            made_here = source_of(reference, step.sources) is not None
            if role not in inputs.MODEL_ROLES or reference in models or made_here:
                continue
            if shapes.is_elsewhere(reference):
                models[reference] = shapes.read_elsewhere(reference)
            elif (folder := Path(given.path(step, role, reference)) / "config.json").is_file():
                models[reference] = shapes.read_folder(folder.parent)
        own = step.inputs.get("model")
        if isinstance(own, str) and own in models:
            models[step.name] = models[own]  # what it makes is as large
    return models


def table(steps: Sequence[Step], plan: Plan, selected: Collection[str]) -> str:
    """A line a step and their sum: records, tokens, FLOPs, and whatever else a plan counts; then,
    where models are known, memory and time of each step."""
    shown = [step for step in steps if step.name in selected]
    lines = [["step", "kind", *COLUMNS, ""]]
    for step in shown:
        counts = plan.counts[step.name]
        others = {k: v for k, v in counts.items() if k not in (*COLUMNS, "parameters")}
        remark = ", ".join(f"{value:,} {name}" for name, value in others.items())
        lines.append([step.name, step.kind, *_cells(counts), remark])
    total = {name: sum(plan.counts[step.name][name] for step in shown) for name in COLUMNS}
    lines.append(["in all", "", "", *_cells(total)[1:], ""])
    text = _aligned(lines, left=(0, 1, 5))
    if not any(step.name in plan.costs for step in shown):
        return text
    return f"{text}\n\n{_cost_table(shown, plan)}"


def _cost_table(shown: Sequence[Step], plan: Plan) -> str:
    """Bytes on each device and seconds of the steps that hold a model."""
    lines = [["step", "parameters", *costs.Memory._fields, "in all", "time", ""]]
    for step in shown:
        if step.name not in plan.costs:
            continue
        cost = plan.costs[step.name]
        sizes = [_gib(size) for size in (*cost.memory, cost.memory.total)]
        time = duration(cost.seconds) if cost.seconds is not None else "?"
        verdict = "" if cost.fits is None or cost.fits else "does not fit"
        lines.append([step.name, f"{cost.parameters:,}", *sizes, time, verdict])
    seconds = [plan.costs[s.name].seconds for s in shown if s.name in plan.costs]
    largest = max(plan.costs[s.name].memory.total for s in shown if s.name in plan.costs)
    known = [second for second in seconds if second is not None]
    blank = [""] * (1 + len(costs.Memory._fields))
    lines.append(["at most", *blank, _gib(largest), duration(sum(known)) if known else "?", ""])
    of = f", for {plan.device.name}" if plan.device else " (no time: config.hardware names none)"
    heading = f"computed, not measured: GiB on each device, and time{of}"
    notes = [*plan.notes, "formulas and what they assume: cai_jax/costs.py"]
    return "\n".join([heading, _aligned(lines, left=(0, 9)), *notes])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}"


def _aligned(lines: Sequence[Sequence[str]], left: Collection[int]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _cells(counts: Mapping[str, Any]) -> list[str]:
    return [f"{counts['records']:,}", f"{counts['tokens']:,}", f"{counts['flops']:.3g}"]
