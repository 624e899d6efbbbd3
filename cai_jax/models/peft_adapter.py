"""LoRA's factors as a folder that the PEFT library reads.

It has adapter_config.json and adapter_model.safetensors: for each adapted module lora_A [R, inputs]
and lora_B [outputs, R], with the axes that the module's own weight has in the model's family.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from cai_jax.models import families, lora
from cai_jax.models.config import ModelConfig

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every module's name, as PEFT wraps the model


def write(
    folder: Path, model: ModelConfig, trained: lora.Params, config: ConfigDict, base: str
) -> bool:
    """Writes the folder, which must not exist, and says whether it could.

    It cannot where the family keeps several projections in one module: a factor of its own for
    each has no name in PEFT. (The merged model has no such limit.)

    Args:
        folder: to make.
        model: the shape of the model.
        trained: as `lora.split` gives it, readable by this process in full.
        config: the stage's `lora` group.
        base: the model that the factors belong to, for whoever loads them.
    """
    from safetensors.numpy import save_file

    preference_model = "score_head" in trained
    arrays: dict[str, np.ndarray] = {}
    modules: dict[str, bool] = {}  # each module's name in a layer, and whether inputs come first
    found = 0
    for tensor in families.tensors(model, preference_model):
        if tensor.paths[0] == ("score_head", "kernel"):
            score = np.asarray(trained["score_head"]["kernel"], np.float32)
            arrays[PREFIX + tensor.name] = families.to_file(tensor, [score], model)
            continue
        if not any(_has(trained[lora.ADAPTER], path) for path in tensor.paths):
            continue
        if len(tensor.paths) > 1:
            return False
        found += 1
        factors = lora.at(trained[lora.ADAPTER], tensor.paths[0])
        name = tensor.name.removesuffix(".weight")
        inputs = tensor.axes[: lora.INPUT_AXES[tensor.paths[0][-1]]]
        modules[name.partition("{layer}.")[2]] = tensor.file_axes[0] == inputs
        for layer in range(model.layers):
            module = PREFIX + name.format(layer=layer)
            a, b = (np.asarray(factors[side][layer], np.float32) for side in ("a", "b"))
            arrays[f"{module}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, config.rank).T)
            arrays[f"{module}.lora_B.weight"] = np.ascontiguousarray(b.reshape(config.rank, -1).T)
    if not found or len(set(modules.values())) > 1:
        return False
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if preference_model else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": next(iter(modules.values())),
        "target_modules": sorted(modules),
        "modules_to_save": ["score"] if preference_model else None,
        "inference_mode": True,
    }
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    # safetensors makes files that only their owner can read.
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)
    return True


def _has(adapter: Any, path: tuple[str, ...]) -> bool:
    for name in path:
        if name not in adapter:
            return False
        adapter = adapter[name]
    return True
