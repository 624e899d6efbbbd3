"""What a compiled program costs, counted in its HLO text: FLOPs, bytes of memory, collectives.

A loop counts as often as it goes round. (The compiler's own analysis counts the body of a loop
once, so that a model of 80 scanned layers would have the FLOPs of one.) FLOPs are those of matrix
products, two for a multiplication and addition; what is computed again in a backward pass counts
again. Everything is of one device: the text is of the partitioned program.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from cai_jax.core import hlo_kernels, hlo_text
from cai_jax.core.hlo_text import Computation, Instruction, Shape

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# Instructions that move nothing by themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain", "iota"),
    *("add-dependency", "copy-done", "async-done", "async-update", "async-start", "send-done"),
    *("recv-done", "reshape"),
}


class Rates(NamedTuple):
    """What a device does in a second, at most."""

    flops: float
    bandwidth: float  # bytes of HBM


class Costs(NamedTuple):
    """Of one device. `moved` is payload by kind of collective; `sent` is what leaves the chip."""

    flops: float
    hbm_bytes: float
    moved: dict[str, float]
    sent: float
    unknown_loops: int  # loops whose rounds are data, for which the caller's number was taken
    # Of all instructions one after the other, each as long as its FLOPs or its bytes take, whatever
    # is longer; without collectives.
    seconds: float = 0.0

    def scaled(self, times: float) -> "Costs":
        """The costs of so many rounds."""
        moved = {kind: times * size for kind, size in self.moved.items()}
        return Costs(
            times * self.flops,
            times * self.hbm_bytes,
            moved,
            times * self.sent,
            self.unknown_loops,
            times * self.seconds,
        )

    def plus(self, other: "Costs") -> "Costs":
        """The costs of both."""
        moved = defaultdict(float, self.moved)
        for kind, size in other.moved.items():
            moved[kind] += size
        return Costs(
            self.flops + other.flops,
            self.hbm_bytes + other.hbm_bytes,
            dict(moved),
            self.sent + other.sent,
            self.unknown_loops + other.unknown_loops,
            self.seconds + other.seconds,
        )


NOTHING = Costs(0.0, 0.0, {}, 0.0, 0)


class _Counting(NamedTuple):
    loop_trips: float
    rates: Rates | None
    done: dict[str, Costs]  # of computations, by name


class Module:
    """A program as `jax.stages.Compiled.as_text` prints it."""

    def __init__(self, text: str):
        self.computations, self.entry = hlo_text.read(text)

    def costs(self, loop_trips: float = 1, rates: Rates | None = None) -> Costs:
        """Of the whole program.

        Args:
            loop_trips: rounds of loops that end on data.
            rates: of the device, for `seconds`.
        """
        return self._of(self.entry, _Counting(loop_trips, rates, {}))

    def _of(self, name: str, counting: _Counting) -> Costs:
        if name in counting.done:
            return counting.done[name]
        computation, total = self.computations[name], NOTHING
        begun = set[str]()  # collectives inside fusions
        for i in computation.instructions:
            if i.opcode == "while":
                body = self._of(i.called("body") or "", counting)
                rounds = self.rounds(i, computation)
                body = body.scaled(counting.loop_trips if rounds is None else rounds)
                total = total.plus(
                    body._replace(unknown_loops=body.unknown_loops + (rounds is None))
                )
            elif i.opcode == "conditional":
                names = re.findall(r"%?([\w.\-]+)", _branches(i.attributes))
                branches = [self._of(n, counting) for n in names if n in self.computations]
                total = total.plus(max(branches, key=lambda costs: costs.flops, default=NOTHING))
            elif i.opcode in ("call", "async-start"):
                target = i.called("to_apply") or i.called("calls") or ""
                if target in self.computations:
                    total = total.plus(self._of(target, counting))
            else:
                costs = self._instruction(i, computation, counting)
                channels = self._channels(i)
                if channels & begun:
                    costs = costs._replace(moved={}, sent=0.0)
                begun |= channels
                total = total.plus(costs)
        counting.done[name] = total
        return total

    def _instruction(self, i: Instruction, computation: Computation, counting: _Counting) -> Costs:
        inside = NOTHING
        if i.opcode == "fusion":
            inside = self._of(i.called("calls") or "", counting)._replace(hbm_bytes=0.0)
        elif i.opcode == "dot":
            inside = NOTHING._replace(flops=_dot_flops(i, computation))
        elif i.opcode == "custom-call" and "dot_dimension_numbers" in i.attributes:
            inside = NOTHING._replace(flops=_dot_flops(i, computation))  # cuBLAS
        elif i.opcode == "convolution":
            inside = NOTHING._replace(flops=_convolution_flops(i, computation))
        of_kernel = hlo_kernels.attention(i, computation)
        if of_kernel is not None:
            inside = NOTHING._replace(flops=of_kernel.flops)
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            arrays = [*i.shapes, *(s for o in i.operands for s in _shapes_of(o, computation))]
            payload = float(max(shape.bytes for shape in arrays))
            if not i.opcode.endswith("-start"):
                results = sum(shape.bytes for shape in i.shapes)
                payload = float(max(results, sum(_size(o, computation) for o in i.operands)))
            inside = NOTHING._replace(moved={kind: payload}, sent=payload * _share(kind, i))
        size, seconds = self._hbm_bytes(i, computation), 0.0
        if of_kernel is not None:
            size += of_kernel.read_again
        if counting.rates is not None:
            rates = counting.rates
            seconds = 0.0 if kind in COLLECTIVES else size / rates.bandwidth
            seconds = max(seconds, inside.flops / rates.flops)
        return inside._replace(hbm_bytes=size, seconds=seconds)

    def _channels(self, i: Instruction) -> set[str]:
        """The collectives inside a fusion, by their channels.

        A TPU's compiler cuts a collective into steps beside arithmetic, each in a fusion that has
        the whole collective in it, of one channel: it is sent once.
        """
        if i.opcode != "fusion":
            return set()
        found = set[str]()
        for inner in self.computations[i.called("calls") or ""].instructions:
            channel = re.search(r"channel_id=(\d+)", inner.attributes)
            if channel and inner.opcode.removesuffix("-start") in COLLECTIVES:
                found.add(channel[1])
            found |= self._channels(inner)
        return found

    def rounds(self, loop: Instruction, computation: Computation) -> int | None:
        """How often a loop goes round; None where that is data."""
        known = re.search(r'known_trip_count"?[:=]\s*\{"?n"?[:=]"?(\d+)', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations[loop.called("condition") or ""]
        root = condition.root
        bounds = [i for i in condition.instructions if _is_integer(i)]
        places = [i for i in condition.instructions if i.opcode == "get-tuple-element"]
        if root.opcode == "fusion":
            inside = self.computations[root.called("calls") or ""]
            bounds += [i for i in inside.instructions if _is_integer(i)]
            root = inside.root
        counts = root.opcode == "compare" and "direction=LT" in root.attributes
        if not counts or len(bounds) != 1 or len(places) != 1:
            return None
        place = int(re.findall(r"index=(\d+)", places[0].attributes)[0])
        first = _constant(loop.operands[0], computation, place) or 0
        return -(-(int(bounds[0].text) - first) // self._stride(loop, place))

    def _stride(self, loop: Instruction, place: int) -> int:
        """What a round adds to the counter at `place` of the loop's tuple; 1 where unclear."""
        body = self.computations[loop.called("body") or ""]
        found = body.by_name.get(body.root.operands[place])
        if found is not None and found.opcode == "fusion":
            body = self.computations[found.called("calls") or ""]
            found = body.root
        if found is None or found.opcode != "add":
            return 1
        steps = [_constant(name, body) for name in found.operands]
        return next((step for step in steps if step), 1)

    def _hbm_bytes(self, i: Instruction, computation: Computation) -> float:
        """Bytes that an instruction reads and writes; slices of an array count as slices."""
        if i.opcode in _FREE or i.opcode.endswith("-done"):
            return 0.0
        if i.opcode == "copy-start":  # (to, from, ...), either of which may be on the chip
            return _hbm(i.shapes[:2])
        if i.opcode == "slice-start":  # ((all of it), the slice, ...)
            source, part = i.shapes[:2]
            return float(part.bytes * ((not source.on_chip) + (not part.on_chip)))
        if i.opcode in ("dynamic-slice", "gather", "slice", "broadcast"):
            return 2.0 * min(_hbm(i.shapes), _hbm(i.shapes[:1]))
        if i.opcode in ("dynamic-update-slice", "scatter"):
            return 2.0 * _size(i.operands[1 if i.opcode[0] == "d" else 2], computation)
        if i.opcode == "custom-call" and "AllocateBuffer" in i.attributes:
            return 0.0
        if i.opcode != "fusion":
            return _hbm(i.shapes) + sum(_hbm(_shapes_of(o, computation)) for o in i.operands)
        inside = self.computations[i.called("calls") or ""]
        total = 0.0
        parameters = _parameters(inside)
        for number, operand in enumerate(i.operands):
            whole = _hbm(_shapes_of(operand, computation))
            if whole and number in parameters:
                total += min(whole, self._read(inside, parameters[number]))
        roots = [inside.root]
        if roots[0].opcode == "tuple":
            roots = [inside.by_name[name] for name in roots[0].operands]
        for root, shape in zip(roots, i.shapes):
            while root.opcode == "bitcast" and root.operands[0] in inside.by_name:
                root = inside.by_name[root.operands[0]]
            if root.opcode == "dynamic-update-slice":
                total += _size(root.operands[1], inside)
            else:
                total += _hbm([shape])
        return total

    def _read(self, inside: Computation, parameter: Instruction) -> float:
        """Bytes that a fusion reads of one operand."""
        total = 0.0
        for user in inside.users(parameter.name):
            if user.opcode in ("dynamic-slice", "gather", "slice"):
                total += sum(shape.bytes for shape in user.shapes)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] != user.operands[1]:
                updated = user.operands[1] == parameter.name
                total += parameter.shapes[0].bytes if updated else 0.0
            elif user.opcode == "fusion":
                called = self.computations[user.called("calls") or ""]
                if parameter.name not in user.operands:  # through a bitcast
                    return float(parameter.shapes[0].bytes)
                inner = _parameters(called)[user.operands.index(parameter.name)]
                total += self._read(called, inner)
            else:
                return float(parameter.shapes[0].bytes)
        return total


def _constant(name: str, computation: Computation, place: int | None = None) -> int | None:
    """The integer constant that `name` is, or that its tuple has at `place`, through copies."""
    found = computation.by_name.get(name)
    if found is not None and place is not None and found.opcode == "tuple":
        return _constant(found.operands[place], computation)
    if found is not None and found.opcode in ("copy", "bitcast", "convert"):
        return _constant(found.operands[0], computation)
    return int(found.text) if found is not None and _is_integer(found) else None


def _parameters(computation: Computation) -> dict[int, Instruction]:
    return {int(p.text): p for p in computation.instructions if p.opcode == "parameter"}


def _branches(attributes: str) -> str:
    found = re.search(r"branch_computations=\{([^}]*)\}", attributes)
    if found:
        return found[1]
    return " ".join(re.findall(r"(?:true|false)_computation=(\S+?),?(?:\s|$)", attributes))


def _is_integer(i: Instruction) -> bool:
    return i.opcode == "constant" and bool(re.fullmatch(r"\d+", i.text)) and not i.shapes[0].sizes


def _shapes_of(name: str, computation: Computation) -> list[Shape]:
    found = computation.by_name.get(name)
    return found.shapes if found else []


def _size(name: str, computation: Computation) -> float:
    return float(sum(shape.bytes for shape in _shapes_of(name, computation)))


def _hbm(shapes: list[Shape]) -> float:
    return float(sum(shape.bytes for shape in shapes if not shape.on_chip))


def _dot_flops(i: Instruction, computation: Computation) -> float:
    left = _shapes_of(i.operands[0], computation)[0].sizes
    found = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', i.attributes)
    axes = [int(axis) for axis in re.findall(r"\d+", found[1])] if found else []
    return 2.0 * math.prod(i.shapes[0].sizes) * math.prod(left[axis] for axis in axes)


def _convolution_flops(i: Instruction, computation: Computation) -> float:
    """A TPU's matrix products are convolutions, batches among their dimensions of space: of those
    only the places count where the window lies on numbers, not on padding or between them."""
    left, right = (_shapes_of(name, computation)[0].sizes for name in i.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    assert labels, i.attributes
    of_left, of_right, of_out = labels[1], labels[2], labels[3]
    window = dict(re.findall(r"(\w+)=([^\s}]+)", _window(i.attributes)))
    out = i.shapes[0].sizes
    total = 2.0 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for axis in range(sum(label.isdigit() for label in of_left)):
        label = str(axis)
        total *= _pairs(
            left[of_left.index(label)],
            right[of_right.index(label)],
            out[of_out.index(label)],
            stride=_number(window, "stride", axis, 1),
            low=_number(window, "pad", axis, 0),
            left_dilation=_number(window, "lhs_dilate", axis, 1),
            right_dilation=_number(window, "rhs_dilate", axis, 1),
        )
    return total


def _window(attributes: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    return found[1] if found else ""


def _number(window: dict[str, str], name: str, axis: int, default: int) -> int:
    """The entry of one axis in "2x2" or "0_0x7_7"."""
    return int(window[name].split("x")[axis].split("_")[0]) if name in window else default


def _pairs(
    left: int,
    right: int,
    out: int,
    *,
    stride: int,
    low: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs of a place of the output and one of the window under which there is a number."""
    places = np.arange(out)[:, None] * stride + np.arange(right)[None] * right_dilation - low
    inside = (places >= 0) & (places <= (left - 1) * left_dilation)
    return int(np.sum(inside & (places % left_dilation == 0)))


def _share(kind: str, i: Instruction) -> float:
    """Of the payload, what each device sends, with the algorithm that sends least."""
    n = group_size(i.attributes)
    if kind == "collective-permute":
        return 1.0
    return (2.0 if kind == "all-reduce" else 1.0) * (n - 1) / n


def group_size(attributes: str) -> int:
    """Devices that a collective joins; 1 where the text does not say."""
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        return math.prod(sizes[name] for name in re.findall(r"'(\w+)'", mesh[2]))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    return len(listed[1].split(",")) if listed else 1
