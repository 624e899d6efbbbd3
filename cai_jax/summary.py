"""What a run has come to: summary.json, and the table and the chain that end its output."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_jax.core import artifact, goodput
from cai_jax.data import rows, schema
from cai_jax.page import sweeps
from cai_jax.pipeline import Step
from cai_jax.text.dialogue import render

SUMMARY = "summary.json"
COLUMNS = {
    "harmless_rate": "harmless",
    "helpful_rate": "helpful",
    "evasive_rate": "evasive",
    "explained_rate": "explained",
    "harmlessness_elo": "harmlessness Elo",
    "helpfulness_elo": "helpfulness Elo",
}
EVALUATIONS = ("evaluate", "evaluate_choices", "elo")
LOOK_AT = 200  # chains, for one that shows something


def write_summary(workdir: Path, steps: Sequence[Step], seed: int) -> None:
    """Writes summary.json from the manifests and evaluations of the finished steps.

    {"seed", "package_version", "steps": {step: {"kind", "seconds", "records", "tokens", ...}},
     "evaluation": {model: measures}, "measures": {step: what else it measured},
     "goodput": {"runs", "wall_seconds", "productive_seconds", "goodput"}}
    A model that several steps evaluate is named "<step>/<model>" from the second on.
    """
    from cai_jax import __version__

    evaluation: dict[str, Any] = {}
    measures: dict[str, Any] = {}
    finished = {s.name: artifact.read_manifest(workdir / s.name) for s in steps}
    manifests = {name: manifest for name, manifest in finished.items() if manifest}
    for name, found in _evaluations(workdir, steps):
        for model, of_model in found.get("models", {}).items():
            evaluation[f"{name}/{model}" if model in evaluation else model] = of_model
        measures[name] = {key: value for key, value in found.items() if key != "models"}
    artifact.write_json(
        workdir / SUMMARY,
        {
            "seed": seed,
            "package_version": __version__,
            "steps": {
                name: {"kind": manifest["kind"], "seconds": manifest["seconds"]}
                | manifest["counts"]
                for name, manifest in manifests.items()
            },
            "evaluation": evaluation,
            "measures": measures,
            "goodput": goodput.measure(workdir, list(manifests.values())),
        },
    )


def closing(workdir: Path, steps: Sequence[Step]) -> Iterator[str]:
    """Texts to print at the end: each evaluation's table, one chain, and where the rest stands."""
    for name, found in _evaluations(workdir, steps):
        if any(of.get(c) is not None for of in found.get("models", {}).values() for c in COLUMNS):
            yield f"{name}, judged by the {found.get('judge', '?')}:\n{_table(found['models'])}"
        for judge, of in found.get("judges", {}).items():
            yield f"{name}, judged by the {judge}:\n{_table(of['models'])}"
        if "sets" in found:
            yield f"{name}, accuracy:\n{_accuracies(found['sets'])}"
    for step in steps:
        if step.kind == "contrast" and artifact.is_finished(workdir / step.name):
            path = workdir / step.name / "contrast.json"
            swept = json.loads(path.read_text(encoding="utf-8"))
            note, table = sweeps.note(swept), _aligned(sweeps.rows(swept))
            yield f"{step.name}: {note}\n{table}\n  {path.with_suffix('.svg')}"
    for step in steps:
        manifest = artifact.read_manifest(workdir / step.name) or {}
        if alarm := manifest.get("counts", {}).get("alarm"):
            yield f"ALARM in {step.name}: {alarm}"
    for step in steps:
        chain = _telling_chain(workdir / step.name / "chains.jsonl")
        if chain and artifact.is_finished(workdir / step.name):
            yield f"A chain of {step.name} ({chain.id}):\n{_chain(chain)}"
            break
    pages = [workdir / step.name / "index.html" for step in steps if step.kind == "report"]
    yield " ".join(str(path) for path in [workdir / SUMMARY, *pages] if path.is_file())


def _evaluations(workdir: Path, steps: Sequence[Step]) -> Iterator[tuple[str, dict[str, Any]]]:
    for step in steps:
        folder = workdir / step.name
        if step.kind in EVALUATIONS and artifact.is_finished(folder):
            yield step.name, json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def _table(models: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [name for name in COLUMNS if any(of.get(name) is not None for of in models.values())]
    rows = [["", *(COLUMNS[name] for name in shown)]]
    for model, of_model in models.items():
        rows.append([model, *(_number(of_model.get(name), name) for name in shown)])
    return _aligned(rows)


def _accuracies(sets: Mapping[str, Mapping[str, Any]]) -> str:
    """Evaluations down, how the model was asked across."""
    modes = list(dict.fromkeys(mode for of in sets.values() for mode in of))
    rows = [["", *(mode.replace("_", " ") for mode in modes)]]
    for name, of in sets.items():
        found = [of.get(mode, {}).get("accuracy") for mode in modes]
        rows.append([name, *(_number(value, "accuracy") for value in found)])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  " + "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )


def _number(value: float | None, column: str) -> str:
    if value is None:
        return "-"
    return f"{value:+.0f}" if column.endswith("_elo") else f"{value:.3f}"


def _telling_chain(path: Path) -> schema.Chain | None:
    """The first chain that its revisions change; if none of the first does, the first."""
    if not rows.exists(path):
        return None
    first = None
    for number, (where, value) in enumerate(schema.json_lines(path)):
        chain: schema.Chain = schema.parse(schema.Chain, value, where)
        if chain.rounds and chain.rounds[-1].revision != chain.response:
            return chain
        first = first or (chain if chain.rounds else None)
        if number == LOOK_AT:
            break
    return first


def _chain(chain: schema.Chain) -> str:
    lines = [f"{render(chain.dialogue).strip()} {chain.response}"]
    for number, step in enumerate(chain.rounds, start=1):
        lines.append(f"Critique {number} ({step.principle}): {step.critique}")
        lines.append(f"Revision {number}: {step.revision}")
    return "\n".join("  " + line for text in lines for line in text.splitlines() if line)
