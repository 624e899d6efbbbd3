"""LoRA (Hu et al. 2022): a projection W is trained as W + (alpha / rank) A B, of which W stays.

The factors lie beside the frozen parameters: {"adapter": {"layers": {..., "query": {"a", "b"}}}},
a [L, input axes..., R] and b [L, R, output axes...]. While they are trained the model computes
x W + scale (x A) B, which needs no gradient of W, nor room for one; what is saved is the sum.
"""

from __future__ import annotations

import math
import typing
from typing import Any

from ml_collections import ConfigDict

from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from collections.abc import Callable

    import jax

# The projections by name, and how many of their axes, which come first, are input: D, or N and H.
INPUT_AXES = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}
ADAPTER = "adapter"
WHOLE = ("score_head",)  # trained in full beside the factors: it is small, and new

Params = dict[str, Any]


def default_config() -> ConfigDict:
    """The group of parameters that a training stage has as `lora`."""
    config = ConfigDict()
    config.rank = 0  # R; 0: no LoRA, all parameters are trained
    config.alpha = 16.0  # the product of the factors is multiplied by alpha / rank
    # The projections that have factors, of query, key, value, out, gate, up and down; (): all.
    config.targets = ()
    return config


def check(config: ConfigDict) -> None:
    """Refuses parameters that mean nothing.

    Raises:
        InputError: naming the parameter.
    """
    if config.rank < 0:
        raise InputError(f"lora.rank: expected 0 (no LoRA) or more, found {config.rank}")
    if not config.alpha > 0:
        raise InputError(f"lora.alpha: expected more than 0, found {config.alpha}")
    for target in config.targets:
        if target not in INPUT_AXES:
            raise InputError(
                f"lora.targets: expected some of {', '.join(INPUT_AXES)}, found {target!r}"
            )


def split(params: Params, config: ConfigDict, key: jax.Array) -> tuple[Params, Params | None]:
    """What is trained, and what stays as it is: (`params`, None) where the rank is 0.

    The factors start as PEFT's do: a uniform in +-1 / sqrt(inputs), b zero; the model starts as the
    one without them.

    Args:
        params: of the model to start from.
        config: as `default_config`.
        key: of the draws.

    Raises:
        InputError: the model has no projection of a target's name.
    """
    import jax
    import jax.numpy as jnp

    check(config)
    if not config.rank:
        return params, None
    adapter: Params = {}
    for number, path in enumerate(paths(params, tuple(config.targets))):
        layers, inputs, outputs = sides(path[-1], at(params, path).shape)
        bound = math.prod(inputs) ** -0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, number), (layers, *inputs, config.rank), jnp.float32, -1, 1
        )
        factors = {"a": bound * a, "b": jnp.zeros((layers, config.rank, *outputs))}
        node = adapter
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = factors
    whole = {name: params[name] for name in WHOLE if name in params}
    frozen = {name: value for name, value in params.items() if name not in whole}
    return {ADAPTER: adapter, **whole}, frozen


def joined(trained: Params, frozen: Params | None, config: ConfigDict) -> Params:
    """What the model computes with, from what `split` took apart; differentiable in `trained`.

    The factors stand beside their projection, as "<name>_adapter", b with the scale in it.
    """
    if frozen is None:
        return trained
    scale = config.alpha / config.rank

    def beside(name: str, value: Any, factors: Any) -> Params:
        return {name: value, f"{name}_adapter": {"a": factors["a"], "b": scale * factors["b"]}}

    return _with_factors(trained, frozen, beside)


def merged(trained: Params, frozen: Params | None, config: ConfigDict) -> Params:
    """The parameters of the model without any adapter: each projection with its product added."""
    import jax

    if frozen is None:
        return trained
    scale = config.alpha / config.rank

    def added(name: str, value: Any, factors: Any) -> Params:
        return {name: value + scale * product(factors, value.shape)}

    return jax.jit(lambda trained, frozen: _with_factors(trained, frozen, added))(trained, frozen)


def _with_factors(
    trained: Params, frozen: Params, combine: Callable[[str, Any, Any], Params]
) -> Params:
    """The tree of all parameters, with `combine(name, value, factors)` for each projection."""

    def walk(params: Params, adapter: Params) -> Params:
        found: Params = {}
        for name, value in params.items():
            factors = adapter.get(name)
            if factors is None:
                found[name] = value
            elif isinstance(value, dict):
                found[name] = walk(value, factors)
            else:
                found |= combine(name, value, factors)
        return found

    whole = {name: value for name, value in trained.items() if name != ADAPTER}
    return {**walk(frozen, trained[ADAPTER]), **whole}


def product(factors: dict[str, Any], shape: tuple[int, ...]) -> jax.Array:
    """a times b, in the axes of their projection."""
    import jax.numpy as jnp

    layers, *_, rank = factors["a"].shape
    a, b = factors["a"].reshape(layers, -1, rank), factors["b"].reshape(layers, rank, -1)
    return jnp.einsum("lir,lro->lio", a, b).reshape(shape)


def paths(params: Params, targets: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Where in `params` the projections named `targets` are (none: all), in the tree's order.

    Raises:
        InputError: there is none of some name.
    """
    import jax

    found = []
    for keys, _ in jax.tree_util.tree_flatten_with_path(params.get("layers", {}))[0]:
        path = ("layers", *(key.key for key in keys))
        if path[-1] in (targets or INPUT_AXES):
            found.append(path)
    missing = set(targets) - {path[-1] for path in found}
    if missing:
        raise InputError(f"lora.targets: this model has no projection {', '.join(sorted(missing))}")
    return found


def sides(name: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """(L, input axes, output axes) of the stacked projection `name`."""
    layers, *axes = shape
    count = INPUT_AXES[name]
    return layers, tuple(axes[:count]), tuple(axes[count:])


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The node of nested dicts at `path`."""
    for name in path:
        tree = tree[name]
    return tree
