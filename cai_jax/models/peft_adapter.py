"""LoRA's factors as a folder that the PEFT library reads.

It has adapter_config.json and adapter_model.safetensors: for each adapted module lora_A [R, inputs]
and lora_B [outputs, R], with the axes that the module's own weight has in the model's family.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.models import families, lora, placing
from cai_jax.models.config import ModelConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every module's name, as PEFT wraps the model


def write(
    folder: Path, model: ModelConfig, trained: lora.Params, config: ConfigDict, base: str
) -> None:
    """Writes the folder, which must not exist.

    Where a family keeps several projections in one module, its factors have the ranks of all of
    them side by side.

    Args:
        folder: to make.
        model: the shape of the model.
        trained: as `lora.split` gives it; every host calls, and the first writes.
        config: the stage's `lora` group.
        base: the model that the factors belong to, for whoever loads them.
    """
    from safetensors.numpy import save_file

    trained = placing.fetch(trained)
    if not hosts.is_first():
        return
    preference_model = "score_head" in trained
    arrays: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}  # of each module, by its name in a layer
    inputs_first = False
    for tensor in families.tensors(model, preference_model):
        if tensor.paths[0] == ("score_head", "kernel"):
            score = np.asarray(trained["score_head"]["kernel"], np.float32)
            arrays[PREFIX + tensor.name] = families.to_file(tensor, [score], model)
        adapted = [_factors(trained[lora.ADAPTER], path) for path in tensor.paths]
        if not any(adapted):
            continue
        name = tensor.name.removesuffix(".weight")
        inputs = tensor.axes[: lora.INPUT_AXES[tensor.paths[0][-1]]]
        inputs_first = inputs_first or tensor.file_axes[0] == inputs
        ranks[name.partition("{layer}.")[2]] = config.rank * sum(map(bool, adapted))
        for layer in range(model.layers):
            a, b = _module(tensor, model, adapted, layer, inputs)
            # safetensors writes memory as it lies.
            for side, factor in (("A", a), ("B", b)):
                key = f"{PREFIX}{name.format(layer=layer)}.lora_{side}.weight"
                arrays[key] = np.ascontiguousarray(factor)
    wider = {module: rank for module, rank in ranks.items() if rank != config.rank}
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if preference_model else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        # The same alpha / rank for all.
        "rank_pattern": wider,
        "alpha_pattern": {m: config.alpha * rank / config.rank for m, rank in wider.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": inputs_first,
        "target_modules": sorted(ranks),
        "modules_to_save": ["score"] if preference_model else None,
        "inference_mode": True,
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)


def _factors(adapter: Any, path: tuple[str, ...]) -> Any:
    """The factors of the array at `path`, or None."""
    for name in path:
        if name not in adapter:
            return None
        adapter = adapter[name]
    return adapter


def _module(
    tensor: families.Tensor, model: ModelConfig, adapted: list[Any], layer: int, inputs: str
) -> tuple[np.ndarray, np.ndarray]:
    """lora_A [R, inputs] and lora_B [outputs, R] of a module in a layer."""
    present = [factors for factors in adapted if factors]
    a = [np.asarray(factors["a"][layer], np.float32) for factors in present]
    rank = a[0].shape[-1]
    lora_a = np.concatenate([x.reshape(-1, rank).T for x in a])
    if len(tensor.paths) == 1:
        b = np.asarray(present[0]["b"][layer], np.float32)
        return lora_a, b.reshape(rank, -1).T
    # Each projection reads its own ranks; they lie as the module's weight would with R inputs.
    assert inputs == "D"
    total, first, blocks = len(lora_a), 0, []
    for factors in adapted:
        shape = families.params_shape(tensor, model)[1:]
        block = np.zeros((total, *shape), np.float32)
        if factors:
            block[first : first + rank] = factors["b"][layer]
            first += rank
        blocks.append(block)
    lora_b = families.to_file(tensor, blocks, dataclasses.replace(model, width=total))
    return lora_a, lora_b.T if tensor.file_axes[0] == inputs else lora_b
