"""Reads and writes Hugging Face model folders: `config.json` and safetensors, nothing else.

Pickled weights are refused, since unpickling runs code. Files are mapped into memory and copied
one layer at a time into the stacked arrays, so reading needs little more than the result.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from cai_jax.errors import InputError
from cai_jax.models import families
from cai_jax.models.config import ModelConfig

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of one file, as the hub prefers


class _Stored(NamedTuple):
    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # in bytes, from the file's beginning


def read_folder(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a model folder: its config, and its params as float32 numpy arrays.

    A preference model's params have a `score_head`.

    Raises:
        InputError: no weights, pickled weights, another architecture, an unsupported option, a
            missing, unknown or misshapen tensor.
    """
    folder = Path(folder)
    config, preference_model = read_config(folder)
    stored = _stored(folder, config)
    params: dict[str, Any] = {}
    for tensor in families.tensors(config, preference_model):
        shape = families.params_shape(tensor, config)
        layers = config.layers if tensor.stacked else 1
        arrays = [np.empty((layers, *shape), np.float32) for _ in tensor.paths]
        for layer in range(layers):
            parts = _read(tensor, tensor.name.format(layer=layer), stored, config, folder)
            for array, part in zip(arrays, parts):
                array[layer] = part
        for path, array in zip(tensor.paths, arrays):
            node = params
            for key in path[:-1]:
                node = node.setdefault(key, {})
            node[path[-1]] = array if tensor.stacked else array[0]
    _refuse_unknown(stored, config, folder)
    return config, params


def check_folder(folder: Path) -> None:
    """Refuses what `read_folder` would, from config.json and the headers of the weights alone."""
    folder = Path(folder)
    config, preference_model = read_config(folder)
    stored = _stored(folder, config)
    for tensor in families.tensors(config, preference_model):
        for layer in range(config.layers if tensor.stacked else 1):
            _take(tensor, tensor.name.format(layer=layer), stored, config, folder)
    _refuse_unknown(stored, config, folder)


def write_folder(
    folder: Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    special_tokens: Mapping[str, int | None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes `config.json` and the weights, in `config.dtype`, as `transformers` reads them.

    Params with a `score_head` are written as a classifier with one label.

    Args:
        folder: an existing folder.
        config: the model's shape.
        params: arrays that this process can read in full.
        special_tokens: ids under "bos", "eos" and "pad"; a classifier needs "pad" to run batches.
        shard_bytes: the size above which the weights are split over several files.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    preference_model = "score_head" in params
    write_config(folder, config, preference_model, special_tokens or {})
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, array in _named_arrays(config, params, preference_model):
        if filled and filled + array.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = array
        filled += array.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    for file_name, shard in zip(names, shards):
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read.
        shutil.copymode(folder / "config.json", folder / file_name)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(a.nbytes for shard in shards for a in shard.values())},
            "weight_map": {n: file for file, shard in zip(names, shards) for n in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """Reads a folder's `config.json`: the config, and whether it is a preference model's."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a model folder with config.json, found none")
    return families.read_config(_json_object(path), str(path))


def write_config(
    folder: Path,
    config: ModelConfig,
    preference_model: bool,
    special_tokens: Mapping[str, int | None],
) -> None:
    """Writes a folder's `config.json`."""
    values = families.write_config(config, preference_model, special_tokens)
    (Path(folder) / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        weight_map = _json_object(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{folder / INDEX}: weight_map: expected an object of file names")
        files = [folder / Path(str(name)).name for name in sorted(set(weight_map.values()))]
        for file in files:
            if not file.is_file():
                raise InputError(f"{folder / INDEX}: names {file.name}, which is not in the folder")
        return files
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder}: expected safetensors weights, found only {pickles[0]}, a pickle, which can "
            "run code when read; save the model again with safe_serialization=True"
        )
    raise InputError(f"{folder}: expected {SINGLE} or {INDEX}, found no weights")


def _stored(folder: Path, config: ModelConfig) -> dict[str, _Stored]:
    """Where the tensors of a folder are, by the headers of its files, under the names we know."""
    stored: dict[str, _Stored] = {}
    for file in _weight_files(folder):
        for name, entry in _contents(file).items():
            stored[families.known_name(name, config)] = entry
    return stored


def _refuse_unknown(stored: dict[str, _Stored], config: ModelConfig, folder: Path) -> None:
    unknown = sorted(name for name in stored if not families.is_ignored(name, config))
    if unknown:
        raise InputError(
            f"{folder}: tensor {unknown[0]}: not part of a model with this config.json "
            f"({len(unknown)} such); the model would compute something else"
        )


def _contents(file: Path) -> dict[str, _Stored]:
    """The tensors of a safetensors file: an 8-byte length, a JSON header, then the data."""
    size = file.stat().st_size
    try:
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        stored = {}
        for name, entry in header.items():
            start, stop = entry["data_offsets"]
            if 8 + length + stop > size:
                raise ValueError(f"tensor {name} ends after the file")
            shape = tuple(entry["shape"])
            if entry["dtype"] in DTYPES:
                needed = math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize
                if needed != stop - start:
                    raise ValueError(f"tensor {name} of {stop - start} bytes needs {needed}")
            stored[name] = _Stored(file, entry["dtype"], shape, 8 + length + start)
        return stored
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a whole safetensors file: {error}") from None


def _read(
    tensor: families.Tensor,
    name: str,
    stored: dict[str, _Stored],
    config: ModelConfig,
    folder: Path,
) -> tuple[np.ndarray, ...]:
    """Takes one tensor out of `stored`, checked, in the axes of the params tree."""
    found = _take(tensor, name, stored, config, folder)
    array = np.memmap(found.file, DTYPES[found.dtype], "r", found.start, found.shape)
    return families.from_file(tensor, array, config)


def _take(
    tensor: families.Tensor,
    name: str,
    stored: dict[str, _Stored],
    config: ModelConfig,
    folder: Path,
) -> _Stored:
    expected = families.file_shape(tensor, config)
    found = stored.pop(name, None)
    if found is None:
        raise InputError(f"{folder}: tensor {name} of shape {list(expected)} is missing")
    if found.shape != expected:
        raise InputError(
            f"{found.file}: tensor {name}: expected shape {list(expected)} by config.json, "
            f"found {list(found.shape)}"
        )
    if found.dtype not in DTYPES:
        raise InputError(
            f"{found.file}: tensor {name}: expected one of {', '.join(DTYPES)}, found "
            f"{found.dtype}; quantized weights are not supported"
        )
    return found


def _named_arrays(
    config: ModelConfig, params: Mapping[str, Any], preference_model: bool
) -> Iterator[tuple[str, np.ndarray]]:
    dtype = DTYPES["BF16"] if config.dtype == "bfloat16" else np.float32
    for tensor in families.tensors(config, preference_model):
        arrays = [np.asarray(_leaf(params, path)).astype(dtype) for path in tensor.paths]
        for layer in range(config.layers if tensor.stacked else 1):
            parts = [array[layer] if tensor.stacked else array for array in arrays]
            yield tensor.name.format(layer=layer), families.to_file(tensor, parts, config)


def _leaf(params: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
