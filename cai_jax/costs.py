"""Memory of a step on each device and its time, by closed formulas: rough, and stated.

Everything is computed from the shape of the model, the config of the step and numbers of the
hardware. Nothing is measured, collectives are left out, and every family is counted as if its MLP
were gated and its attention whole. Notation: P parameters; b bytes of an activation (2 in bfloat16,
4 in float32); S = fsdp x tensor devices that split parameters, C = data x fsdp those that split a
batch; R rows and T tokens of a batch; and the letters of `models/transformer.py`.

Parameters are float32 always:
    weights       4 P / S for each model held; a step that trains holds the weights that it began
                  with beside those that it changes
    optimizer     Adam's two moments: 8 P / S, or 4 P / S in bfloat16; Adafactor's are small
    gradients     4 P / S (twice where parts of a batch are summed), and 2 P / S for the cast
                  weights that the backward pass reads in bfloat16
Training keeps all activations for the backward pass, and has one more layer's at work:
    activations   R T / C ((L + 1) (16 D + 2 b D + b (N T + 6 F + 3 N H + 2 K H) / tensor)
                  + (8 + b) D); with remat "layer", 2 b D for L + 1 layers and the rest once
Sampling:
    cache         2 b L K H R T / (C tensor), twice while it grows from the prompt to its length
    activations   of one layer at work in the prefill: its weights, (4 + c) per parameter / S, and
                  R T / C (2 b D + max((4 + c) N T + 2 b N H, 2 b F) / tensor); with c = b if b < 4,
                  else 0. Or the logits of one token, 12 R V / C, whichever is more
Held against the analysis of XLA on a CPU in float32 (which is what a CPU makes of bfloat16): within
15 % for training; for the prefill from 5 % below to 50 % above (tests/test_costs.py).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cai_jax.errors import InputError
from cai_jax.models.config import ModelConfig
from cai_jax.shapes import Model


class Hardware(NamedTuple):
    """One device, by its maker's numbers."""

    name: str
    flops: float  # a second, dense, in bfloat16 (of a CPU: float32)
    memory: float  # bytes
    bandwidth: float  # of memory, bytes a second
    bfloat16: bool = True  # False: computes it in float32


HARDWARE: Mapping[str, Hardware] = {
    # A laptop of eight cores, as assumed here; no maker's numbers.
    "laptop": Hardware("laptop CPU", 0.5e12, 16e9, 50e9, bfloat16=False),
    "a100": Hardware("A100 80 GB", 312e12, 80e9, 2.04e12),
    "h100": Hardware("H100 80 GB (SXM)", 989e12, 80e9, 3.35e12),
    "v5e": Hardware("TPU v5e", 197e12, 16e9, 0.819e12),
    "v5p": Hardware("TPU v5p", 459e12, 95e9, 2.765e12),
    "v6e": Hardware("TPU v6e", 918e12, 32e9, 1.64e12),
}

# What is assumed to be reached of these.
FLOPS_REACHED = 0.35
BANDWIDTH_REACHED = 0.5
MEMORY_USABLE = 0.9  # the rest goes to the runtime, fragments and collectives

# Tokens of a prompt that is sampled from; configs do not bound them.
PROMPT_TOKENS = 256
FEW_SHOTS_TOKENS = 1024


class Memory(NamedTuple):
    """Bytes on one device."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    cache: float

    @property
    def total(self) -> float:
        """All of them: nothing is freed before the step ends."""
        return sum(self)


class Cost(NamedTuple):
    """Of one step: memory of a device, and seconds where the hardware is known."""

    parameters: int
    memory: Memory
    seconds: float | None
    fits: bool | None


def training_memory(
    model: Model, mesh: Mapping[str, int], rows: int, length: int, moments: float = 8.0
) -> Memory:
    """To train a model on batches of rows x length tokens; `moments`: bytes a parameter."""
    size, shards = _bytes(model.config), _shards(mesh)
    cast = size if size < 4 else 0
    return Memory(
        weights=8 * model.parameters / shards,
        optimizer=moments * model.parameters / shards,
        gradients=(4 + cast) * model.parameters / shards,
        activations=_training_activations(model.config, mesh, rows, length),
        cache=0.0,
    )


def sampling_memory(model: Model, mesh: Mapping[str, int], rows: int, length: int) -> Memory:
    """To sample rows of length tokens, prompt and all."""
    return Memory(
        weights=_bytes(model.config) * model.parameters / _shards(mesh),
        optimizer=0.0,
        gradients=0.0,
        activations=_sampling_activations(model.config, mesh, rows, length),
        cache=2 * cache_bytes(model.config, rows, length) / (_parts(mesh) * _size(mesh, "tensor")),
    )


def ppo_memory(
    policy: Model,
    preference: Model,
    mesh: Mapping[str, int],
    rows: int,
    minibatch: int,
    length: int,
    moments: float = 8.0,
    value_trunk: bool = False,
) -> Memory:
    """To sample rows of length tokens and train on minibatches of them, beside two more models.

    With a `value_trunk`, a second preference model is trained beside the policy.
    """
    training = training_memory(policy, mesh, minibatch, length, moments)
    sampling = sampling_memory(policy, mesh, rows, length)
    # `training` holds what the policy began with, which is the reference; likewise of the values.
    if value_trunk:
        values = training_memory(preference, mesh, minibatch, length, moments)
        training = Memory(*(a + b for a, b in zip(training, values)))
    else:
        more = 4 * preference.parameters / _shards(mesh)
        training = training._replace(weights=training.weights + more)
    # Sampling and training take turns, but the cache is small beside the rest, and counted too.
    return training._replace(
        activations=max(training.activations, sampling.activations), cache=sampling.cache
    )


def cache_bytes(config: ModelConfig, rows: int, length: int) -> float:
    """Keys and values of all layers, for all rows."""
    per_token = 2 * config.layers * config.kv_heads * config.head_dim * _bytes(config)
    return float(per_token * rows * length)


def _training_activations(
    config: ModelConfig, mesh: Mapping[str, int], rows: int, length: int
) -> float:
    c, b = config, _bytes(config)
    heads = b * c.heads * length + b * (3 * c.heads + 2 * c.kv_heads) * c.head_dim
    split = (heads + 6 * b * c.hidden) / _size(mesh, "tensor")
    layer = 16 * c.width + 2 * b * c.width + split
    if c.remat == "layer":
        kept = (c.layers + 1) * 2 * b * c.width + layer
    else:
        kept = (c.layers + 1) * layer
    return rows * length / _parts(mesh) * (kept + (8 + b) * c.width)


def _sampling_activations(
    config: ModelConfig, mesh: Mapping[str, int], rows: int, length: int
) -> float:
    c, b = config, _bytes(config)
    cast = b if b < 4 else 0
    tensor = _size(mesh, "tensor")
    attention = (4 + cast) * c.heads * length + 2 * b * c.heads * c.head_dim
    per_token = 2 * b * c.width + max(attention, 2 * b * c.hidden) / tensor
    layer = c.width * (2 * c.head_dim * (c.heads + c.kv_heads) + 3 * c.hidden)
    prefill = (4 + cast) * layer / _shards(mesh) + rows * length / _parts(mesh) * per_token
    return max(prefill, 12 * rows * c.vocab_size / _parts(mesh))


def _bytes(config: ModelConfig) -> int:
    return 2 if config.dtype == "bfloat16" else 4


def _size(mesh: Mapping[str, int], axis: str) -> int:
    return max(mesh[axis], 1)  # -1, all devices that there are: counted as one


def _shards(mesh: Mapping[str, int]) -> int:
    return _size(mesh, "fsdp") * _size(mesh, "tensor")


def _parts(mesh: Mapping[str, int]) -> int:
    return _size(mesh, "data") * _size(mesh, "fsdp")


# How each kind of step uses memory: (config, models by role) -> Memory.
Models = Mapping[str, Sequence[Model]]


def _training(config: Mapping[str, Any], model: Model, rows: int) -> Memory:
    mesh, parts = config["mesh"], config["accumulate"]
    memory = training_memory(
        _as_computed(config, model),
        mesh,
        rows // parts,
        config["sequence_length"],
        _moments(config),
    )
    whole = 4 * model.parameters / _shards(mesh)
    if config["lora"]["rank"]:  # factors, their moments and gradients are small beside the model
        return memory._replace(weights=whole, optimizer=0.0, gradients=memory.gradients - whole)
    average = whole if config["ema_decay"] else 0.0
    summed = whole if parts > 1 else 0.0
    return memory._replace(weights=memory.weights + average, gradients=memory.gradients + summed)


def _finetune(config: Mapping[str, Any], models: Models) -> Memory:
    return _training(config, models["model"][0], config["rows"])


def _preference(config: Mapping[str, Any], models: Models) -> Memory:
    return _training(config, models["model"][0], 2 * config["pairs"])


def _ppo(config: Mapping[str, Any], models: Models) -> Memory:
    rows = config["prompts_per_iteration"] * config["samples_per_prompt"]
    length = config["max_prompt_tokens"] + config["max_new_tokens"]
    return ppo_memory(
        models["model"][0],
        models["preference_model"][0],
        config["mesh"],
        rows,
        rows // config["minibatches"],
        length,
        _moments(config),
        config["advantage"] == "gae" and config["value_model"] == "preference_model",
    )


def _as_computed(config: Mapping[str, Any], model: Model) -> Model:
    """The model with the step's compute dtype and rematerialisation, where it has them."""
    if "remat" not in config:
        return model
    dtype = config["compute_dtype"] or model.config.dtype
    changed = dataclasses.replace(model.config, dtype=dtype, remat=config["remat"])
    return model._replace(config=changed)


def _moments(config: Mapping[str, Any]) -> float:
    if config["optimizer"] == "adafactor":
        return 0.0
    return 4.0 if config["moment_dtype"] == "bfloat16" else 8.0


def _sampling(config: Mapping[str, Any], models: Models) -> Memory:
    read = [model for of_role in models.values() for model in of_role]  # one after the other
    largest = max(read, key=lambda model: model.parameters)
    new = [v for k, v in config.items() if k.startswith("max_") and k.endswith("_tokens")]
    length = sum(new) + PROMPT_TOKENS
    if "num_few_shots" in config and config["num_few_shots"]:
        length += FEW_SHOTS_TOKENS
    length = min(length, largest.config.max_positions)
    return sampling_memory(largest, config["mesh"], config["batch_size"], length)


MEMORY: Mapping[str, Callable[[Mapping[str, Any], Models], Memory]] = {
    "finetune": _finetune,
    "preference": _preference,
    "dpo": _preference,
    "ppo": _ppo,
    "best_of_n": _sampling,
    "red_team": _sampling,
    "critique_revise": _sampling,
    "compare": _sampling,
    "feedback": _sampling,
    "evaluate": _sampling,
    "evaluate_choices": _sampling,
}


def hardware(name: str) -> Hardware | None:
    """The device of a config; "" is not known.

    Raises:
        InputError: no such device in HARDWARE.
    """
    if not name:
        return None
    if name not in HARDWARE:
        raise InputError(
            f"config.hardware: expected one of {', '.join(HARDWARE)}, found {name!r}; "
            "add it to cai_jax/costs.py"
        )
    return HARDWARE[name]


def cost(
    kind: str,
    config: Mapping[str, Any],
    counts: Mapping[str, Any],
    models: Models,
    device: Hardware | None,
) -> Cost | None:
    """What a step takes, or None for a kind without models.

    Args:
        kind: of the step.
        config: its parameters, with `mesh`.
        counts: what its `plan` returned.
        models: role -> the models that it reads.
        device: each of the mesh's.
    """
    if kind not in MEMORY or not models:
        return None
    if device is not None and not device.bfloat16:
        models = {role: [_in_float32(model) for model in models[role]] for role in models}
    memory = MEMORY[kind](config, models)
    parameters = max(model.parameters for of_role in models.values() for model in of_role)
    if device is None:
        return Cost(parameters, memory, None, None)
    seconds = _seconds(kind, config, counts, models, device)
    return Cost(parameters, memory, seconds, memory.total <= MEMORY_USABLE * device.memory)


def _in_float32(model: Model) -> Model:
    return model._replace(config=dataclasses.replace(model.config, dtype="float32"))


def _seconds(
    kind: str,
    config: Mapping[str, Any],
    counts: Mapping[str, Any],
    models: Models,
    device: Hardware,
) -> float:
    """Arithmetic at FLOPS_REACHED; in decoding, reading the weights once a token and batch."""
    devices = math.prod(_size(config["mesh"], axis) for axis in ("data", "fsdp", "tensor"))
    arithmetic = counts["flops"] / (devices * device.flops * FLOPS_REACHED)
    if "remat" in config and config["remat"] == "layer":
        arithmetic *= 4 / 3  # the forward pass once more
    if kind == "ppo":
        rows = config["prompts_per_iteration"] * config["samples_per_prompt"]
    elif MEMORY[kind] is _sampling and not (kind == "feedback" and not config["chain_of_thought"]):
        rows = config["batch_size"]
    else:
        return arithmetic
    writing = [m for role in ("model", "models") if role in models for m in models[role]]
    # PPO samples from the float32 parameters that it trains.
    weights = [m.parameters * (4 if kind == "ppo" else _bytes(m.config)) for m in writing]
    # What fsdp splits is gathered, and read whole, by every device.
    read = sum(weights) / max(len(writing), 1) / _size(config["mesh"], "tensor")
    return arithmetic + counts["tokens"] / rows * read / (device.bandwidth * BANDWIDTH_REACHED)
