"""The options of a `config.json`, read one by one, each checked and with its family's default."""

from collections.abc import Mapping
from typing import Any

from cai_jax.errors import InputError
from cai_jax.models.config import DTYPES

# What transformers calls an activation -> what ModelConfig does. The tanh form has three names.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class Options:
    """The values of a file, over the defaults of its family.

    Errors name the file and the option in one line.
    """

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], where: str):
        """`values` is the parsed file, `where` its path; `defaults` hold in place of what lacks."""
        self.values = {**defaults, **values}
        self.given = values
        self.where = where

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number; `default` where the option is null."""
        found = self.values.get(name)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool):
            raise self.error(name, "a whole number", found)
        return found

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive number; `default` where the option is null."""
        return self.a_positive(name, self.values.get(name), default)

    def a_positive(self, name: str, found: Any, default: float | None = None) -> float:
        """`found` under `name` as a positive number, or the default where it is null."""
        found = default if found is None else found
        if not isinstance(found, int | float) or isinstance(found, bool) or not found > 0:
            raise self.error(name, "a positive number", found)
        return float(found)

    def positive_or_none(self, name: str) -> float | None:
        """A positive number, or None where the option is null."""
        return None if self.values.get(name) is None else self.positive(name)

    def flag(self, name: str) -> bool:
        """True or False; null is False."""
        found = self.values.get(name)
        if found not in (True, False, None):
            raise self.error(name, "true or false", found)
        return bool(found)

    def activation(self, name: str) -> str:
        """The activation under its name in `ModelConfig`."""
        found = self.values.get(name)
        if found not in ACTIVATIONS:
            raise self.error(name, f"one of {', '.join(ACTIVATIONS)}", found)
        return ACTIVATIONS[found]

    def section(self, name: str) -> dict[str, Any]:
        """An object; null and absent are an empty one."""
        found = self.values.get(name) or {}
        if not isinstance(found, dict):
            raise self.error(name, "an object", found)
        return found

    def dtype(self) -> str:
        """The compute dtype: the file's where we have it, else float32."""
        found = self.values.get("dtype", self.values.get("torch_dtype"))
        return found if found in DTYPES else "float32"

    def windowed_layers(self, default: list[bool]) -> tuple[int, ...]:
        """The layers with a window by `layer_types`, or by the family's rule where it is null."""
        found = self.values.get("layer_types")
        layers = len(default)
        if found is not None:
            kinds = ("full_attention", "sliding_attention")
            if not isinstance(found, list) or not set(map(str, found)) <= set(kinds):
                raise self.error("layer_types", f"a list of {' and '.join(kinds)}", found)
            if len(found) != layers:
                raise self.error("layer_types", f"{layers} of them, as layers", len(found))
            default = [kind == "sliding_attention" for kind in found]
        return tuple(layer for layer, windowed in enumerate(default) if windowed)

    def check_fixed(self, fixed: Mapping[str, tuple[Any, ...]]) -> None:
        """Refuses an option with another value than those under its name."""
        for name, supported in fixed.items():
            if name in self.given and self.given[name] not in supported:
                raise self.unsupported(name, supported[0], self.given[name])

    def error(self, name: str, expected: str, found: Any) -> InputError:
        """What to raise where an option makes no sense."""
        return InputError(f"{self.where}: {name}: expected {expected}, found {found!r}")

    def unsupported(self, name: str, supported: Any, found: Any) -> InputError:
        """What to raise where an option makes another model than is computed here."""
        return InputError(
            f"{self.where}: {name}: only {supported!r} is supported, found {found!r}; "
            "the model would compute something else"
        )


def layer_types(layers: int, windowed: tuple[int, ...]) -> list[str]:
    """`layer_types` of a file."""
    return ["sliding_attention" if n in windowed else "full_attention" for n in range(layers)]
