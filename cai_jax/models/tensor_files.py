"""The safetensors format: an 8-byte length, a JSON header, then the tensors' bytes.

Reading maps a tensor into memory, so that only what is taken of it is read; writing takes one
tensor at a time, so that no more than one need be in memory.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cai_jax.errors import InputError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
ALIGNMENT = 8  # of the tensors' bytes in a file


class Stored(NamedTuple):
    """Where a tensor is."""

    file: Path
    dtype: str  # as the header names it; one of DTYPES, or it cannot be read
    shape: tuple[int, ...]
    start: int  # in bytes, from the file's beginning

    def mapped(self) -> np.ndarray:
        """The tensor, read-only, of which nothing is read yet."""
        return np.memmap(self.file, DTYPES[self.dtype], "r", self.start, self.shape)


class Outgoing(NamedTuple):
    """A tensor to write; `read` gives it when its turn comes, and it is not kept."""

    name: str
    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * np.dtype(DTYPES[self.dtype]).itemsize


def contents(file: Path) -> dict[str, Stored]:
    """The tensors of a file, by its header.

    Raises:
        InputError: it is no whole safetensors file.
    """
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
            if not 0 <= start <= stop or 8 + length + stop > size:
                raise ValueError(f"tensor {name} ends after the file")
            shape = tuple(entry["shape"])
            if entry["dtype"] in DTYPES:
                needed = math.prod(shape) * np.dtype(DTYPES[entry["dtype"]]).itemsize
                if needed != stop - start:
                    raise ValueError(f"tensor {name} of {stop - start} bytes needs {needed}")
            stored[name] = Stored(file, entry["dtype"], shape, 8 + length + start)
        return stored
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a whole safetensors file: {error}") from None


def write(file: Path, tensors: Sequence[Outgoing]) -> None:
    """Writes a file, byte for byte as the safetensors library does for tensors of one dtype."""
    tensors = sorted(tensors, key=lambda tensor: tensor.name)
    # What `transformers` looks for.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for tensor in tensors:
        start, stop = stop, stop + tensor.num_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open(file, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor in tensors:
            array = np.ascontiguousarray(tensor.read(), DTYPES[tensor.dtype])
            if array.shape != tensor.shape:
                raise ValueError(f"tensor {tensor.name}: {array.shape} is not {tensor.shape}")
            stream.write(array.reshape(-1).view(np.uint8).data)
