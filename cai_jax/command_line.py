"""What the jobs have in common: flags, and files and folders that appear whole or not at all."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from cai_jax import hosts
from cai_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Flags by their full names only; bad usage is one line, as other bad input is."""

    def __init__(self, **options: Any):
        """As `argparse.ArgumentParser`, with defaults shown in the help."""
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **options
        )

    def error(self, message: str) -> NoReturn:
        """Raises the complaint, which `exits_on_input_error` prints."""
        raise InputError(f"{message}; {self.prog} --help lists what there is")


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """--out, --stats and --overwrite, the same for all such jobs."""
    parser.add_argument("--out", type=Path, required=True, help="the JSON Lines file to write")
    parser.add_argument("--stats", type=Path, help="a JSON file for times and token counts")
    parser.add_argument("--overwrite", action="store_true", help="replace --out and --stats")
    parser.add_argument(
        "--num_hosts", type=int, metavar="N", help="processes, each of which takes a part of lines"
    )
    parser.add_argument("--host", type=int, metavar="I", help="which of them this is, from 0")


@dataclasses.dataclass(frozen=True)
class Part:
    """The part of a file's lines that is this process's: they need not know each other."""

    index: int = 0
    count: int = 1

    def lines(self, total: int) -> slice:
        """Of so many lines: contiguous, in the order of the processes."""
        return slice(total * self.index // self.count, total * (self.index + 1) // self.count)

    def file(self, path: Path) -> Path:
        """Where it goes: a shard of `path` (`data/rows.py`) if there are others."""
        from cai_jax.data import rows

        return path if self.count == 1 else rows.shard(path, self.index, self.count)


def checked_part(args: argparse.Namespace) -> Part:
    """Which part --num_hosts and --host mean, or the environment; refuses outputs that are there.

    Raises:
        InputError: as `check_outputs`; or nothing says which of several processes this is.
    """
    part = Part()
    if args.num_hosts is not None or args.host is not None:
        part = Part(-1 if args.host is None else args.host, args.num_hosts or 0)
        if not 0 <= part.index < part.count:
            raise InputError(
                "hosts: expected --num_hosts=N and --host=I together, I from 0 to N - 1, found "
                f"{args.num_hosts} and {args.host}"
            )
    elif others := hosts.asked(None, None, None, os.environ):
        if others.index is None or others.count is None:
            raise InputError(
                "hosts: expected --num_hosts=N and --host=I on each of the several hosts that the "
                "environment speaks of, found neither"
            )
        part = Part(others.index, others.count)
    paths = [path for path in (args.out, args.stats) if path is not None]
    check_outputs(paths, args.overwrite and part.count == 1)
    check_outputs(map(part.file, paths), args.overwrite)
    return part


def keep_compiled() -> None:
    """Keeps compiled programs from one process to the next, in a folder of the user's cache.

    To be called before jax is imported. JAX_COMPILATION_CACHE_DIR names another folder; jax's own
    options say what is kept (by default what took a second or more to compile).
    """
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(home) / "cai_jax" / "compiled"))


def seed(text: str) -> int:
    """The type of --seed: a random key takes 32 bits, and larger numbers would repeat others."""
    number = int(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"expected 0 to {2**32 - 1}, found {number}")
    return number


def check_outputs(paths: Iterable[Path | None], overwrite: bool) -> None:
    """Refuses, before any work, output files that exist or cannot be written."""
    given = [path for path in paths if path is not None]
    for path in given:
        if not path.parent.is_dir():
            raise InputError(f"{path}: expected an existing folder, found no {path.parent}")
        if path.is_dir():
            raise InputError(f"{path}: expected a file to write, found a folder")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; name another file, or give --overwrite")
    if len({path.resolve() for path in given}) < len(given):
        raise InputError(f"{given[-1]}: expected another file for each output, found it twice")


def check_output_folder(path: Path) -> None:
    """Refuses, before any work, a folder to write that holds something or cannot be made."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: expected an existing folder, found no {path.parent}")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: expected a new or empty folder, found a file")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path}: expected a new or empty folder, found files; name another")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` at the end, or vanishes on an error."""
    partial = path.absolute().with_name(path.absolute().name + ".partial")
    if partial.exists():  # of a job that was killed
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        yield partial
        os.replace(partial, path)  # over an empty folder too
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, the whole file or nothing."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            for value in values:
                file.write(json.dumps(value, ensure_ascii=False) + "\n")
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def field(value: Any, name: str, expected: type, where: str) -> Any:
    """value[name], refused with file, line and field unless it is of the expected type."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, found {str(value)[:40]!r}")
    if name not in value:
        found = ", ".join(value) or "no field"
        raise InputError(f"{where}: field {name!r} is missing; found {found}")
    if not isinstance(value[name], expected):
        kind = "text" if expected is str else "a list"
        raise InputError(f"{where}: {name}: expected {kind}, found {str(value[name])[:40]!r}")
    if expected is str:
        check_text(value[name], f"{where}: {name}")
    return value[name]


def check_text(text: str, where: str) -> None:
    """Refuses half of a surrogate pair, which JSON can spell and no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: expected text, found the lone surrogate {error.object[error.start]!r}"
        ) from None
