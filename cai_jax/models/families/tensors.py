"""Tables of tensors: what the arrays of the params tree are called, and how they lie, in a file."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from cai_jax.models.config import ModelConfig

Row = tuple[str, str, str, str]  # see `table`


class Tensor(NamedTuple):
    """One tensor of a file, and the arrays of the params tree that it holds: one, or several.

    Axes are letters; a group of letters in `file_axes` is one axis of the file, their product. The
    letter P counts the arrays of a tensor that holds several, all of the shape `axes`.
    """

    paths: tuple[tuple[str, ...], ...]  # below the root of params; "layers" have L in front
    name: str  # "{layer}" stands for the number of the layer
    file_axes: tuple[str, ...]
    axes: str

    @property
    def stacked(self) -> bool:
        """Whether the params tree has all layers in one array."""
        return self.paths[0][0] == "layers"


def table(rows: Iterable[Row], names: str = "", paths: str = "") -> tuple[Tensor, ...]:
    """Tensors of rows (paths, name, axes of the file, axes of the params), all as text.

    Args:
        rows: the several paths of a tensor, and the axes of its file, are separated by blanks; the
            parts of a path by slashes.
        names: stands before every name.
        paths: stands before every path.
    """
    return tuple(
        Tensor(
            tuple(tuple((paths + path).split("/")) for path in row_paths.split()),
            names + name,
            tuple(file_axes.split()),
            axes,
        )
        for row_paths, name, file_axes, axes in rows
    )


def file_shape(tensor: Tensor, config: ModelConfig) -> tuple[int, ...]:
    """The shape of (one layer of) `tensor` in a file."""
    sizes = _sizes(tensor, config)
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in tensor.file_axes)


def params_shape(tensor: Tensor, config: ModelConfig) -> tuple[int, ...]:
    """The shape of (one layer of) each array of `tensor` in the params tree."""
    return tuple(_sizes(tensor, config)[letter] for letter in tensor.axes)


def from_file(tensor: Tensor, array: np.ndarray, config: ModelConfig) -> tuple[np.ndarray, ...]:
    """One layer of a tensor of a file as arrays for `tensor.paths`: views, if they can be."""
    sizes, letters = _sizes(tensor, config), _letters(tensor)
    array = array.reshape([sizes[letter] for letter in letters])
    array = array.transpose([letters.index(letter) for letter in "P" + tensor.axes])
    return tuple(array)


def to_file(tensor: Tensor, arrays: Sequence[np.ndarray], config: ModelConfig) -> np.ndarray:
    """One layer of a tensor of a file, from the arrays of `tensor.paths`."""
    letters = _letters(tensor)
    array = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    array = array.transpose([("P" + tensor.axes).index(letter) for letter in letters])
    return np.ascontiguousarray(array.reshape(file_shape(tensor, config)))


def _letters(tensor: Tensor) -> str:
    """The axes of a file's tensor, one by one, with P among them."""
    letters = "".join(tensor.file_axes).replace("1", "")
    return letters if "P" in letters else "P" + letters


def _sizes(tensor: Tensor, config: ModelConfig) -> dict[str, int]:
    return {
        "P": len(tensor.paths),
        "V": config.vocab_size,
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "F": config.hidden,
        "T": config.max_positions,
        "1": 1,
    }
