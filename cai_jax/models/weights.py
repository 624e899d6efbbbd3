"""Reads and writes Hugging Face model folders: `config.json` and safetensors, nothing else.

Pickled weights are refused, since unpickling runs code. Both ways go tensor by tensor: each device
is given its own part of an array, of which alone the bytes are read, and the layers of a stacked
array are put together on the devices. The host holds one tensor besides, not the model.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cai_jax.errors import InputError
from cai_jax.models import families, tensor_files
from cai_jax.models.config import ModelConfig
from cai_jax.models.tensor_files import Outgoing, Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHARD_BYTES = 5 * 10**9  # of one file, as the hub prefers

Place = Callable[[Any], Any]


class _Leaf(NamedTuple):
    """An array of the params tree: where it comes from, one place a layer if it is stacked."""

    tensor: families.Tensor
    number: int  # of the array among those of the tensor
    shape: tuple[int, ...]
    stored: tuple[Stored, ...]

    @property
    def path(self) -> tuple[str, ...]:
        """Below the root of params."""
        return self.tensor.paths[self.number]


def read_folder(
    folder: Path, place: Place | None = None, dtype: str = "float32"
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a model folder: its config, and its params on devices.

    A preference model's params have a `score_head`.

    Args:
        folder: with config.json, and one safetensors file or several with their index.
        place: gives a tree of shardings for the params tree of `jax.ShapeDtypeStruct`s; by default
            all is on the default device.
        dtype: of the params, whatever the files have: "float32" or "bfloat16".

    Raises:
        InputError: no weights, pickled weights, another architecture, an unsupported option, a
            missing, unknown or misshapen tensor.
    """
    import jax

    from cai_jax.models import placing

    config, leaves = _leaves(Path(folder))
    places: Any = None
    if place is not None:
        places = place(_tree((f.path, jax.ShapeDtypeStruct(f.shape, dtype)) for f in leaves))
    arrays = []
    # The largest first: what is held besides is small when nearly everything is there.
    for leaf in sorted(leaves, key=lambda leaf: -math.prod(leaf.shape)):
        array = placing.put(
            leaf.shape,
            jax.numpy.dtype(dtype),
            _at(places, leaf.path),
            functools.partial(_read, leaf, config, jax.numpy.dtype(dtype)),
            stacked=leaf.tensor.stacked,
        )
        arrays.append((leaf.path, array))
    return config, _tree(arrays)


def check_folder(folder: Path) -> None:
    """Refuses what `read_folder` would, from config.json and the headers of the weights alone."""
    _leaves(Path(folder))


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
        params: arrays that this process can read in full; they are fetched a layer at a time.
        special_tokens: ids under "bos", "eos" and "pad"; a classifier needs "pad" to run batches.
        shard_bytes: the size above which the weights are split over several files.
    """
    folder = Path(folder)
    preference_model = "score_head" in params
    write_config(folder, config, preference_model, special_tokens or {})
    shards: list[list[Outgoing]] = [[]]
    filled = 0
    for tensor in _outgoing(config, params, preference_model):
        if filled and filled + tensor.num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    for file_name, shard in zip(names, shards):
        tensor_files.write(folder / file_name, shard)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(t.num_bytes for shard in shards for t in shard)},
            "weight_map": {t.name: file for file, shard in zip(names, shards) for t in shard},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def read_config(folder: Path) -> tuple[ModelConfig, bool]:
    """Reads a folder's `config.json`: the config, and whether it is a preference model's."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: expected a model folder with config.json, found none")
    values = _json_object(path)
    try:
        return families.read_config(values, str(path))
    except InputError as error:
        if not values.get("auto_map") or "architectures" not in str(error):
            raise
        raise InputError(f"{error}; its auto_map names code to run, which is never done") from None


def read_special_tokens(folder: Path) -> dict[str, Any]:
    """What a folder's `config.json` names of "bos", "eos" and "pad": ids, or a list of them."""
    values = _json_object(Path(folder) / "config.json")
    named = {name: values.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {name: value for name, value in named.items() if value is not None}


def write_config(
    folder: Path,
    config: ModelConfig,
    preference_model: bool,
    special_tokens: Mapping[str, int | None],
) -> None:
    """Writes a folder's `config.json`."""
    values = families.write_config(config, preference_model, special_tokens)
    (Path(folder) / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _leaves(folder: Path) -> tuple[ModelConfig, list[_Leaf]]:
    """The config and every array of the params tree, all checked, nothing of them read."""
    config, preference_model = read_config(folder)
    stored: dict[str, Stored] = {}
    for file in _weight_files(folder):
        for name, place in tensor_files.contents(file).items():
            stored[families.known_name(name, config)] = place
    leaves, used = [], set()
    for tensor in families.tensors(config, preference_model):
        layers = config.layers if tensor.stacked else 1
        names = [tensor.name.format(layer=layer) for layer in range(layers)]
        places = tuple(_checked(tensor, name, stored, config, folder) for name in names)
        shape = families.params_shape(tensor, config)
        shape = (layers, *shape) if tensor.stacked else shape
        leaves += [_Leaf(tensor, number, shape, places) for number in range(len(tensor.paths))]
        used |= set(names)
    unknown = sorted(n for n in stored.keys() - used if not families.is_ignored(n, config))
    if unknown:
        raise InputError(
            f"{folder}: tensor {unknown[0]}: not part of a model with this config.json "
            f"({len(unknown)} such); the model would compute something else"
        )
    second = stored.get(families.unembedder_name(config))
    if second and config.tied_embeddings and not preference_model:
        embedding = next(leaf for leaf in leaves if leaf.path == ("embedder", "embedding"))
        _check_equal(embedding.stored[0], second, folder)
    return config, leaves


def _check_equal(embedding: Stored, second: Stored, folder: Path) -> None:
    """Refuses a second unembedding that is another one: transformers 5 uses it, and 4 does not."""
    rows = range(0, embedding.shape[0], 1024)
    first, other = embedding.mapped(), second.mapped()
    if embedding.shape != second.shape or not all(
        np.array_equal(first[row : row + 1024], other[row : row + 1024]) for row in rows
    ):
        raise InputError(
            f"{folder}: tie_word_embeddings: expected false beside an unembedding that is not the "
            "embedding, found true; say false in config.json, or remove that tensor"
        )


def _checked(
    tensor: families.Tensor,
    name: str,
    stored: Mapping[str, Stored],
    config: ModelConfig,
    folder: Path,
) -> Stored:
    expected = families.file_shape(tensor, config)
    found = stored.get(name)
    if found is None:
        raise InputError(f"{folder}: tensor {name} of shape {list(expected)} is missing")
    if found.shape != expected:
        raise InputError(
            f"{found.file}: tensor {name}: expected shape {list(expected)} by config.json, "
            f"found {list(found.shape)}"
        )
    if found.dtype not in tensor_files.DTYPES:
        raise InputError(
            f"{found.file}: tensor {name}: expected one of {', '.join(tensor_files.DTYPES)}, found "
            f"{found.dtype}; quantized weights are not supported"
        )
    return found


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
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder}: expected safetensors weights, found only {pickles[0]}, a pickle, which can "
            "run code when read; save the model again with safe_serialization=True"
        )
    raise InputError(f"{folder}: expected {SINGLE} or {INDEX}, found no weights")


def _read(leaf: _Leaf, config: ModelConfig, dtype: Any, index: tuple[slice, ...]) -> np.ndarray:
    """A part of an array; no other bytes of the files are touched."""

    def layer(stored: Stored, index: tuple[slice, ...]) -> np.ndarray:
        # `from_file` gives a view of the file, and the index a view of that.
        return families.from_file(leaf.tensor, stored.mapped(), config)[leaf.number][index]

    if not leaf.tensor.stacked:
        return np.array(layer(leaf.stored[0], index), dtype)
    stored = leaf.stored[index[0]]
    first = layer(stored[0], index[1:])
    array = np.empty((len(stored), *first.shape), dtype)
    for number, place in enumerate(stored):
        array[number] = layer(place, index[1:])
    return array


def _outgoing(
    config: ModelConfig, params: Mapping[str, Any], preference_model: bool
) -> Iterator[Outgoing]:
    """The tensors of the files; each is fetched from its device when it is written."""
    dtype = "BF16" if config.dtype == "bfloat16" else "F32"

    def fetch(tensor: families.Tensor, layer: int) -> np.ndarray:
        arrays = [_at(params, path) for path in tensor.paths]
        parts = [np.asarray(array[layer] if tensor.stacked else array) for array in arrays]
        dtyped = [part.astype(tensor_files.DTYPES[dtype]) for part in parts]
        return families.to_file(tensor, dtyped, config)

    for tensor in families.tensors(config, preference_model):
        shape = families.file_shape(tensor, config)
        for layer in range(config.layers if tensor.stacked else 1):
            name = tensor.name.format(layer=layer)
            yield Outgoing(name, dtype, shape, functools.partial(fetch, tensor, layer))


def _tree(leaves: Any) -> dict[str, Any]:
    """Nested dicts of (path, anything) pairs."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves:
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, key: node[key], path, tree) if tree else None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values
