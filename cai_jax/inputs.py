"""What a run is given from outside: found, checked and counted before the first step begins."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_jax import checkpoints, hosts
from cai_jax.core import artifact
from cai_jax.data import blind, readers, rows, schema, tfds_splits, xstest
from cai_jax.data.bad_records import BadRecords
from cai_jax.errors import InputError
from cai_jax.text.constitution import load_constitution

MODEL_ROLES = ("model", "models", "preference_model", "judge")
SCORING_ROLES = ("preference_model", "judge")
PROMPT_ROLES = ("prompts", "red_team", "benign")
COMPARISON_ROLES = ("comparisons", "held_out")
# What may be a file of other people, if the step has `fields` for it.
FILE_ROLES = (*PROMPT_ROLES, *COMPARISON_ROLES, "pairs")

# A record type shows in a field that only it has; the first that fits counts.
RECORD_TYPES = {
    "pieces": schema.Document,
    "rounds": schema.Chain,
    "p_a": schema.Comparison,
    "response_a": schema.Pair,
    "verdict": schema.Answer,
    "response": schema.Demonstration,
}
# The kinds of steps that make what a role needs; a role that is not here takes any.
MAKERS = {
    "model": ("finetune", "ppo", "dpo", "preference"),
    "models": ("finetune", "ppo", "dpo", "preference"),
    "preference_model": ("preference",),
    "judge": ("preference",),
    "prompts": ("red_team",),
    "data": ("critique_revise", "best_of_n"),
    "chains": ("critique_revise",),
    "pairs": ("compare", "pair_answers"),
    "answers": ("evaluate",),
    "votes": (),
    "comparisons": ("feedback", "human_labels"),
    "held_out": ("feedback", "human_labels"),
}
CHARACTERS_PER_TOKEN = 4  # of English text, for plans alone


def resolve(role: str, reference: str, config: Mapping[str, Any]) -> Path:
    """The path of a reference that is no step's name.

    Args:
        role: what the step uses it for.
        reference: a path, "sandbox:...", "tfds:...", or a model's id.
        config: of the step, whose `data.tfds_dir` says where TFDS data sets are.

    Raises:
        InputError: there is no such file, folder, data set or model.
    """
    if role in MODEL_ROLES:
        return checkpoints.model_folder(reference)
    if reference.startswith(tfds_splits.PREFIX):
        if role not in FILE_ROLES or "fields" not in config:
            raise InputError(f"{reference}: expected a file or folder, found a TFDS data set")
        return tfds_splits.resolve(reference, _data(config)["tfds_dir"])
    return checkpoints.resolve(reference)


def _data(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config.get("data", readers.default_data())


def fingerprint(path: Path) -> str:
    """SHA-256 of what a path means; of a TFDS split, that of its whole data set."""
    return artifact.fingerprint(path.parent if tfds_splits.is_split(path) else path)


def check_maker(role: str, kind: str) -> None:
    """Refuses a step of a kind that does not make what `role` needs."""
    from cai_jax.stages import kinds

    makers = MAKERS.get(role, (kind,))
    if kind in kinds() and kind not in makers:
        wanted = f"a step of kind {' or '.join(makers)}" if makers else "a file, no step"
        raise InputError(f"expected {wanted}, found one of kind {kind}")


def check_snapshot(role: str, reference: str, config: Mapping[str, Any]) -> None:
    """Refuses "STEP@N" where a model is not wanted, or where the step's config keeps no such."""
    if role not in MODEL_ROLES:
        raise InputError(f"expected a step, found a model along its training ({reference})")
    every, (_, number) = config.get("snapshot_every", 0), checkpoints.split_snapshot(reference)
    if not number or not every or number % every or number > config["iterations"]:
        raise InputError(
            f"expected a multiple of its snapshot_every ({every}), at most its iterations "
            f"({config.get('iterations', 0)}), found {number}"
        )


def check(role: str, path: Path, config: Mapping[str, Any]) -> None:
    """Refuses an input that the step which reads it would refuse, hours later perhaps.

    Args:
        role: what the step uses it for.
        path: as `resolve` gives it.
        config: of the step: its `fields` and `data.on_bad_record`, if it has them; with
            `initialize`, it draws a model's weights itself.

    Raises:
        InputError: naming file, line and field, and what was expected.
    """
    fields = config.get("fields", readers.NO_FIELDS)
    bad = BadRecords(_data(config)["on_bad_record"])
    if role in MODEL_ROLES:
        _check_model(role, path, not config.get("initialize", False))
    elif role == "constitution":
        load_constitution(path)
    elif role == "evaluations":
        from cai_jax.data.choices import read_choices

        read_choices(path)
    elif role == "xstest":
        xstest.read_xstest(path)
    elif role == "votes":
        for file in blind.vote_files(path):
            blind.read_votes(file)
    elif role in PROMPT_ROLES:
        readers.read_prompts(path, 0, fields, bad)
    elif path.is_dir():
        if not artifact.is_finished(path):
            raise InputError(
                f"{path}: expected a file or a finished step, found a folder without "
                f"{artifact.MANIFEST}"
            )
    elif role in COMPARISON_ROLES:
        _check_comparisons(path, fields, bad)
    elif role == "pairs" and "fields" in config:
        from cai_jax.data.judged import read_pairs

        read_pairs(path, fields, bad)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        _check_records(path, bad)


def count(role: str, path: Path) -> dict[str, Any]:
    """What a plan can know of an input: {"parameters"} of a model, else {"records", "tokens"}.

    The records of a constitution are its principles, and its few-shots are counted one by one.
    """
    if role in MODEL_ROLES:
        return {"parameters": parameter_count(path)}
    if role == "constitution":
        return _count_constitution(path)
    if path.is_dir():
        manifest = artifact.read_manifest(path) or {}
        return {name: manifest.get(name, 0) for name in ("records", "tokens")}
    if not (tfds_splits.is_split(path) or path.name.endswith(rows.ENDINGS)):
        return {"records": 1, "tokens": path.stat().st_size // CHARACTERS_PER_TOKEN}
    lengths = [len(str(row.value)) for row in rows.read_rows(path)]
    return {"records": len(lengths), "tokens": sum(lengths) // CHARACTERS_PER_TOKEN}


def _count_constitution(path: Path) -> dict[str, Any]:
    constitution = load_constitution(path)

    def tokens(*texts: str) -> int:
        return sum(map(len, texts)) // CHARACTERS_PER_TOKEN

    return {
        "records": len(constitution.principles),
        "tokens": sum(
            tokens(p.critique_request, p.revision_request, p.comparison)
            for p in constitution.principles
        ),
        "critique_few_shots": [tokens(text) for text in constitution.critique_few_shots],
        "comparison_few_shots": [
            tokens(example.dialogue, example.better, example.worse)
            for example in constitution.comparison_few_shots
        ],
        "reasoning_few_shots": [tokens(text) for text in constitution.reasoning_few_shots],
    }


def parameter_count(folder: Path) -> int:
    """The parameters of a model, by its config.json."""
    from cai_jax.models import weights

    return count_parameters(*weights.read_config(folder))


def count_parameters(config: Any, preference_model: bool) -> int:
    """The parameters of a `ModelConfig`: the sizes of all tensors that its family has."""
    from cai_jax.models import families

    return sum(
        math.prod(families.file_shape(tensor, config)) * (config.layers if tensor.stacked else 1)
        for tensor in families.tensors(config, preference_model)
    )


def _check_model(role: str, folder: Path, needs_weights: bool) -> None:
    from cai_jax.models import weights

    _, preference_model = weights.read_config(folder)
    if role in SCORING_ROLES and not preference_model:
        raise InputError(f"{folder}: expected a preference model (one label), found a causal LM")

    # A finished step's model is in Orbax's hands; a folder of Hugging Face can be anything.
    if needs_weights and not (folder / checkpoints.PARAMS).is_dir():
        weights.check_folder(folder)
    if not any(folder.glob("*token*")):
        raise InputError(f"{folder}: expected a tokenizer beside the weights, found none")


def _check_comparisons(path: Path, fields: Mapping[str, str], bad: BadRecords) -> None:
    """Each host reads its share of the rows; all must call."""
    found = list(readers.find_comparisons(path, fields))
    share = found[hosts.share(len(found))]
    parts = hosts.gathered(lambda: (sum(1 for _ in bad.good(share)), bad.found))
    bad.found = [of for _, part in parts for of in part]
    readers.check_some(sum(good for good, _ in parts), path, "comparison", bad)


def _check_records(path: Path, bad: BadRecords) -> None:
    """Each host reads rows up to the first that shows their type, and its share; all must call."""
    found = list(rows.find_rows(path))
    share = range(len(found))[hosts.share(len(found))]

    def check_share() -> bool:
        record_type = None
        for where, number, read in found:
            if record_type and number not in share:
                continue
            try:
                if isinstance(value := read(), InputError):
                    raise value
                if not isinstance(value, dict):
                    raise InputError(f"{where}: expected an object, found {str(value)[:40]!r}")
                record_type = record_type or _record_type(value, where)
                schema.parse(record_type, value, where)
            except InputError as error:
                bad.add(where, error)
        return record_type is not None

    if not any(hosts.gathered(check_share)):
        raise InputError(f"{path}: expected at least one record, found none")


def _record_type(value: Mapping[str, Any], where: str) -> type:
    fits = [kind for field, kind in RECORD_TYPES.items() if field in value]
    if not fits:
        raise InputError(
            f"{where}: expected a record with one of the fields {', '.join(RECORD_TYPES)}; "
            f"found {rows.listed(value)}"
        )
    return fits[0]
