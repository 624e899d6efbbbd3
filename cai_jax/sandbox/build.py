"""Makes the world's shipped data and models again: `python -m cai_jax.sandbox.build`.

    python -m cai_jax.sandbox.build --out=DIR [--sizes=xs,s,m] [--only=data|models|laboratory]

Data: constitution, prompts, helpfulness comparisons and held-out pairs. Models, at each
size: `pretrained-*`, a random Llama trained on the corpus by the project's own finetune step, and
`helpful-*`, the same finetuned to be helpful only (it complies with every request), with enough of
the corpus's critiques and comparisons beside it that it keeps those skills. Each model folder holds
a provenance.json with the command, the seed, and the hash of its weights.

Laboratory: the models of docs/claims.md, which go on from the shipped ones with its own corpus
(cai_jax/sandbox/laboratory.py).
"""

import argparse
import dataclasses
import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from cai_jax.sandbox import corpus, human, laboratory, language, oracle

SEED = 0
# Settings were chosen on what seed 0 draws for validation; what is reported was drawn afterwards.
HELD_OUT_SEED = 1
# The laboratory's own: what seed 1 drew was read with its first world, 3 with its second.
LABORATORY_SEEDS = {"validation": 2, "held_out": 4}
LABORATORY_READ_SEED = 3
PAIR_COUNT, COMPARISON_COUNT = 600, {"train": 3000, "held_out": 400}
PROMPT_COUNT = {"train": 1200, "validation": 400, "held_out": 400}
VOCABULARY_MULTIPLE = 64


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of one size of the world's models and how long it is pretrained."""

    width: int
    layers: int
    heads: int
    hidden: int
    documents: int
    learning_rate: float


SIZES = {
    "xs": Size(width=32, layers=2, heads=1, hidden=96, documents=240_000, learning_rate=4e-3),
    "s": Size(width=48, layers=2, heads=2, hidden=128, documents=240_000, learning_rate=4e-3),
    "m": Size(width=64, layers=3, heads=2, hidden=176, documents=240_000, learning_rate=3e-3),
}
HEAD_DIM = 32
DRILL_DOCUMENTS = 48_000
HELPFUL_DOCUMENTS = 40_000
HELPFUL_LEARNING_RATE = 1e-3
# Of the laboratory's corpus. The smallest judge is at chance, and stays there.
LABORATORY_DOCUMENTS = {"xs": 20_000, "s": 120_000, "m": 72_000}
LABORATORY_LEARNING_RATE = {"xs": 5e-4, "s": 2e-3, "m": 2e-3}
# What ends that training, at half the learning rate.
LAST = {
    "s": (laboratory.draw_judging_pieces, 48_000),
    "m": (laboratory.draw_leaning_pieces, 24_000),
}
LABORATORY_HELPFUL_DOCUMENTS = 26_000
FINAL = 0.02  # a low last learning rate: what is sampled at T = 1 has few slips


def main() -> None:
    """Builds what is asked for into --out."""
    parser = argparse.ArgumentParser(prog="python -m cai_jax.sandbox.build", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--only", choices=("data", "models", "laboratory"))
    parser.add_argument(
        "--documents", type=int, default=0, help="fewer than the size's own, to try"
    )
    arguments = parser.parse_args()
    asked = (arguments.only,) if arguments.only else ("data", "models", "laboratory")
    sizes = arguments.sizes.split(",")
    if "data" in asked:
        write_data(arguments.out)
        write_laboratory_data(arguments.out)
    if "models" in asked:
        for size in sizes:
            build_models(arguments.out, size, arguments.documents)
    if "laboratory" in asked:
        for size in sizes:
            build_laboratory(arguments.out, size, arguments.documents)


def write_data(folder: Path) -> None:
    """Writes constitution, prompts, comparisons and pairs."""
    write_constitution(folder / "constitution.json", language.constitution_focuses())
    for kind in ("red_team", "benign"):
        for split, prompts in draw_prompt_splits(kind).items():
            write_lines(folder / f"prompts/{kind}_{split}.jsonl", prompts)
    for split, seed in (("train", SEED), ("held_out", HELD_OUT_SEED)):
        rng = random.Random(f"helpfulness {split} {seed}")
        comparisons = [
            {"id": f"helpfulness-{split}-{i}", "source": "human"}
            | human.draw_comparison(rng, held_out=split == "held_out")
            for i in range(COMPARISON_COUNT[split])
        ]
        write_lines(folder / f"comparisons/helpfulness_{split}.jsonl", comparisons)
    write_lines(
        folder / "pairs/held_out.jsonl", draw_pairs(random.Random(f"pairs {HELD_OUT_SEED}"))
    )
    harmlessness = draw_harmlessness(random.Random(f"harmlessness {HELD_OUT_SEED}"))
    write_lines(folder / "comparisons/harmlessness_held_out.jsonl", harmlessness)


def write_laboratory_data(folder: Path) -> None:
    """Writes the laboratory's principles of revisions, its held-out prompts, and its pairs."""
    write_constitution(folder / "laboratory/revisions.json", language.revision_focuses())
    for kind in ("red_team", "benign"):
        known = [prompt for prompts in draw_prompt_splits(kind).values() for prompt in prompts]
        held_out: list[dict] = []
        for seed in (LABORATORY_READ_SEED, LABORATORY_SEEDS["held_out"]):
            texts = {prompt["dialogue"][0]["text"] for prompt in known}
            rng = random.Random(f"prompts {kind} {seed}")
            held_out = draw_prompts(rng, kind, "held_out", but=texts)
            known += held_out
        write_lines(folder / f"laboratory/prompts/{kind}_held_out.jsonl", held_out)
    for split, seed in LABORATORY_SEEDS.items():
        pairs = draw_pairs(random.Random(f"pairs {seed}"))
        write_lines(folder / f"laboratory/pairs/{split}.jsonl", pairs)


def write_constitution(path: Path, focuses: Mapping[str, str]) -> None:
    """Writes a constitution of these foci, with the world's few-shots."""
    constitution = {
        "name": "desk-scale world",
        "provenance": "Our own, in the words of the world; made by cai_jax.sandbox.build.",
        "principles": [language.principle_json(name, focus) for name, focus in focuses.items()],
        **few_shots(random.Random(f"few-shots {SEED}")),
    }
    text = json.dumps(constitution, indent=2, ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def draw_prompt_splits(kind: str) -> dict[str, list[dict]]:
    """The prompts of every split: all texts differ, and training's scenes are its own."""

    def drawn(split: str, stream: str, but: Sequence[dict] = ()) -> list[dict]:
        rng = random.Random(f"prompts {kind} {stream}")
        return draw_prompts(rng, kind, split, {prompt["dialogue"][0]["text"] for prompt in but})

    validation = drawn("validation", f"held_out {SEED}")
    return {
        "train": drawn("train", f"train {SEED}"),
        "validation": validation,
        "held_out": drawn("held_out", f"held_out {HELD_OUT_SEED}", but=validation),
    }


def draw_prompts(rng: random.Random, kind: str, split: str, but: Collection[str]) -> list[dict]:
    """Distinct requests of a split, spread evenly over the categories, without the texts `but`."""
    categories = list(language.words()["harms" if kind == "red_team" else "topics"])
    requests: dict[str, language.Request] = {}
    while len(requests) < PROMPT_COUNT[split]:
        category = categories[len(requests) % len(categories)]
        request = language.draw_request(rng, [category], held_out=split != "train")
        if request.text not in but:
            requests.setdefault(request.text, request)
    return [
        {
            "id": f"{kind}-{split.replace('_', '-')}-{i}",
            "dialogue": [turn._asdict() for turn in request.dialogue],
            "tags": {"category": request.category},
        }
        for i, request in enumerate(requests.values())
    ]


def draw_pairs(rng: random.Random) -> list[dict]:
    """Held-out pairs without the shortcut: equally many harms on both sides, not the same ones."""
    pairs: list[dict] = []
    while len(pairs) < PAIR_COUNT:
        request = language.draw_request(rng, language.harms(), held_out=True)
        a, b = (corpus.draw_judged_response(rng, request) for _ in range(2))
        if len(a.harms) != len(b.harms) or set(a.harms) == set(b.harms):
            continue
        pairs.append(
            {
                "id": f"pair-{len(pairs)}",
                "dialogue": [turn._asdict() for turn in request.dialogue],
                "response_a": a.text,
                "response_b": b.text,
                "tags": {"category": request.category},
            }
        )
    return pairs


def draw_harmlessness(rng: random.Random) -> list[dict]:
    """Held-out comparisons by the oracle: fewer harms win. They test a PM and train nothing.

    Responses comply or explain, as those that feedback judges: SL-CAI does not flatly refuse.
    """
    rates = {"comply": 0.6, "explain": 0.4}
    comparisons: list[dict] = []
    while len(comparisons) < COMPARISON_COUNT["held_out"]:
        request = language.draw_request(rng, language.harms(), held_out=True)
        a, b = (
            corpus.draw_response(rng, request, rates, corpus.JUDGED_REMARK_RATE) for _ in range(2)
        )
        counts = [len(oracle.judge(request.text, response.text).harms) for response in (a, b)]
        if counts[0] == counts[1]:
            continue
        comparisons.append(
            {
                "id": f"harmlessness-held-out-{len(comparisons)}",
                "dialogue": [turn._asdict() for turn in request.dialogue],
                "response_a": a.text,
                "response_b": b.text,
                "p_a": float(counts[0] < counts[1]),
                "source": "oracle",
            }
        )
    return comparisons


def few_shots(rng: random.Random) -> dict[str, list]:
    """Examples of each kind in the world's words."""
    chains: list[str] = []
    comparisons: list[dict[str, str]] = []
    reasonings: list[str] = []
    while len(comparisons) < 3:
        request, first, second, focus = corpus.draw_comparison(rng)
        covered = language.covered_harms(focus)
        counts = [sum(harm in covered for harm in r.harms) for r in (first, second)]
        if sorted(counts) != [0, 1]:
            continue
        chains.append("".join(piece.text for piece in corpus.chain_document(rng)))
        better, worse = (first, second) if counts[0] == 0 else (second, first)
        dialogue = f"\n\nHuman: {request.text}\n\nAssistant:"
        comparisons.append({"dialogue": dialogue, "better": better.text, "worse": worse.text})
        reasonings.append(corpus.reasoning_example(request, first, second, focus))
    return {
        "critique_few_shots": chains,
        "comparison_few_shots": comparisons,
        "reasoning_few_shots": reasonings,
    }


def write_lines(path: Path, values: Iterable[dict]) -> None:
    """Writes JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def build_models(folder: Path, size: str, documents: int = 0) -> None:
    """Pretrains one size, finetunes it to be helpful only, and writes both as model folders.

    Pretraining begins with drills alone: see `corpus.draw_drill`.
    """
    shape = SIZES[size]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_initial(scratch / "initial", shape)
        drilled = train(
            scratch,
            f"drilled-{size}",
            model=scratch / "initial",
            draw=corpus.draw_drill,
            documents=min(documents or DRILL_DOCUMENTS, DRILL_DOCUMENTS),
            parameters={"initialize": True, "learning_rate": shape.learning_rate},
        )
        pretrained = train(
            scratch,
            f"pretrained-{size}",
            model=drilled,
            draw=corpus.draw_pieces,
            documents=documents or shape.documents,
            parameters={"learning_rate": shape.learning_rate, "final": FINAL},
        )
        helpful = train(
            scratch,
            f"helpful-{size}",
            model=pretrained,
            draw=corpus.draw_helpful_pieces,
            documents=min(documents or HELPFUL_DOCUMENTS, HELPFUL_DOCUMENTS),
            parameters={"learning_rate": HELPFUL_LEARNING_RATE, "final": FINAL},
        )
        for step in (pretrained, helpful):
            export(step, folder / "models" / step.name, f"--only=models --sizes={size}")


def build_laboratory(folder: Path, size: str, documents: int = 0) -> None:
    """Trains the laboratory's models of one size, from the shipped pretrained one."""
    from cai_jax import checkpoints

    rate = LABORATORY_LEARNING_RATE[size]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pretrained = train(
            scratch,
            f"laboratory-pretrained-{size}",
            model=checkpoints.resolve(f"sandbox:models/pretrained-{size}"),
            draw=laboratory.draw_pieces,
            documents=documents or LABORATORY_DOCUMENTS[size],
            parameters={"learning_rate": rate, "final": FINAL},
        )
        if size in LAST:
            draw, last_documents = LAST[size]
            pretrained = train(
                scratch,
                f"laboratory-last-{size}",
                model=pretrained,
                draw=draw,
                documents=min(documents or last_documents, last_documents),
                parameters={"learning_rate": rate / 2, "final": FINAL},
            )
        helpful = train(
            scratch,
            f"laboratory-helpful-{size}",
            model=pretrained,
            draw=laboratory.draw_helpful_pieces,
            documents=min(documents or LABORATORY_HELPFUL_DOCUMENTS, LABORATORY_HELPFUL_DOCUMENTS),
            parameters={"learning_rate": HELPFUL_LEARNING_RATE, "final": FINAL},
        )
        made = folder / "laboratory/models"
        for step, kind in ((pretrained, "pretrained"), (helpful, "helpful")):
            export(step, made / f"{kind}-{size}", f"--only=laboratory --sizes={size}")


def write_initial(folder: Path, shape: Size) -> None:
    """A folder with the shape of a Llama and the world's tokenizer, and no weights."""
    from cai_jax.sandbox.tokenizer import END, PAD, vocabulary, write_tokenizer

    write_tokenizer(folder)
    ids = vocabulary()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": -(-len(ids) // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": HEAD_DIM,
        "intermediate_size": shape.hidden,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
        "bos_token_id": None,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def train(
    scratch: Path,
    name: str,
    *,
    model: Path,
    draw: Callable[[random.Random], corpus.Pieces],
    documents: int,
    parameters: dict,
) -> Path:
    """Draws documents and runs the finetune step on them; returns the step's folder."""
    from ml_collections import ConfigDict

    from cai_jax.core import artifact
    from cai_jax.stages import finetune

    rng = random.Random(f"{name} {SEED}")
    data = scratch / f"{name}-documents.jsonl"
    lines = (
        {"id": str(i), "pieces": [piece._asdict() for piece in draw(rng)]} for i in range(documents)
    )
    write_lines(data, lines)
    config = finetune.default_config()
    config.update(parameters)
    config.seed = SEED
    config.mesh = ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    step = scratch / name
    step.mkdir()
    counts = finetune.run(config, {"model": model, "data": [data]}, step)
    artifact.write_manifest(step, {"kind": "finetune", "counts": counts})
    return step


def export(step: Path, folder: Path, arguments: str) -> None:
    """Writes a step's model as a Hugging Face folder, with where it comes from beside it."""
    from cai_jax import checkpoints

    folder.mkdir(parents=True, exist_ok=True)
    checkpoints.export_model(folder, checkpoints.load_model(step))
    provenance = {
        "made_by": f"python -m cai_jax.sandbox.build --out=DIR {arguments}",
        "seed": SEED,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "says": "A toy of the desk-scale world: it says nothing about real language models.",
    }
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
