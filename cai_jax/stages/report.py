"""The report: one self-contained HTML page, computed from the artifacts of a run alone.

The same steps give the same bytes wherever their folders are. Nothing is fetched, the only script
is the page's own, and text that a model wrote is data to it, behind a click (page/browser.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.core import artifact
from cai_jax.core.progress import duration
from cai_jax.data import rows, schema
from cai_jax.errors import InputError
from cai_jax.page import browser, choices, claims, records, sweeps
from cai_jax.page import evaluation as tables
from cai_jax.page.markup import Html, document, element, section, table
from cai_jax.page.plots import number
from cai_jax.page.preference import by_source
from cai_jax.page.style import SCRIPT, STYLE
from cai_jax.page.training import curves
from cai_jax.page.watch import alarm_line, watch

PAGE = "index.html"
CLAIMS, FIRST_SEED = "claims.json", "seed-0"  # of a workdir of `cai_jax.reproduce`

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
    """How many records the page holds, evenly spaced over those there are."""
    config = ConfigDict()
    config.num_records = 400  # of one step
    config.all_records = 4000  # of all steps together
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


def discover(workdir: Path) -> tuple[list[Step], dict[str, Any] | None]:
    """All finished steps of a workdir, but reports; and what `cai_jax.reproduce` wrote there.

    The steps of a workdir of `cai_jax.reproduce` are those of its first seed.

    Raises:
        InputError: if the folder is not there, or has no finished step.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir}: expected the workdir of a run, found no folder")
    path = workdir / CLAIMS
    reproduced = _read_json(path) if path.is_file() else None
    of_run = workdir / FIRST_SEED if reproduced and (workdir / FIRST_SEED).is_dir() else workdir
    folders = sorted(path for path in of_run.iterdir() if artifact.is_finished(path))
    steps = [read_step(folder) for folder in folders]
    steps = [step for step in steps if step.kind != "report"]
    if not steps and not reproduced:
        raise InputError(f"{workdir}: expected at least one finished step, found none")
    return steps, reproduced


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


def page(
    config: ConfigDict, steps: Iterable[Step], reproduced: Mapping[str, Any] | None = None
) -> str:
    """The page about these steps, and about the claims.json of `cai_jax.reproduce`, if given."""
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
    said = [statements[judge] for judge in judges] if steps else []
    sections: dict[str, list[Any]] = {"Summary": [_summary(steps)]}
    if reproduced:
        said.insert(0, reproduced["statement"])
        sections["Claims"] = [claims.claims_table(reproduced)]
        sections["Figures"] = list(claims.figures(reproduced))
    found = _collections(config, steps)
    sections |= {
        "Evaluation": [EVALUATIONS[step.kind](step.name, of) for step, of in measured],
        "Sweeps": [_sweep(step) for step in steps],
        "Training": [_training(step) for step in steps],
        "Feedback": [_judging(step) for step in steps],
        "Records": [browser.browser(found)] if found else [],
        "Steps": [_steps(steps)] if steps else [],
    }
    kept = {name: [p for p in parts if p] for name, parts in sections.items() if any(parts)}
    # The browser's own names stand in the page too.
    anchors = {name: f"section-{name.lower()}" for name in kept}
    links = (element("a", name, href=f"#{anchor}") for name, anchor in anchors.items())
    return document(
        "Constitutional AI: report of a run",
        STYLE,
        element("h1", "Constitutional AI: report of a run"),
        *(element("p", statement, class_="statement") for statement in dict.fromkeys(said)),
        element("nav", *links, aria_label="Sections"),
        element("main", *(section(anchors[name], name, *parts) for name, parts in kept.items())),
        script=SCRIPT,
    )


def _summary(steps: Sequence[Step]) -> Html:
    """What was run, and what the RL steps came to."""
    if not steps:
        return Html("")
    seconds = math.fsum(step.manifest.get("seconds") or 0 for step in steps)
    seeds = dict.fromkeys(step.manifest.get("seed") for step in steps)
    of_seed = f", seed {next(iter(seeds))}" if len(seeds) == 1 and None not in seeds else ""
    facts = [f"{len(steps)} finished steps{of_seed}, {duration(seconds)} of computing."]
    for step in steps:
        counts = step.manifest.get("counts", {})
        if step.kind == "ppo" and "first_score" in counts:
            first, last, kl = (number(counts[n]) for n in ("first_score", "score", "kl"))
            facts.append(
                f"{step.name}: the preference model's score went from {first} to {last}, at a KL "
                f"of {kl} nats a response to where it began."
            )
        if step.kind == "ppo":
            facts.append(alarm_line(step.name, counts))
    return element("ul", *(element("li", fact) for fact in facts), class_="facts")


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
    watched = Html("")
    if step.kind == "ppo":
        phrases = step.folder / "phrases.json"
        found = _read_json(phrases) if phrases.is_file() else []
        watched = watch(step.name, step.manifest.get("counts", {}), found)
    return element("div", heading, curves(step.kind, lines), measured, watched)


def _sweep(step: Step) -> Html | None:
    if step.kind != "contrast":
        return None
    return sweeps.swept_table(step.name, _read_json(step.folder / "contrast.json"))


def _judging(step: Step) -> Html | None:
    if step.kind != "feedback":
        return None
    caption = f"{step.name}: how the feedback model judged"
    return tables.judgements_table(step.manifest.get("counts", {}), caption)


def _collections(config: ConfigDict, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The records of all steps that have some to read, each step's share of them."""
    pairs = {
        pair.id: pair
        for step in steps
        if step.kind == "pair_answers"
        for pair in _records(step, "pairs.jsonl", schema.Pair)
    }
    found = []
    for step in steps:
        if step.kind in READABLE:
            readable = READABLE[step.kind]
            cases = readable.cases(_records(step, readable.file, readable.record_type), pairs)
            if cases:
                found.append((step, readable, cases))
    limit = min(config.num_records, max(config.all_records // max(len(found), 1), 1))
    return [
        browser.collection(
            f"{step.name}: {readable.what}",
            [readable.view(case) for case in records.spread(cases, limit)],
            total=len(cases),
            where=f"{step.name}/{readable.file}",
            group=readable.group,
            principles=_principles(step, readable.wording),
        )
        for step, readable, cases in found
    ]


class Readable(NamedTuple):
    """How the records of a kind of step are read: cases of them, and the view of a case."""

    what: str
    file: str
    record_type: type
    view: Callable[[Any], dict[str, Any]]
    group: str
    wording: str = ""
    cases: Callable[[list, Mapping[str, schema.Pair]], list] = lambda records, _: records


def _with_rounds(chains: list, _: Any) -> list:
    return [chain for chain in chains if chain.rounds]


def _by_prompt(answers: list, _: Any) -> list:
    return records.grouped(answers, lambda answer: (answer.prompt_set, answer.id))


def _by_pair(judgements: list, pairs: Mapping[str, schema.Pair]) -> list:
    by_pair = records.grouped(judgements, lambda judgement: judgement.id)
    return [(pairs[of[0].id], of) for of in by_pair if of[0].id in pairs]


def _judged(case: tuple[schema.Pair, list[schema.Judgement]]) -> dict[str, Any]:
    return records.judged_view(*case)


READABLE = {
    "critique_revise": Readable(
        "critiques and revisions",
        "chains.jsonl",
        schema.Chain,
        records.chain_view,
        group="chain",
        wording="critique_request",
        cases=_with_rounds,
    ),
    "feedback": Readable(
        "comparisons",
        "comparisons.jsonl",
        schema.Comparison,
        records.comparison_view,
        group="label",
        wording="comparison",
    ),
    "ppo": Readable(
        "RL samples", "rollouts.jsonl", schema.Rollout, records.rollout_view, group="iteration"
    ),
    "evaluate": Readable(
        "answers",
        "samples.jsonl",
        schema.Answer,
        records.answers_view,
        group="prompt set",
        cases=_by_prompt,
    ),
    "elo": Readable(
        "Elo pairs",
        "judgements.jsonl",
        schema.Judgement,
        _judged,
        group="two models",
        cases=_by_pair,
    ),
}


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
    if not wording or not path.is_file():
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
