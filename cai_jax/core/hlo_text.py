"""The text of a compiled program, read into computations of instructions."""

import math
import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


class Shape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool  # in the memory beside the arithmetic, not in HBM

    @property
    def bytes(self) -> int:
        """Its size, without padding."""
        bits = _BITS.get(self.dtype)
        if bits is None:
            bits = int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.sizes) * bits // 8


class Instruction(NamedTuple):
    """A line of a computation."""

    name: str
    shapes: list[Shape]
    opcode: str
    operands: list[str]
    text: str  # between the parentheses
    attributes: str  # after them
    root: bool

    def called(self, attribute: str) -> str | None:
        """The computation named as `attribute`."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


class Computation:
    """A named list of instructions."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: list[Instruction] = []

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by their names."""
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        """Whose value is the computation's."""
        return next(i for i in reversed(self.instructions) if i.root)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read `name`, through bitcasts."""
        found: list[Instruction] = []
        for instruction in self.instructions:
            if name in instruction.operands:
                if instruction.opcode == "bitcast" and not instruction.root:
                    found += self.users(instruction.name)
                else:
                    found.append(instruction)
        return found


def read(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the one that it begins with.

    Args:
        text: as `jax.stages.Compiled.as_text` prints it.
    """
    computations: dict[str, Computation] = {}
    entry, current, lines = "", None, list[str]()
    for line in text.splitlines():
        if current is None:
            header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
            if header:
                current = computations[header[2]] = Computation(header[2])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current.instructions += map(instruction, lines)
            current, lines = None, []
        elif re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            lines.append(line)
        elif lines:  # attributes of a kernel are printed in several lines
            lines[-1] += line
    return computations, entry


def instruction(line: str) -> Instruction:
    """The instruction of a line (that may have been printed in several)."""
    left, _, right = line.strip().partition(" = ")
    root = left.startswith("ROOT ")
    name = left.removeprefix("ROOT ").lstrip("%")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    opening = right.index("(", end)
    closing = _closing(right, opening)
    inside = right[opening + 1 : closing]
    return Instruction(
        name=name,
        shapes=list(shapes(right[:end])),
        opcode=right[end:opening].strip(),
        operands=re.findall(r"%([\w.\-]+)", inside),
        text=inside,
        attributes=right[closing + 1 :],
        root=root,
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis at `start` is closed."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise ValueError(f"no closing parenthesis in {text[start : start + 80]!r}")


def shapes(text: str) -> Iterator[Shape]:
    """The arrays of a type."""
    for dtype, sizes, layout in re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", text):
        numbers = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        yield Shape(dtype, numbers, bool(re.search(r"S\([1-9]", layout)))
