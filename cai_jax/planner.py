"""What a run will take, by arithmetic: `python -m cai_jax.run ... --dry_run`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cai_jax import inputs
from cai_jax.pipeline import Step, source_of
from cai_jax.resume import Outside

COLUMNS = ("records", "tokens", "flops")


def plan(steps: Sequence[Step], given: Outside) -> dict[str, dict[str, Any]]:
    """Each step's counts, from the counts of its inputs. Reads files, never a model's weights."""
    plans: dict[str, dict[str, Any]] = {}
    counted: dict[tuple[str, str], dict[str, Any]] = {}

    for step in steps:

        def planned(role: str, reference: str, step: Step = step) -> dict[str, Any]:
            source = source_of(reference, step.sources)
            if source is not None:
                return plans[source]
            if (role, reference) not in counted:
                counted[role, reference] = inputs.count(role, given.path(step, role, reference))
            return counted[role, reference]

        found = step.map_inputs(planned)
        model = found.get("model")
        passed_on = {"parameters": model["parameters"]} if model and "parameters" in model else {}
        plans[step.name] = passed_on | step.stage.plan(ConfigDict(step.config), found)
    return plans


def table(
    steps: Sequence[Step], plans: Mapping[str, Mapping[str, Any]], selected: Collection[str]
) -> str:
    """A line a step and their sum: records, tokens, FLOPs, and whatever else a plan counts."""
    shown = [step for step in steps if step.name in selected]
    lines = [["step", "kind", *COLUMNS, ""]]
    for step in shown:
        counts = plans[step.name]
        others = {k: v for k, v in counts.items() if k not in (*COLUMNS, "parameters")}
        remark = ", ".join(f"{value:,} {name}" for name, value in others.items())
        lines.append([step.name, step.kind, *_cells(counts), remark])
    total = {name: sum(plans[step.name][name] for step in shown) for name in COLUMNS}
    lines.append(["in all", "", "", *_cells(total)[1:], ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 1, 5) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )


def _cells(counts: Mapping[str, Any]) -> list[str]:
    return [f"{counts['records']:,}", f"{counts['tokens']:,}", f"{counts['flops']:.3g}"]
