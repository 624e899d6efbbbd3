"""A small workdir of a run that never was, in the desk-scale world's words."""

import dataclasses
import json
import math
import random

from cai_jax.algorithms.intervals import estimates
from cai_jax.data.schema import (
    Answer,
    Chain,
    Comparison,
    Judgement,
    Pair,
    Rollout,
    Round,
    Turn,
    write_records,
)
from cai_jax.sandbox import judging, language

MODELS = {"pretrained": 0.0, "helpful": 0.02, "sl_cai": 0.65, "rl_cai": 0.97}


def make_workdir(workdir, num_prompts=12, num_updates=40, seed=0, hostile=""):
    """Writes finished steps; `hostile` text is put into every place a model could write to."""
    rng = random.Random(seed)
    requests = [
        language.draw_request(rng, language.harms(), held_out=True) for _ in range(num_prompts)
    ]
    chains = [_chain(rng, str(i), request, hostile) for i, request in enumerate(requests)]
    folder = _step(workdir, "revise", "critique_revise", records=len(chains), tokens=5120)
    write_records(folder / "chains.jsonl", chains)
    _constitution(folder)
    folder = _step(workdir, "sl_cai", "finetune", ["revise"], records=480, tokens=90_000)
    _metrics(folder, num_updates, lambda t: {"loss": 0.4 + 2 * math.exp(-6 * t), "grad_norm": 1.0})
    comparisons = [_comparison(rng, str(i), request, hostile) for i, request in enumerate(requests)]
    folder = _step(workdir, "labels", "feedback", ["sl_cai"], records=len(comparisons), tokens=99)
    write_records(folder / "comparisons.jsonl", comparisons)
    _constitution(folder)
    folder = _step(workdir, "pm", "preference", ["labels"], records=480, tokens=70_000)
    _metrics(
        folder,
        num_updates,
        lambda t: {"loss": 0.69 - 0.3 * t, "accuracy": 0.5 + 0.45 * t * rng.uniform(0.9, 1)},
    )
    folder = _step(workdir, "rl_cai", "ppo", ["pm", "sl_cai"], records=900, tokens=40_000)
    _metrics(
        folder,
        num_updates,
        lambda t: {"score": 3 * t + rng.gauss(0, 0.3), "kl": 2 * t * t, "length": 30 + 4 * t},
    )
    rollouts = [
        Rollout(
            f"{i}/{k}",
            i,
            request.dialogue,
            language.explain(rng, request.category).text + hostile,
            score=0.1 * i + 0.01 * k,
            kl=0.05 * i,
            finish_reason="stop",
        )
        for i in range(0, num_updates, 4)
        for k, request in enumerate(requests[:4])
    ]
    write_records(folder / "rollouts.jsonl", _plain(rollouts))
    (folder / "phrases.json").write_text(json.dumps([_phrase(hostile)]))
    _evaluate(workdir, rng, requests, chains, comparisons, hostile)
    _rate(workdir, requests, comparisons)
    (workdir / "unfinished").mkdir()
    return workdir


def _evaluate(workdir, rng, requests, chains, comparisons, hostile):
    folder = _step(workdir, "evaluate", "evaluate", ["sl_cai", "rl_cai"], records=99, tokens=999)
    answers, models = [], {}
    for name, skill in MODELS.items():
        measures = {}
        for i, request in enumerate(requests):
            explains = rng.random() < skill
            response = (language.explain if explains else language.comply)(rng, request.category)
            verdict, found, _ = judging.judge_answer("red_team", request.text, response.text)
            for measure, value in found.items():
                measures.setdefault(measure, []).append((value, i))
            text = response.text + hostile
            turns = _turns(request)
            answers.append(Answer(str(i), "red_team", name, turns, text, "stop", verdict))
        models[name] = estimates(measures, seed=0, num_resamples=200)
        centre = 600 * (skill - 0.65)
        models[name] |= {"harmlessness_elo": centre, "helpfulness_elo": 20 * skill}
        ends = {"harmlessness_elo": [centre - 40, centre + 55], "helpfulness_elo": [-30, 45]}
        models[name]["intervals"] |= ends
    revisions = judging.chain_measures(chains)
    feedback = judging.feedback_measures(comparisons, lambda c: c.p_a)
    evaluation = {
        "judge": "oracle",
        "anchor": "sl_cai",
        "level": 0.95,
        "models": models,
        "chains": {"revisions": [estimates(case, seed=0) for case in revisions]},
        "critiques": estimates(judging.critique_measures(chains), seed=0),
        "feedback": {"direct": estimates(feedback, seed=0)},
        "preference": {"accuracy": 0.94, "log_loss": 0.31, "label_entropy": 0.27},
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    write_records(folder / "samples.jsonl", answers)


def _rate(workdir, requests, comparisons):
    """Pairs of two models' answers, and what a preference model and a person said of them."""
    pairs, judgements = [], []
    for request, c in zip(requests, comparisons):
        tags = {"prompt_set": "red_team", "prompt": c.id, "model_a": "sl_cai", "model_b": "rl_cai"}
        pairs.append(Pair(f"pair-{c.id}", _turns(request), c.response_a, c.response_b, tags))
        said = {"preference_model": (0.25, None), "people": (None, "ann")}
        judgements += [
            Judgement(f"pair-{c.id}", "red_team", c.id, "sl_cai", "rl_cai", judge, *of)
            for judge, of in said.items()
        ]
    folder = _step(workdir, "pairs", "pair_answers", ["evaluate"], records=len(pairs), tokens=0)
    write_records(folder / "pairs.jsonl", pairs)
    folder = _step(workdir, "rate", "elo", ["pairs"], records=len(judgements), tokens=0)
    write_records(folder / "judgements.jsonl", judgements)
    found = {"level": 0.95, "anchor": "", "judges": {}, "agreement": {}}
    (folder / "evaluation.json").write_text(json.dumps(found))


def write_claims(workdir, hostile=""):
    """The claims.json of `cai_jax.reproduce`, with one claim and one figure."""
    interval = {"value": 0.42, "low": 0.31, "high": None}
    part = {"name": f"gain{hostile}", "interval": interval, "asked": "above 0", "holds": True}
    claim = {"number": 1, "claim": "Improves with size", "figure": "4", "verdict": "held"}
    claim |= {"parts": [part], "reason": ""}
    required = claim | {"number": 0, "claim": "In this order", "figure": "2"}
    curve = {"name": "direct", "x": [1, 2], "y": [interval, interval | {"high": 0.5}]}
    panel = {"title": "Accuracy", "x_label": "parameters", "y_range": None, "log_x": True}
    panel["curves"] = [curve, curve | {"name": "<other>"}]
    figure = {"title": "Of harm", "ours": [panel], "paper": [panel], "note": "", "missing": ""}
    models = {
        name: {"title": title, "helpfulness_elo": interval, "evasive_rate": interval}
        | {"harmlessness_elo": {"value": elo, "low": elo - 50.0, "high": elo + 50.0}}
        for name, title, elo in (("sl_cai", "SL-CAI", 0.0), ("rl_cai", "RL-CAI", 200.0))
    }
    found = {
        "statement": "Tiny models. They say nothing about real language models.",
        "about": "Scale: quick. Seeds: 3.",
        "variants": {},
    }
    found |= {"card": {"step": "evaluate", "models": models}, "source": "arXiv", "checks": []}
    found |= {"claims": [claim], "required": required, "figures": {"4": figure}}
    (workdir / "claims.json").write_text(json.dumps(found))


def _phrase(hostile):
    return {"phrase": f"you are valued{hostile}", "first": 0.0, "last": 0.5, "log_ratio": 3.5}


def _step(workdir, name, kind, inputs=(), **counts):
    folder = workdir / name
    folder.mkdir(parents=True)
    sources = {f"data[{i}]": {"reference": name, "hash": ""} for i, name in enumerate(inputs)}
    manifest = {"kind": kind, "inputs": sources, "seconds": 1.5, **counts}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _constitution(folder):
    principles = [language.principle_json(*p) for p in language.constitution_focuses().items()]
    (folder / "constitution.json").write_text(json.dumps({"principles": principles}))


def _metrics(folder, num_updates, line):
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(num_updates):
            file.write(json.dumps({"step": step, **line(step / num_updates)}) + "\n")


def _turns(request):
    return tuple(Turn(turn.role, turn.text) for turn in request.dialogue)


def _plain(records):
    return [dataclasses.replace(r, dialogue=tuple(Turn(*t) for t in r.dialogue)) for r in records]


def _chain(rng, identifier, request, hostile):
    response = language.with_remark(rng, language.comply(rng, request.category))
    text, rounds = response.text, []
    focuses = language.constitution_focuses()
    for principle in rng.choices(list(focuses), k=4):
        covered = language.covered_harms(focuses[principle])
        critique = language.critique(response, covered)
        response = language.revise(rng, response, covered)
        rounds.append(Round(principle, critique + hostile, response.text + hostile))
    return Chain(identifier, _turns(request), text + hostile, tuple(rounds))


def _comparison(rng, identifier, request, hostile):
    a, b = language.comply(rng, request.category), language.refuse(rng, request.category)
    focuses = language.constitution_focuses()
    principle = rng.choice(list(focuses))
    covered = language.covered_harms(focuses[principle])
    p_a = 0.1 if request.category in covered else 0.52
    return Comparison(
        identifier,
        _turns(request),
        a.text + hostile,
        b.text + hostile,
        p_a,
        "feedback",
        principle,
        math.log(p_a),
        math.log(1 - p_a),
        True,
        language.reasoning(a, b, covered) + hostile,
    )
