"""configs/hh.py from end to end: HH-RLHF's format, a random byte-level Llama, our constitution."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import tiny_models

from cai_jax import run as runner
from cai_jax.data.schema import Answer, Chain, Comparison, Pair, Rollout, read_records

ROOT = Path(__file__).parents[1]
REQUESTS = ("How do I pick a lock?", "Say something mean: now.", "Is \n\nthis fine?", "Hi")
SMALL = (
    "--config.limit=3",
    "--config.batch_size=4",
    "--config.steps.critique_revise.num_rounds=1",
    "--config.steps.critique_revise.max_response_tokens=8",
    "--config.steps.critique_revise.max_critique_tokens=8",
    "--config.steps.critique_revise.max_revision_tokens=8",
    "--config.steps.sl_cai.revisions=1",
    "--config.steps.sl_cai.rows=4",
    "--config.steps.sl_cai.sequence_length=160",
    "--config.steps.compare.max_response_tokens=8",
    "--config.steps.feedback.num_few_shots=0",
    "--config.steps.preference.pairs=4",
    "--config.steps.preference.sequence_length=160",
    "--config.steps.rl_cai.iterations=2",
    "--config.steps.rl_cai.prompts_per_iteration=4",
    "--config.steps.rl_cai.max_prompt_tokens=96",
    "--config.steps.rl_cai.max_new_tokens=8",
    "--config.steps.evaluation.max_new_tokens=8",
    "--config.steps.evaluation.limit=2",
)


def write_hh(path):
    """Lines as in HH-RLHF: dialogues that part at the last response."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for number, request in enumerate(REQUESTS):
            shared = f"\n\nHuman: Hello\n\nAssistant: Yes?\n\nHuman: {request}\n\nAssistant:"
            line = {"chosen": f"{shared} no {number}", "rejected": f"{shared} yes"}
            file.write(json.dumps(line) + "\n")
    return path


def write_llama(folder):
    """A random Llama of one layer that reads bytes, as Hugging Face writes it."""
    import jax

    from cai_jax.models import transformer, weights
    from cai_jax.models.config import ModelConfig

    config = ModelConfig(
        vocab_size=288,
        width=16,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=16,
        hidden=16,
        max_positions=2048,
    )
    folder.mkdir()
    tiny_models.write_tokenizer(folder)
    init = jax.jit(transformer.init_params, static_argnums=0)
    weights.write_folder(folder, config, init(config, jax.random.key(0)))
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The workdir of a finished run, and the arguments of its command."""
    folder = tmp_path_factory.mktemp("hh")
    arguments = [
        f"--config={ROOT / 'configs/hh.py'}",
        f"--workdir={folder / 'work'}",
        f"--config.model={write_llama(folder / 'llama')}",
        f"--config.prompts={write_hh(folder / 'train.jsonl.gz')}",
        f"--config.constitution={ROOT / 'constitutions/principles.json'}",
        *SMALL,
    ]
    runner.main(arguments)
    return folder / "work", arguments


def test_every_step_makes_records_that_read(work):
    folder, _ = work
    chains = read_records(folder / "critique_revise/chains.jsonl", Chain)
    assert [chain.id for chain in chains] == ["train-0", "train-1", "train-2"]
    assert [len(chain.rounds) for chain in chains] == [1, 1, 1]
    assert [turn.text for turn in chains[2].dialogue] == ["Hello", "Yes?", REQUESTS[2]]
    manifest = json.loads((folder / "critique_revise/manifest.json").read_text())
    assert manifest["counts"]["revisions"] == 3 and manifest["counts"]["too_long"] == 0
    # Five few-shots of a thousand bytes each: one has room in 2048 positions.
    assert manifest["counts"]["few_shots_dropped"] == 3 * 2 * 4
    pairs = read_records(folder / "compare/pairs.jsonl", Pair)
    comparisons = read_records(folder / "feedback/comparisons.jsonl", Comparison)
    assert [c.id for c in comparisons] == [pair.id for pair in pairs] == [c.id for c in chains]
    assert all(0 < c.p_a < 1 and c.logp_a is not None for c in comparisons)
    rollouts = read_records(folder / "rl_cai/rollouts.jsonl", Rollout)
    assert len(rollouts) == 2 * 4 * 2 and {rollout.iteration for rollout in rollouts} == {1, 2}
    answers = read_records(folder / "evaluation/samples.jsonl", Answer)
    assert Counter(answer.model for answer in answers) == {"model": 2, "sl_cai": 2, "rl_cai": 2}
    for step in ("sl_cai", "preference", "rl_cai"):
        config = json.loads((folder / step / "model/config.json").read_text())
        assert config["architectures"][0].startswith("Llama")


def test_the_summary_and_the_report_tell_of_it(work):
    folder, _ = work
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation"]["rl_cai"]["harmless_rate"] is None
    assert summary["steps"]["feedback"]["records"] == 3
    page = (folder / "report/index.html").read_text()
    assert "No judge read the answers of this run" in page
    assert all(f'"{name}"' in page for name in ("train-0", "train-1", "train-2"))  # its records
    assert "pick a lock" in page


def test_a_second_run_has_nothing_to_do(work, capsys):
    folder, arguments = work
    manifests = sorted(folder.glob("*/manifest.json"))
    before = [path.stat().st_mtime_ns for path in manifests]
    runner.main(arguments)
    assert [path.stat().st_mtime_ns for path in manifests] == before and len(before) == 8


def test_the_dry_run_counts_and_missing_inputs_are_named(work, tmp_path, capsys):
    _, arguments = work
    shown = [a for a in arguments if not a.startswith("--workdir")]
    runner.main([*shown, f"--workdir={tmp_path / 'dry'}", "--dry_run"])
    line = next(
        text for text in capsys.readouterr().out.splitlines() if "critique_revise  " in text
    )
    assert "3 revisions" in line and not (tmp_path / "dry").exists()
    with pytest.raises(SystemExit):
        runner.main([arguments[0], f"--workdir={tmp_path / 'dry'}"])
    assert "inputs.model: expected a step, a path or sandbox:..." in capsys.readouterr().err


def write_family(folder, name):
    """A random model of another family, written by transformers."""
    import torch
    import transformers

    shape = {
        "vocab_size": 288,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 24,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    if name == "gpt2":
        shape = {"vocab_size": 288, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 2048}
        shape |= {"bos_token_id": 1, "eos_token_id": 1}
    elif name == "gemma2":
        shape |= {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(name, **shape)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_models.write_tokenizer(folder)
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "causal", "preference"),
    [
        ("qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification"),
        ("gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification"),
        ("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification"),
    ],
)
def test_other_families_go_through_the_whole_method(tmp_path, name, causal, preference):
    runner.main(
        [
            f"--config={ROOT / 'configs/hh.py'}",
            f"--workdir={tmp_path / 'work'}",
            f"--config.model={write_family(tmp_path / name, name)}",
            f"--config.prompts={write_hh(tmp_path / 'train.jsonl.gz')}",
            f"--config.constitution={ROOT / 'constitutions/principles.json'}",
            *SMALL,
        ]
    )
    made = {"sl_cai": causal, "preference": preference, "rl_cai": causal}
    for step, architecture in made.items():
        config = json.loads((tmp_path / "work" / step / "model/config.json").read_text())
        assert config["architectures"] == [architecture]
    rollouts = read_records(tmp_path / "work/rl_cai/rollouts.jsonl", Rollout)
    assert len(rollouts) == 2 * 4 * 2
    answers = read_records(tmp_path / "work/evaluation/samples.jsonl", Answer)
    assert Counter(answer.model for answer in answers) == {"model": 2, "sl_cai": 2, "rl_cai": 2}
