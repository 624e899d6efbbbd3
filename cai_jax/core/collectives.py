"""What a training step must send between devices, by the arithmetic of its sharding.

Of one device, with the algorithms that send least: of a payload that n devices share, (n - 1) / n
leaves each of them where it is gathered, or added up and scattered; twice that in an all-reduce.

- fsdp: weights are gathered in the compute dtype for the forward pass, and again for the backward
  pass; gradients are added up and scattered once, in the compute dtype too, in which products make
  them.
- data: the gradients of the device's own part of the weights are added up in an all-reduce.
- tensor: the two products of a layer that end in D are partial sums, [B, T, D] in the compute
  dtype: an all-reduce each, forward, again where the layer is computed again, and as many backward.

With P parameters of two bytes, all of them split over f devices, and no tensor axis, this is
(2 x 2 + 2) P (f - 1) / f bytes.
"""

import math
from typing import Any

import jax


def required_bytes(
    params: Any,
    mesh: jax.sharding.Mesh,
    *,
    positions: int,
    width: int,
    layers: int,
    itemsize: int,
    parts: int,
    recomputed: bool,
    trained: bool,
) -> float:
    """Bytes that each device sends in an update, at least.

    Args:
        params: abstract arrays, each with a NamedSharding.
        mesh: the devices.
        positions: B x T of the whole batch.
        width: D.
        layers: L.
        itemsize: bytes of a number of the compute dtype.
        parts: of the batch, one after the other; weights are gathered for each.
        recomputed: whether the backward pass computes the layers again.
        trained: whether the parameters have gradients.
    """
    data, fsdp, tensor = (mesh.shape[axis] for axis in ("data", "fsdp", "tensor"))
    total = 0.0
    for leaf in jax.tree.leaves(params):
        axes = _axes(leaf.sharding.spec)
        size = math.prod(leaf.shape) / (tensor if "tensor" in axes else 1)
        split = fsdp if "fsdp" in axes else 1
        gathers = 2 * parts * itemsize * size * (split - 1) / split
        whole = fsdp * data // split  # devices with the same part, which exchange its gradient
        scattered = itemsize * size * (split - 1) / split
        summed = 2 * itemsize * size / split * (whole - 1) / whole
        total += gathers + (scattered + summed if trained else 0.0)
    of_layer = 2 * (3 if recomputed else 2)
    payload = positions / (data * fsdp) * width * itemsize
    return total + layers * of_layer * 2 * payload * (tensor - 1) / tensor


def _axes(spec: Any) -> set[str]:
    names: set[str] = set()
    for entry in spec:
        names |= {entry} if isinstance(entry, str) else set(entry or ())
    return names
