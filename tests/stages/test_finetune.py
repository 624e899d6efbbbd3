"""Finetuning on a tiny Llama with a token a letter, or nearly."""

import json
import math
import re

import jax
import numpy as np
import optax
import pytest
import tiny_models
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from cai_jax import checkpoints
from cai_jax.core import artifact, checkpoint, keys, mesh, training
from cai_jax.core.metrics import read_metrics
from cai_jax.data import example_sources, packing, shares
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.examples import Example
from cai_jax.data.schema import Demonstration, Turn, write_records
from cai_jax.data.tokenization import load_tokenizer
from cai_jax.errors import InputError
from cai_jax.models import computing, transformer, weights
from cai_jax.models.config import ModelConfig
from cai_jax.models.language_model import LanguageModel
from cai_jax.stages import finetune
from cai_jax.text.dialogue import render

LENGTH = 48
SHAPE = ModelConfig(
    vocab_size=272, width=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24,
    tied_embeddings=False,
)  # fmt: skip
DEMONSTRATIONS = [
    Demonstration(f"d{i}", (Turn("human", f"say {'abc'[i % 3]}"),), "abc"[i % 3] * (1 + i % 4))
    for i in range(24)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of random weights, as a user has it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    params = jax.jit(lambda key: transformer.init_params(SHAPE, key))(jax.random.key(1))
    weights.write_folder(folder, SHAPE, params, checkpoints.special_tokens(tokenizer))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "demonstrations.jsonl"
    write_records(path, DEMONSTRATIONS)
    return path


def configured(**changes) -> ConfigDict:
    config = finetune.default_config()
    config.update({"rows": 4, "sequence_length": LENGTH, "log_every": 3, "learning_rate": 0.02})
    # The number of updates is then no constant of the program: it is compiled once for all tests.
    config.update({"schedule": "constant", "warmup": 0.0})
    config.seed, config.mesh = 0, mesh.default_config()
    config.update(changes)
    return config


def train(folder, model, data, **changes):
    folder.mkdir()
    return finetune.run(configured(**changes), {"model": model, "data": data}, folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model, data):
    folder = tmp_path_factory.mktemp("work") / "sl_cai"
    counts = train(folder, model, data, epochs=20)
    artifact.write_manifest(folder, {"kind": "finetune"})
    return folder, counts


def lengths(tokenizer, records=DEMONSTRATIONS):
    """Of prompt, response and end: the tokens of each sequence, by hand."""
    texts = [f"\n\nHuman: {r.dialogue[0].text}\n\nAssistant: {r.response}" for r in records]
    return [len(tokenizer.encode(text)) + 1 for text in texts]


def test_all_records_are_trained_every_epoch_and_counted(trained, model):
    folder, counts = trained
    expected = lengths(load_tokenizer(model))
    assert max(expected) <= LENGTH
    assert counts["records"] == 24 * 20
    assert counts["tokens"] == 20 * sum(expected)
    full = counts["tokens"] / (4 * LENGTH)
    assert full <= counts["steps"] < 1.4 * full
    assert {counts[name] for name in ("truncated", "dropped", "empty", "lost_tokens")} == {0}
    lines = read_metrics(folder)
    assert [line["step"] for line in lines] == [*range(3, counts["steps"], 3), counts["steps"]]
    assert lines[-1]["tokens"] == counts["tokens"]
    assert lines[-1]["loss"] == pytest.approx(counts["loss"], rel=1e-6)


def test_the_loss_falls_from_that_of_a_guess_to_the_entropy_of_the_data(trained, model, data):
    """The prompt tells the letter, but not whether one, two, three or four: log 4 nats a record."""
    folder, counts = trained
    tokens = np.mean([len(f" {r.response}") + 1 for r in DEMONSTRATIONS])
    least = math.log(4) / tokens
    before = demonstration_loss(checkpoints.load_model(model), data)
    after = demonstration_loss(checkpoints.load_model(folder), data)
    assert before == pytest.approx(math.log(SHAPE.vocab_size), abs=1.0)
    # What was saved is what was trained.
    assert least < after < least + 0.05
    assert counts["loss"] == pytest.approx(after, abs=0.15)


def demonstration_loss(model, data):
    lengths, _ = example_sources.read(configured(), data, model, render, BadRecords())
    examples = shares.items([of.at for of in lengths])
    return slow_loss(model.params, model.config, examples)


@jax.jit
def log_probabilities(params, tokens):
    hidden, _ = transformer.forward(params, SHAPE, tokens)
    return jax.nn.log_softmax(transformer.logits(params, SHAPE, hidden))


def slow_loss(params, config, examples):
    """Sequence by sequence, alone in its row; what stands right of it nothing can see."""
    total = weight = 0.0
    for _, ids, token_weights in examples:
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(ids)] = ids
        found = np.asarray(log_probabilities(params, tokens), np.float64)[0]
        for t in range(1, len(ids)):
            total -= token_weights[t] * found[t - 1, ids[t]]
            weight += token_weights[t]
    return total / weight


def test_a_packed_batch_has_the_loss_of_its_sequences_alone(model):
    params = checkpoints.load_model(model).params
    rng = np.random.default_rng(0)
    examples = [
        Example(
            str(i),
            rng.integers(1, 270, n).astype(np.int32),
            rng.choice([0, 0.5, 1, 2], n).astype(np.float32),
        )
        for i, n in enumerate([20, 9, 14, 30, 2, 11, 3, 48, 17])
    ]
    rows = packing.pack([len(e.ids) for e in examples], LENGTH)
    assert len(rows) < len(examples) - 4
    batch = packing.fill(examples, rows, len(rows) + 1, LENGTH)
    total, weight = jax.jit(finetune.loss_sums, static_argnums=1)(params, SHAPE, batch)
    expected = slow_loss(params, SHAPE, examples)
    assert float(total) / float(weight) == pytest.approx(expected, rel=1e-6)
    assert float(weight) == sum(float(e.weights[1:].sum()) for e in examples)


SHORT = {"max_steps": 3, "log_every": 1}


@pytest.fixture(scope="module")
def short(tmp_path_factory, model, data):
    folder = tmp_path_factory.mktemp("short") / "sl_cai"
    return folder, train(folder, model, data, **SHORT)


def saved_bytes(folder):
    params = checkpoint.restore(folder / "model" / "params")
    return [leaf.tobytes() for leaf in jax.tree.leaves(params)]


def test_max_steps_stops_and_only_what_was_trained_is_counted(short, model):
    folder, counts = short
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]
    assert counts["steps"] == 3
    assert 3 * 4 <= counts["records"] < 24
    tokens = lengths(load_tokenizer(model))
    assert counts["records"] * min(tokens) <= counts["tokens"] < sum(tokens)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(short, model, data, tmp_path):
    folder, _ = short
    train(tmp_path / "sl_cai", model, data, **SHORT)
    assert saved_bytes(tmp_path / "sl_cai") == saved_bytes(folder)
    assert read_metrics(tmp_path / "sl_cai") == read_metrics(folder)
    (tmp_path / "other").mkdir()
    train(tmp_path / "other" / "sl_cai", model, data, seed=1, **SHORT)
    assert saved_bytes(tmp_path / "other" / "sl_cai") != saved_bytes(folder)


def test_four_devices_compute_the_losses_of_one(short, model, data, tmp_path):
    four = ConfigDict({"data": 1, "fsdp": 2, "tensor": 2})
    # One key/value head does not split over two devices; the data axes take all four.
    with pytest.raises(InputError, match="axis 2 of size 1 does not divide over 2 devices"):
        train(tmp_path / "refused", model, data, mesh=four, **SHORT)
    spread = ConfigDict({"data": 2, "fsdp": 2, "tensor": 1})
    train(tmp_path / "sl_cai", model, data, mesh=spread, **SHORT)
    for one, many in zip(read_metrics(short[0]), read_metrics(tmp_path / "sl_cai"), strict=True):
        assert many == pytest.approx(one, rel=2e-5)


def test_rows_that_do_not_divide_over_the_devices_are_refused(model, data, tmp_path):
    spread = ConfigDict({"data": 2, "fsdp": 2, "tensor": 1})
    with pytest.raises(InputError, match="rows: expected a multiple of 4 .* found 6"):
        train(tmp_path / "x", model, data, mesh=spread, rows=6)


def test_a_loss_that_is_no_number_stops_with_the_records_of_its_batch(model, tmp_path):
    """One record has a token whose embedding is broken: no other batch is named."""
    loaded = checkpoints.load_model(model)
    broken = loaded.tokenizer.encode("~")[0]
    table = loaded.params["embedder"]["embedding"].at[broken].set(np.nan)
    params = loaded.params | {"embedder": {"embedding": table}}
    work = tmp_path / "start"
    work.mkdir()
    checkpoints.save_model(work, LanguageModel(loaded.config, params, loaded.tokenizer))
    artifact.write_manifest(work, {"kind": "finetune"})
    # Longer than half a row, so that each stands in a row of its own.
    long = [Demonstration(f"r{i}", (Turn("human", "x"),), "a" * 16) for i in range(11)]
    long[2] = Demonstration("bad", (Turn("human", "x"),), "~" + "a" * 15)
    write_records(tmp_path / "demonstrations.jsonl", long)
    with pytest.raises(FloatingPointError) as error:
        train(tmp_path / "sl_cai", work, tmp_path / "demonstrations.jsonl", log_every=8)
    update, named = re.search(
        rf"^sl_cai: update (\d): .*loss_sum is nan; .* is {work}, .* records (.*)$",
        str(error.value),
    ).groups()
    named = named.split(", ")
    assert "bad" in named
    assert len(named) == (4 if update in "12" else 3)
    assert not (tmp_path / "sl_cai" / "model").exists()


def test_sums_over_updates_are_weighted():
    def metrics(total, weight, norm):
        return {"loss_sum": np.float32(total), "weight": np.float32(weight), "gradient_norm": norm}

    good = [metrics(6, 2, 1.0), metrics(1, 8, 3.0)]
    assert finetune.summed(good) == {"loss": 0.7, "gradient_norm": 2.0}


def test_initialize_draws_weights_in_the_shape_of_a_folder_without_any(model, tmp_path):
    shape_only = tmp_path / "shape"
    shape_only.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (shape_only / name).write_bytes((model / name).read_bytes())
    device_mesh = mesh.make_mesh(mesh.default_config())
    config = configured(initialize=True)
    drawn = [
        finetune.load_or_initialize(config, shape_only, device_mesh, keys.base_key(seed, "base"))
        for seed in (0, 0, 1)
    ]
    given = checkpoints.load_model(model)
    assert drawn[0].config == given.config == SHAPE
    shapes = [jax.tree.map(np.shape, made.params) for made in (drawn[0], given)]
    assert shapes[0] == shapes[1]
    tables = [np.asarray(made.params["embedder"]["embedding"]) for made in (*drawn, given)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert np.abs(tables[0] - tables[2]).max() > 0.1
    assert np.abs(tables[0] - tables[3]).max() > 0.1
    assert tables[0].std() == pytest.approx(SHAPE.width**-0.5, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, found 0"),
        ({"log_every": 0}, "log_every: expected at least 1, found 0"),
        ({"rows": 0}, "rows: expected at least 1, found 0"),
        ({"revisions": (1, -1)}, r"revisions: expected 0, 1, 2, ..., found \(1, -1\)"),
        ({"on_long": "cut"}, "on_long: expected one of truncate, drop, refuse, found 'cut'"),
        ({"schedule": "linear"}, "schedule: expected one of constant, warmup_cosine"),
    ],
)
def test_parameters_that_mean_no_training_are_refused_before_anything_runs(changes, message):
    with pytest.raises(InputError, match=message):
        finetune.check(configured(**changes), {"model": "m", "data": "d"})


def test_a_missing_role_is_refused():
    with pytest.raises(InputError, match="inputs: expected model and data, found no data"):
        finetune.check(configured(), {"model": "m"})


def test_the_plan_of_the_paper_counts_a_sequence_for_each_revision():
    """182,831 prompts with four revisions each are 731,324 sequences (section 3.2)."""
    chains = {
        "records": 182_831,
        "tokens": 182_831 * 400,
        "revisions": 4 * 182_831,
        "prompt_tokens": 182_831 * 100,
    }
    helpful = {"records": 135_296, "tokens": 135_296 * 60, "revisions": 0}
    planned = {"model": {"parameters": 1_000}, "data": [chains, helpful]}
    config = configured(epochs=1, sequence_length=160)
    assert finetune.plan(config, planned | {"data": chains}) == {
        "records": 731_324,
        "tokens": 731_324 * 160,
        "flops": 6.0 * 1_000 * 731_324 * 160,
    }
    both = finetune.plan(configured(epochs=2, sequence_length=160), planned)
    assert both["records"] == 2 * (731_324 + 135_296)
    assert both["tokens"] == 2 * (731_324 * 160 + 135_296 * 60)


def test_a_plan_stops_at_max_steps():
    planned = {"model": {"parameters": 10}, "data": {"records": 1000, "tokens": 50_000}}
    config = configured(max_steps=5, rows=4, sequence_length=100)
    assert finetune.plan(config, planned) == {"records": 40, "tokens": 2000, "flops": 120_000.0}
    assert finetune.plan(configured(sequence_length=100), planned)["tokens"] == 50_000


def test_a_plan_bounds_what_is_trained(trained, data):
    _, counts = trained
    given = {"records": 24, "tokens": len(data.read_text())}
    planned = {"model": {"parameters": 10}, "data": given}
    bound = finetune.plan(configured(epochs=20), planned)
    assert bound["records"] == counts["records"]
    assert counts["tokens"] <= bound["tokens"] == 24 * 20 * LENGTH
    assert json.loads(json.dumps(bound)) == bound


def one_step(model, config, batch, optimizer):
    """The parameters after an update of plain gradient descent, and the metrics."""
    step = finetune.make_step(computing.computed(model.config, config), optimizer, config)
    state, _ = training.create_state(model.params, optimizer, mesh.make_mesh(config.mesh))
    state, metrics = jax.jit(step)(state, None, batch)
    params, metrics = jax.device_get((state.params, metrics))
    return params, {name: float(value) for name, value in metrics.items()}


@pytest.fixture(scope="module")
def one_update(model):
    """A batch of rows of very different weight, and the update that it makes as a whole."""
    loaded = checkpoints.load_model(model)
    rng = np.random.default_rng(0)
    examples = [
        Example(
            str(i),
            rng.integers(1, 270, n).astype(np.int32),
            rng.choice([0, 0.5, 1, 3], n).astype(np.float32),
        )
        for i, n in enumerate([20, 9, 14, 48, 2, 11])
    ]
    rows = packing.pack([len(e.ids) for e in examples], LENGTH)
    batch = packing.fill(examples, rows, 4, LENGTH)
    assert len(rows) == 3 and len({float(row.sum()) for row in batch.weights}) == 4
    optimizer = optax.sgd(1.0)  # the parameters move by the gradient itself
    return loaded, batch, optimizer, one_step(loaded, configured(), batch, optimizer)


@pytest.mark.parametrize(
    "changes", [{"accumulate": 2}, {"accumulate": 4, "remat": "layer"}, {"remat": "dots"}]
)
def test_neither_parts_nor_rematerialisation_change_the_update(one_update, changes):
    loaded, batch, optimizer, (params, metrics) = one_update
    found, found_metrics = one_step(loaded, configured(**changes), batch, optimizer)
    assert found_metrics == pytest.approx(metrics, rel=1e-6)
    # The gradients' largest entries are of the order of 1.
    assert (
        max(np.abs(p - f).max() for p, f in zip(*map(jax.tree.leaves, (params, loaded.params))))
        > 0.1
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, params)


def test_bfloat16_computes_with_float32_parameters(one_update):
    loaded, batch, _, (params, metrics) = one_update
    config = configured(compute_dtype="bfloat16")
    # A rate so small that the changes are far below a bfloat16's step of most weights.
    found, found_metrics = one_step(loaded, config, batch, optax.sgd(1e-4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert found_metrics["loss_sum"] != metrics["loss_sum"]
    assert found_metrics == pytest.approx(metrics, rel=0.02)
    # Master weights: such a change is not lost.
    start = np.asarray(loaded.params["final_norm"]["scale"])
    change = np.asarray(found["final_norm"]["scale"]) - start
    full = np.asarray(params["final_norm"]["scale"]) - start
    assert np.abs(change).max() < 2**-9
    np.testing.assert_allclose(change, 1e-4 * full, atol=0.05 * np.abs(1e-4 * full).max())


def test_lora_trains_the_named_projections_and_saves_them_merged_and_as_an_adapter(
    model, data, tmp_path
):
    changes = {"rank": 2, "alpha": 4.0, "targets": ("query", "down")}
    config = {"lora": changes, "epochs": 6, "log_every": 1, "accumulate": 2}
    train(tmp_path / "lora", model, data, **config)
    artifact.write_manifest(tmp_path / "lora", {"kind": "finetune"})
    lines = read_metrics(tmp_path / "lora")
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    saved, base = checkpoints.load_model(tmp_path / "lora"), checkpoints.load_model(model)
    arrays = load_file(tmp_path / "lora" / "adapter" / "adapter_model.safetensors")
    assert len(arrays) == 4
    for block, name, module in (
        ("attention", "query", "self_attn.q_proj"),
        ("mlp", "down", "mlp.down_proj"),
    ):
        after, before = (np.asarray(m.params["layers"][block].pop(name)) for m in (saved, base))
        key = f"base_model.model.model.layers.0.{module}"
        change = 2.0 * arrays[f"{key}.lora_B.weight"] @ arrays[f"{key}.lora_A.weight"]
        assert np.abs(change).max() > 0.01
        np.testing.assert_allclose(
            after[0], before[0] + change.T.reshape(before[0].shape), atol=1e-5
        )
    jax.tree.map(np.testing.assert_array_equal, saved.params, base.params)


def test_with_an_average_the_updates_are_the_same_and_the_average_is_saved(
    short, model, data, tmp_path
):
    train(tmp_path / "sl_cai", model, data, ema_decay=0.5, **SHORT)
    assert read_metrics(tmp_path / "sl_cai") == read_metrics(short[0])
    last, mean = (
        jax.tree.leaves(checkpoint.restore(f / "model" / "params"))
        for f in (short[0], tmp_path / "sl_cai")
    )
    first = jax.tree.leaves(checkpoints.load_model(model).params)
    # Weights 4, 2 and 1 of 7: nearer to the last parameters than to the first, but not there.
    for start, end, found in zip(first, last, mean):
        assert 0 < np.abs(found - end).mean() < 0.5 * np.abs(start - end).mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate: expected at least 1, found 0"),
        ({"accumulate": 3}, "rows: expected a multiple of 3 .* for each of 3 parts.*, found 4"),
        ({"ema_decay": 1.0}, "ema_decay: expected 0 <= ema_decay < 1, found 1.0"),
        ({"remat": "all"}, "remat: expected one of 'none', 'dots', 'layer', found 'all'"),
        ({"compute_dtype": "float16"}, "compute_dtype: .* found 'float16'"),
        ({"lora": {"rank": 1}, "initialize": True}, "lora.rank: expected 0 with initialize"),
    ],
)
def test_settings_that_mean_nothing_are_refused(model, data, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path / "x", model, data, **changes)
