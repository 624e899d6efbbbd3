"""The report: one self-contained HTML page, computed from the artifacts of a run alone.

The same steps give the same bytes wherever their folders are. Nothing is fetched, the only script
is the page's own, and text that a model wrote is data to it, behind a click (page/browser.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.core import artifact
from cai_jax.core.progress import duration
from cai_jax.data import rows, schema
from cai_jax.errors import InputError
from cai_jax.page import browser, card, claims, figures, records, sweeps
from cai_jax.page import steps as sections
from cai_jax.page.evaluation import judgements_table
from cai_jax.page.markup import Html, document, element, section
from cai_jax.page.readable import READABLE
from cai_jax.page.style import SCRIPT, STYLE

PAGE = "index.html"
CLAIMS, FIRST_SEED = "claims.json", "seed-0"  # of a workdir of `cai_jax.reproduce`
CARD_SETS = ("red_team", "benign")  # the first prompt of each is shown with the models' answers

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

    @property
    def counts(self) -> Mapping[str, Any]:
        """What its `run` counted."""
        found: Mapping[str, Any] = self.manifest.get("counts", {})
        return found

    def json(self, name: str) -> Any:
        """The content of one of its files; None if it has none of this name."""
        path = self.folder / name
        return _read_json(path) if path.is_file() else None

    def records(self, name: str, record_type: type) -> list:
        """The records of one of its files; none if it has no such file."""
        path = self.folder / name
        return schema.read_records(path, record_type) if rows.exists(path) else []


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
        InputError: if the folder is not there, has no finished step, or a claims.json of before.
    """
    if not workdir.is_dir():
        raise InputError(f"{workdir}: expected the workdir of a run, found no folder")
    path = workdir / CLAIMS
    reproduced = _read_json(path) if path.is_file() else None
    if reproduced and not claims.FIELDS.issubset(reproduced):
        raise InputError(
            f"{path}: expected {', '.join(sorted(claims.FIELDS))}, found an older file; write it "
            f"again: python -m cai_jax.reproduce --workdir={workdir} --read_only"
        )
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
    measured = {
        step.name: step.json("evaluation.json")
        for step in steps
        if step.kind in sections.EVALUATIONS
    }
    title = "Constitutional AI: report of a run"
    parts: dict[str, list[Any]] = {"Summary": _summary(steps, measured, reproduced)}
    if reproduced:
        title = "Constitutional AI at desk scale"
        parts["Claims"] = [claims.claims_table(reproduced), claims.checks(reproduced)]
        parts["Figures"] = [*_figures(reproduced)]
    found = _collections(config, steps)
    kinds = {step.name: step.kind for step in steps}
    parts |= {
        "Records": [browser.browser(found)] if found else [],
        "Evaluation": sections.parts(
            [(name, sections.EVALUATIONS[kinds[name]](of)) for name, of in measured.items()]
        ),
        "Sweeps": sections.parts(
            [
                (step.name, sweeps.swept(step.json("contrast.json")))
                for step in steps
                if step.kind == "contrast"
            ]
        ),
        "Training": sections.parts([of for step in steps if (of := _training(step))]),
        "Feedback": [
            judgements_table({step.name: step.counts for step in steps if step.kind == "feedback"})
        ],
        "Steps": [sections.taken([(s.name, s.kind, s.manifest) for s in steps])] if steps else [],
    }
    kept = {name: [p for p in of if p] for name, of in parts.items() if any(of)}
    # The browser's own names stand in the page too.
    anchors = {name: f"section-{name.lower()}" for name in kept}
    links = (element("a", name, href=f"#{anchor}") for name, anchor in anchors.items())
    said = _statements(steps, measured, reproduced)
    return document(
        title,
        STYLE,
        element("h1", title),
        *(element("p", statement, class_="statement") for statement in said),
        element("nav", *links, aria_label="Sections"),
        element("main", *(section(anchors[name], name, *of) for name, of in kept.items())),
        script=SCRIPT,
    )


def _statements(
    steps: Sequence[Step], measured: Mapping[str, Any], reproduced: Mapping[str, Any] | None
) -> list[str]:
    """What the numbers are worth, by who judged."""
    statements = {"oracle": SANDBOX, "preference_model": PREFERENCE_MODEL, "none": NO_JUDGE}
    evaluated = [step.name for step in steps if step.kind == "evaluate"]
    judges = dict.fromkeys(measured[name]["judge"] for name in evaluated)
    if not measured:
        judges = {"none": None}
    elif len(evaluated) < len(measured):
        judges.pop("none", None)
    said = [statements[judge] for judge in judges] if steps else []
    if reproduced:
        # It says of the oracle's world what SANDBOX does.
        said = [reproduced["statement"], *(one for one in said if one is not SANDBOX)]
    return said


def _summary(
    steps: Sequence[Step], measured: Mapping[str, Any], reproduced: Mapping[str, Any] | None
) -> list[Html | None]:
    """The models side by side; what was run, and what the RL steps came to."""
    facts = [claims.headline(reproduced)] if reproduced else []
    if steps:
        seconds = math.fsum(step.manifest.get("seconds") or 0 for step in steps)
        seeds = dict.fromkeys(step.manifest.get("seed") for step in steps)
        of_seed = f", seed {next(iter(seeds))}" if len(seeds) == 1 and None not in seeds else ""
        facts.append(f"{len(steps)} finished steps{of_seed}, {duration(seconds)} of computing.")
    shown = element("ul", *(element("li", fact) for fact in facts), class_="facts")
    reinforced = [(step.name, step.counts) for step in steps if step.kind == "ppo"]
    return [shown, _card(steps, measured, reproduced), sections.reinforced(reinforced)]


def _card(
    steps: Sequence[Step], measured: Mapping[str, Any], reproduced: Mapping[str, Any] | None
) -> Html | None:
    """The models in one glance: of `cai_jax.reproduce`, or of the first evaluation that can."""
    if reproduced:
        name, models = reproduced["card"]["step"], reproduced["card"]["models"]
        caption = "Means on held-out prompts, with 95 % intervals over seeds. Elo 0 is SL-CAI."
    else:
        cards = {name: card.of_evaluation(of) for name, of in measured.items()}
        name, models = next(((n, of) for n, of in cards.items() if of), ("", {}))
        level = 100 * measured[name].get("level", 0.95) if models else 0
        caption = f"{name}: on held-out prompts, {level:.0f} % bootstrap intervals over prompts."
    if not models:
        return None
    answers = [
        answer
        for step in steps
        if step.name == name
        for answer in step.records("samples.jsonl", schema.Answer)
        if answer.model in models
    ]
    cases = records.grouped(answers, lambda answer: (answer.prompt_set, answer.id))
    first = [next((of for of in cases if of[0].prompt_set == name), []) for name in CARD_SETS]
    return card.card(models, [case for case in first if case], caption)


def _figures(reproduced: Mapping[str, Any]) -> Iterable[Html]:
    for name, figure in reproduced["figures"].items():
        if figure["ours"] or figure["missing"]:
            yield figures.shown(name, figure)
        elif reproduced["variants"]:
            heading = element("h3", figures.heading(name, figure))
            table = figures.variants_table(reproduced["variants"])
            yield element("div", heading, table, id=figures.anchor(name))
    yield element("p", f"The paper's numbers: {reproduced['source']}", class_="note")


def _training(step: Step) -> tuple[str, Html] | None:
    path = step.folder / "metrics.jsonl"
    if not path.is_file():
        return None
    lines = [value for _, value in schema.json_lines(path)]
    measured, phrases = step.json("evaluation.json"), step.json("phrases.json") or []
    shown = sections.training(step.kind, lines, measured, step.counts, phrases)
    return f"{step.name} ({step.kind})", shown


def _collections(config: ConfigDict, steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The records of all steps that have some to read, each step's share of them."""
    pairs = {
        pair.id: pair
        for step in steps
        if step.kind == "pair_answers"
        for pair in step.records("pairs.jsonl", schema.Pair)
    }
    found = []
    for kind, readable in READABLE.items():
        for step in (step for step in steps if step.kind == kind):
            record_type = getattr(schema, readable.record_type)
            cases = readable.cases(step.records(readable.file, record_type), pairs)
            if cases:
                found.append((step, readable, cases))
    limit = min(config.num_records, max(config.all_records // max(len(found), 1), 1))
    return [
        browser.collection(
            step.name,
            readable.what,
            [readable.view(case) for case in records.spread(cases, limit)],
            total=len(cases),
            where=f"{step.name}/{readable.file}",
            group=readable.group,
            principles=_principles(step, readable.wording),
        )
        for step, readable, cases in found
    ]


def _principles(step: Step, wording: str) -> dict[str, str]:
    """Principle id -> its wording, if the step kept its constitution beside its records."""
    if not wording:
        return {}
    constitution = step.json("constitution.json") or {}
    return {p["id"]: p[wording] for p in constitution.get("principles", [])}


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
