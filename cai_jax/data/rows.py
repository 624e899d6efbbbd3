"""The rows of the files that people have: JSON Lines, CSV, either with gzip, and TFDS splits.

A row is an object with named values. One that cannot be read is an error with its file and line, to
be raised or listed (`data/bad_records.py`); what ends a file early, or leaves no way to tell where
the next row begins, always raises.

- Text is UTF-8; a byte-order mark is passed over, and lines may end in CRLF.
- A file of our own may lie in shards, one of each host that wrote it: chains-00000-of-00002.jsonl.
  It is read under its name, chains.jsonl, and lines are counted through.
- Blank lines hold no row and are passed over.
- A JSON file may also be one array of objects: the public red-team file is, whatever its name.
- A CSV file begins with its column names. Quoted cells may hold line breaks; the line of a row is
  that where it begins.
"""

import contextlib
import csv
import functools
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cai_jax.data import tfds_splits
from cai_jax.errors import InputError

ENDINGS = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
GZIP_MAGIC = b"\x1f\x8b"


class Row(NamedTuple):
    """One row; `value` is an InputError for one that cannot be read."""

    where: str  # "file:line", or "split:number"
    number: int  # from 0, over good and bad rows
    value: Any


class Unread(NamedTuple):
    """One row that was found, and is read by `value()`, which is as `Row.value`."""

    where: str
    number: int
    value: Callable[[], Any]

    def read_as(self, parse: Callable[[Any], Any]) -> "Unread":
        """The row whose value is `parse` of this one's, which may raise an InputError."""
        return self._replace(value=functools.partial(_value, self.value, parse))


def _value(read: Callable[[], Any], parse: Callable[[Any], Any]) -> Any:
    try:
        value = read()
        return value if isinstance(value, InputError) else parse(value)
    except InputError as error:
        return error


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .jsonl.gz or .csv.gz file, or of a split of a TFDS data set.

    Raises:
        InputError: no such file, one that ends early, or one that is no text.
    """
    return (Row(row.where, row.number, row.value()) for row in find_rows(path))


def find_rows(path: Path) -> Iterator[Unread]:
    """`read_rows` for who needs some of them: finding lines of JSON Lines and examples of a split
    takes a hundredth of the time of reading them."""
    path = Path(path)
    if tfds_splits.is_split(path):
        for number, read in enumerate(tfds_splits.unread(path)):
            yield Unread(f"{path}:{number}", number, read)
    elif path.name.lower().removesuffix(".gz").endswith(".csv"):
        yield from map(_found, _csv_rows(path))
    else:
        yield from _json_rows(path)


def _found(row: Row) -> Unread:
    """A row that had to be read to find the next."""
    return Unread(row.where, row.number, lambda: row.value)


def shard(path: Path, index: int, count: int) -> Path:
    """Where host `index` of `count` writes its part of the file `path`."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}")


def shards(path: Path) -> list[Path]:
    """The files that hold the lines of `path`, in order: itself, or its shards, or none.

    Raises:
        InputError: some of the shards are missing, or there are those of two writings.
    """
    if path.is_file():
        return [path]
    name = re.compile(re.escape(path.stem) + r"-\d{5}-of-(\d{5})" + re.escape(path.suffix))
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    found = sorted(file for file in there if name.fullmatch(file.name))
    expected = [shard(path, i, len(found)) for i in range(len(found))]
    if found != expected:
        raise InputError(
            f"{path}: expected all shards of one writing, found {', '.join(f.name for f in found)}"
        )
    return found


def exists(path: Path) -> bool:
    """Whether there are lines to read under `path`."""
    return bool(shards(path))


def text_lines(path: Path, kind: str) -> Iterator[tuple[int, str | InputError]]:
    """(number from 1, line with its end) of a text file, unpacked if it is named .gz.

    Args:
        path: the file.
        kind: what is expected there, for messages.

    Raises:
        InputError: no such file, or one whose bytes cannot be read to the end.
    """
    path = Path(path)
    files = shards(path)
    if not files:
        raise InputError(f"{path}: expected a {kind} file, found none; check the path")
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with contextlib.ExitStack() as opened:
            lines = (line for file in files for line in opened.enter_context(opener(file, "rb")))
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(BYTE_ORDER_MARK)
                    if line.startswith(GZIP_MAGIC):
                        raise InputError(f"{path}: is packed with gzip; name it {path.name}.gz")
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    found = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                    bad = f"{path}:{number}: expected {kind} in UTF-8, found {found}"
                    yield number, InputError(bad)
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as {kind} in UTF-8: {error}") from None


def json_value(text: str, where: str) -> Any:
    """The value of one line of JSON.

    Raises:
        InputError: no JSON, or text that no UTF-8 file can hold.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where}: expected one JSON object, found {text[:40]!r} "
            f"({error.msg} at column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise InputError(f"{where}: cannot be read as JSON Lines: {error}") from None
    if "\\u" in text:
        _check_text(value, where)
    return value


def _check_text(value: Any, where: str) -> None:
    """Refuses JSON with text that no UTF-8 file can hold: an escape can spell half a character."""
    try:
        _find_lone_surrogate(value, where)
    except RecursionError as error:
        raise InputError(f"{where}: cannot be read as JSON Lines: {error}") from None


def _find_lone_surrogate(value: Any, where: str) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            lone = value[error.start]
            raise InputError(f"{where}: expected text, found the lone surrogate {lone!r}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _find_lone_surrogate(key, where)
            _find_lone_surrogate(item, f"{where}: {key if key.isprintable() else repr(key)}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _find_lone_surrogate(item, f"{where}[{i}]")


def listed(names: Iterable[Any]) -> str:
    """Names out of a file, for a message of one line."""
    shown = [name if str(name).isprintable() else repr(name) for name in names]
    return ", ".join(map(str, shown))[:200] or "no fields"


def _json_rows(path: Path) -> Iterator[Unread]:
    number = 0
    for line, text in text_lines(path, "JSON Lines"):
        row = _found(Row(f"{path}:{line}", number, text))
        if isinstance(text, InputError):
            yield row
        elif not text.strip():
            continue
        elif number == 0 and text.lstrip().startswith("["):
            yield from map(_found, _array_rows(path))
            return
        else:
            yield row.read_as(functools.partial(json_value, where=row.where))
        number += 1


def _array_rows(path: Path) -> Iterator[Row]:
    """The items of a file that is one JSON array. Behind a broken item, none can be found."""
    pieces = []
    for _, piece in text_lines(path, "JSON"):
        if isinstance(piece, InputError):
            raise piece
        pieces.append(piece)
    text = "".join(pieces)
    decoder, at, line, number = json.JSONDecoder(), text.index("[") + 1, 1, 0
    counted = 0

    def skip_space(at: int) -> int:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        return at

    while True:
        at = skip_space(at)
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        if not number and text[at : at + 1] == "]":
            at += 1
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise InputError(
                f"{where}: cannot be read as JSON Lines or an array: {reason}, found "
                f"{text[at : at + 40]!r}"
            ) from None
        try:
            _check_text(value, where)
        except InputError as error:
            value = error
        yield Row(where, number, value)
        number += 1
        at = skip_space(end) + 1
        if text[at - 1 : at] == "]":
            break
        if text[at - 1 : at] != ",":
            raise InputError(f"{where}: expected ',' or ']' behind an item of an array")
    if text[skip_space(at) :]:
        line += text.count("\n", counted, skip_space(at))
        raise InputError(f"{path}:{line}: expected nothing behind the array")


def _csv_rows(path: Path) -> Iterator[Row]:
    """Rows as {column: text}. One whose cells are too many or too few is bad."""
    bad: dict[int, InputError] = {}  # lines that are no text, by number

    def lines() -> Iterator[str]:
        for number, line in text_lines(path, "CSV"):
            if isinstance(line, InputError):
                bad[number] = line
                line = "?\n"  # holds the place; its row is refused below
            elif "\0" in line:
                bad[number] = InputError(f"{path}:{number}: expected CSV, found a NUL byte")
                line = line.replace("\0", "?")
            yield line

    # Strict: a quote out of place is an error, not a guess.
    reader = csv.reader(lines(), strict=True)
    columns: list[str] | None = None
    number, begins = 0, 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(
                f"{path}:{begins}: cannot be read as CSV: {error}; the row that begins here may "
                "have a quote without its partner"
            ) from None
        where, first, begins = f"{path}:{begins}", begins, reader.line_num + 1
        broken = [bad[line] for line in range(first, begins) if line in bad]
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        if columns is None:
            if broken:
                raise broken[0]
            columns = _columns(cells, where)
            continue
        if broken:
            yield Row(where, number, broken[0])
        elif len(cells) != len(columns):
            found = InputError(
                f"{where}: expected {len(columns)} cells ({listed(columns)}), found {len(cells)}"
            )
            yield Row(where, number, found)
        else:
            yield Row(where, number, dict(zip(columns, cells)))
        number += 1
    if columns is None:
        raise InputError(f"{path}: expected a first line with the names of the columns, found none")


def _columns(cells: list[str], where: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if not name or names.count(name) > 1:
            raise InputError(
                f"{where}: expected the names of the columns, each once, found {name!r} "
                f"{names.count(name)} times"
            )
    return names
