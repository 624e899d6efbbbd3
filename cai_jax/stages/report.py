"""The report: one self-contained HTML page, computed from the artifacts of a run alone.

The same steps give the same bytes wherever their folders are. Nothing is fetched, nothing runs in
the reader's browser, and text that a model wrote stands behind a click.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.core import artifact
from cai_jax.data import rows, schema
from cai_jax.errors import InputError
from cai_jax.page import choices, records
from cai_jax.page import evaluation as tables
from cai_jax.page.markup import Html, document, element, section, table
from cai_jax.page.plots import number
from cai_jax.page.preference import by_source
from cai_jax.page.style import STYLE
from cai_jax.page.training import curves

PAGE = "index.html"

SANDBOX = (
    "The models of this run are tiny and live in a small templated world with an oracle that knows "
    "the truth. The numbers show that the machinery works, and how the method behaves in that "
    "world; they say nothing about real language models."
)
PREFERENCE_MODEL = (
    "These answers were judged by a preference model, and evasiveness by a lexicon of refusals. "
    "That is an opinion, not the truth, and the model was trained against an opinion of this kind."
)
NO_JUDGE = "No judge read the answers of this run: it shows samples and training curves alone."


class Step(NamedTuple):
    """A finished step: its name, kind, folder and manifest."""

    name: str
    kind: str
    folder: Path
    manifest: Mapping[str, Any]


def default_config() -> ConfigDict:
    """How many records of each sort the page shows, evenly spaced over those there are."""
    config = ConfigDict()
    config.num_chains = 12
    config.num_comparisons = 12
    config.num_prompts = 12
    # Moments of RL training, and samples at each.
    config.num_moments = 6
    config.num_rollouts = 3
    return config


def plan(config: ConfigDict, planned: Mapping[str, Any]) -> dict[str, float]:
    """The report takes no tokens and no FLOPs."""
    return {"records": 1, "tokens": 0, "flops": 0}


def run(config: ConfigDict, inputs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Writes index.html about the steps in `inputs` (any roles; each a folder, list or dict)."""
    steps = [read_step(path) for path in _paths(inputs) if artifact.is_finished(path)]
    if hosts.is_first():
        (folder / PAGE).write_text(page(config, steps), encoding="utf-8", errors="backslashreplace")
    return {"records": len(steps), "tokens": 0}


def discover(workdir: Path) -> list[Step]:
    """All finished steps of a workdir, but reports.

    Raises:
        InputError: if the folder is not there, or has no finished step.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir}: expected the workdir of a run, found no folder")
    folders = sorted(path for path in workdir.iterdir() if artifact.is_finished(path))
    steps = [read_step(folder) for folder in folders]
    steps = [step for step in steps if step.kind != "report"]
    if not steps:
        raise InputError(f"{workdir}: expected at least one finished step, found none")
    return steps


def read_step(folder: Path) -> Step:
    """Reads a finished step's manifest.

    Raises:
        InputError: the manifest cannot be read, or does not say what kind of step it is.
    """
    manifest = artifact.read_manifest(folder) or {}
    if not isinstance(manifest.get("kind"), str):
        raise InputError(f"{folder / artifact.MANIFEST}: kind: expected a kind of step, found none")
    return Step(folder.name, manifest["kind"], folder, manifest)


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Each step after those it reads, otherwise by name: no matter in what order they came."""
    waiting = sorted(steps, key=lambda step: step.name)
    ordered: list[Step] = []
    while waiting:
        names = {step.name for step in waiting}
        ready = next((s for s in waiting if not names & _sources(s) - {s.name}), waiting[0])
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _sources(step: Step) -> set[str]:
    references = [entry["reference"] for entry in step.manifest.get("inputs", {}).values()]
    # "rl_cai@40" is a model that the step rl_cai kept along its training.
    return {name for reference in references for name in (reference, reference.split("@")[0])}


def page(config: ConfigDict, steps: Iterable[Step]) -> str:
    """The page about these steps."""
    steps = in_order(steps)
    measured = [
        (step, _read_json(step.folder / "evaluation.json"))
        for step in steps
        if step.kind in EVALUATIONS
    ]
    statements = {"oracle": SANDBOX, "preference_model": PREFERENCE_MODEL, "none": NO_JUDGE}
    judges = dict.fromkeys(found["judge"] for step, found in measured if step.kind == "evaluate")
    if not measured:
        judges = {"none": None}
    elif any(step.kind != "evaluate" for step, _ in measured):
        judges.pop("none", None)
    sections: dict[str, list[Any]] = {
        "Evaluation": [EVALUATIONS[step.kind](step.name, found) for step, found in measured],
        "Training": [_training(step) for step in steps],
        "Answers": [_answers(config, step) for step in steps],
        "Critiques and revisions": [_chains(config, step) for step in steps],
        "Feedback": [_comparisons(config, step) for step in steps],
        "RL samples": [_rollouts(config, step) for step in steps],
        "Steps": [_steps(steps)],
    }
    kept = {name: [p for p in parts if p] for name, parts in sections.items() if any(parts)}
    anchors = {name: name.lower().replace(" ", "-") for name in kept}
    links = (element("a", name, href=f"#{anchor}") for name, anchor in anchors.items())
    return document(
        "Constitutional AI: report of a run",
        STYLE,
        element("h1", "Constitutional AI: report of a run"),
        *(element("p", statements[judge], class_="statement") for judge in judges),
        element("nav", *links, aria_label="Sections"),
        *(section(anchors[name], name, *parts) for name, parts in kept.items()),
    )


def _evaluation(name: str, found: Mapping[str, Any]) -> Html:
    parts: list[Html] = [element("h3", f"{name}: models on held-out prompts")]
    if found["models"]:
        parts.append(tables.models_table(found))
    revisions = found.get("chains", {}).get("revisions", [])
    plots = [tables.elo_plot(found), *(tables.revision_plots(revisions) if revisions else ())]
    parts.append(element("div", *plots, class_="plots"))
    if revisions:
        parts.append(tables.revision_table(revisions))
    if "critiques" in found:
        caption = "Critiques and revisions on held-out prompts, round by round"
        parts.append(tables.measures_table({"share": found["critiques"]}, caption))
    if found.get("feedback"):
        parts.append(tables.measures_table(found["feedback"], "Feedback on held-out pairs"))
    if "preference" in found:
        caption = "Preference model on held-out comparisons"
        parts.append(tables.numbers_table(found["preference"], caption))
    if "refusals" in found:
        parts.append(choices.refusal_tables(found["refusals"]))
    return element("div", *parts)


def _choices(name: str, found: Mapping[str, Any]) -> Html:
    parts: list[Html] = []
    for evaluation, modes in found["sets"].items():
        parts.append(element("h3", f"{name}: {evaluation.replace('_', ' ')}, multiple choice"))
        parts += choices.choice_tables(modes, found["level"])
    return element("div", *parts)


def _ratings(name: str, found: Mapping[str, Any]) -> Html:
    heading = element("h3", f"{name}: Elo from pairwise judgements")
    return element("div", heading, *choices.rating_tables(found))


EVALUATIONS = {"evaluate": _evaluation, "evaluate_choices": _choices, "elo": _ratings}


def _training(step: Step) -> Html | None:
    path = step.folder / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = [value for _, value in schema.json_lines(path)]
    evaluation = step.folder / "evaluation.json"
    measured = Html("")
    if step.kind == "preference" and evaluation.is_file():
        measured = by_source(_read_json(evaluation))
    heading = element("h3", f"{step.name} ({step.kind})")
    return element("div", heading, curves(step.kind, lines), measured)


def _answers(config: ConfigDict, step: Step) -> Html | None:
    if step.kind != "evaluate":
        return None
    answers = _records(step, "samples.jsonl", schema.Answer)
    parts = []
    for of_set in records.grouped(answers, lambda answer: answer.prompt_set):
        by_prompt = records.grouped(of_set, lambda answer: answer.id)
        cards = [records.answer_card(g) for g in records.spread(by_prompt, config.num_prompts)]
        name = of_set[0].prompt_set.replace("_", " ")
        parts.append(records.gate(f"{len(cards)} of {len(by_prompt)} {name} prompts", *cards))
    return element("div", *parts) if parts else None


def _chains(config: ConfigDict, step: Step) -> Html | None:
    if step.kind != "critique_revise":
        return None
    chains = [c for c in _records(step, "chains.jsonl", schema.Chain) if c.rounds]
    shown = records.spread(chains, config.num_chains)
    principles = _principles(step, "critique_request")
    return _gated(step, chains, [records.chain_card(c, principles) for c in shown], "chains")


def _comparisons(config: ConfigDict, step: Step) -> Html | None:
    if step.kind != "feedback":
        return None
    comparisons = _records(step, "comparisons.jsonl", schema.Comparison)
    shown = records.spread(comparisons, config.num_comparisons)
    principles = _principles(step, "comparison")
    cards = [records.comparison_card(c, principles) for c in shown]
    gated = _gated(step, comparisons, cards, "comparisons")
    if gated is None:
        return None
    measured = tables.judgements_table(
        step.manifest.get("counts", {}), f"{step.name}: how the feedback model judged"
    )
    return element("div", measured, gated)


def _rollouts(config: ConfigDict, step: Step) -> Html | None:
    if step.kind != "ppo":
        return None
    rollouts = _records(step, "rollouts.jsonl", schema.Rollout)
    cards = records.rollout_cards(rollouts, config.num_moments, config.num_rollouts)
    return _gated(step, rollouts, cards, "moments of training, of samples")


def _gated(step: Step, found: list, cards: list[Html], what: str) -> Html | None:
    if not found:
        return None
    summary = f"{step.name}: {len(cards)} of {len(found):,} {what}"
    return records.gate(summary, *cards)


def _steps(steps: Iterable[Step]) -> Html:
    lines = []
    for step in steps:
        counts = (step.manifest.get(name) for name in ("records", "tokens", "seconds"))
        lines.append([step.name, step.kind, *(number(count) for count in counts)])
    headings = ["step", "kind", "records", "tokens", "seconds"]
    return table(headings, lines, "What each step took")


def _principles(step: Step, wording: str) -> dict[str, str]:
    """Principle id -> its wording, if the step kept its constitution beside its records."""
    path = step.folder / "constitution.json"
    if not path.is_file():
        return {}
    return {p["id"]: p[wording] for p in _read_json(path).get("principles", [])}


def _records(step: Step, name: str, record_type: type) -> list:
    path = step.folder / name
    return schema.read_records(path, record_type) if rows.exists(path) else []


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected JSON: {error}") from None


def _paths(value: Any) -> Iterable[Path]:
    """Every path in nested dicts and lists."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif value is not None:
        yield Path(value)
