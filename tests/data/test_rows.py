"""What people's files look like, and what of them is a row, a bad row, or no file at all."""

import gzip
import io
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cai_jax.data.bad_records import BadRecords
from cai_jax.data.readers import read_comparisons, read_prompts
from cai_jax.data.rows import json_value, read_rows
from cai_jax.data.schema import Chain, Comparison, read_records
from cai_jax.errors import InputError


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path):
    """(line, value or message) of each row."""
    found = []
    for where, number, value in read_rows(path):
        assert number == len(found)
        name, _, line = where.rpartition(":")
        assert name == str(path)
        if isinstance(value, InputError):
            assert str(value).startswith(f"{path}:")
            value = str(value).removeprefix(f"{where}: ")
        found.append((int(line), value))
    return found


def test_marks_line_ends_and_blank_lines_are_passed_over(tmp_path):
    content = '\ufeff{"a": 1}\r\n\r\n  \n{"a": "\\u00e9"}\n{"a": "é"}'
    expected = [(1, {"a": 1}), (4, {"a": "é"}), (5, {"a": "é"})]
    assert rows(file(tmp_path, "x.jsonl", content)) == expected
    assert rows(file(tmp_path, "x.jsonl.gz", gzip.compress(content.encode()))) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": "\xff"}', "expected JSON Lines in UTF-8, found byte 0xff at column 8"),
        (b'{"a": "x\0"}', "expected one JSON object, found .* (Invalid control character"),
        (b"\0\0\0", "expected one JSON object, found '\\x00\\x00\\x00"),
        (b'{"a": "\\ud800"}', "a: expected text, found the lone surrogate '\\ud800'"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON Lines: Exceeds the limit"),
        (b"[" * 50_000, "cannot be read as JSON Lines: maximum recursion depth"),
        (b'{"a": 1} {', 'expected one JSON object, found \'{"a": 1} {'),
        (b"{'a': 1}", "expected one JSON object, found \"{'a': 1}"),
    ],
)
def test_a_bad_line_of_json_does_not_hide_the_next(tmp_path, line, message):
    path = file(tmp_path, "x.jsonl", b'{"a": 0}\n' + line + b'\n{"a": 2}\n')
    (_, first), (number, found), (_, last) = rows(path)
    assert (first, number, last) == ({"a": 0}, 2, {"a": 2})
    start, _, rest = message.partition(" .* ")
    assert found.startswith(start) and rest in found


def test_no_depth_of_nesting_is_a_traceback():
    """Python's limit is met in the parser, or one frame later, in the walk for half characters."""
    refused = 0
    for depth in range(1, 1010):
        line = '{"a": ' + "[" * depth + '"\\u0041"' + "]" * depth + "}"
        try:
            assert json_value(line, "x:1")["a"]
        except InputError as error:
            assert str(error).startswith("x:1: cannot be read as JSON Lines: maximum recursion")
            refused += 1
    assert 0 < refused < 1000


def test_a_surrogate_pair_is_a_character(tmp_path):
    assert rows(file(tmp_path, "x.jsonl", '{"a": "\\ud83d\\ude00"}')) == [(1, {"a": "😀"})]


def test_one_array_of_objects_is_rows_with_the_lines_where_they_begin(tmp_path):
    content = '\n [{"a": 1}, {"a":\n\n [2, "]"]},\n{"a": 3}\n , 4]\n \n'
    expected = [(2, {"a": 1}), (2, {"a": [2, "]"]}), (5, {"a": 3}), (6, 4)]
    assert rows(file(tmp_path, "x.jsonl", content)) == expected
    indented = json.dumps([{"a": i} for i in range(3)], indent=1)
    assert rows(file(tmp_path, "y.jsonl", indented)) == [(2 + 3 * i, {"a": i}) for i in range(3)]
    assert rows(file(tmp_path, "z.jsonl", " [ ] ")) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n{"a": }]', ":2: cannot be read as JSON Lines or an array: Expecting value"),
        ('[{"a": 1}\n{"a": 2}]', ":1: expected ',' or ']' behind an item"),
        ('[{"a": 1},\n', ":2: cannot be read as"),
        ('[{"a": 1}]\n\n{"a": 2}', ":3: expected nothing behind the array"),
        ("[", ":1: cannot be read as"),
    ],
)
def test_a_broken_array_is_refused_where_it_breaks(tmp_path, content, message):
    path = file(tmp_path, "x.jsonl", content)
    with pytest.raises(InputError) as error:
        rows(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_csv_cells_may_hold_line_breaks_commas_and_quotes(tmp_path):
    content = (
        "\ufeffid, question \r\n"
        '1,"two\r\nlines, and ""quotes"""\r\n'
        "\r\n"
        "2,one line\r\n"
        '3,"\n\nHuman: x"\r\n'
        "4,é"
    )
    expected = [
        (2, {"id": "1", "question": 'two\r\nlines, and "quotes"'}),
        (5, {"id": "2", "question": "one line"}),
        (6, {"id": "3", "question": "\n\nHuman: x"}),
        (9, {"id": "4", "question": "é"}),
    ]
    assert rows(file(tmp_path, "x.csv", content)) == expected
    assert rows(file(tmp_path, "x.CSV.gz".lower(), gzip.compress(content.encode()))) == expected


def test_a_bad_row_of_csv_does_not_hide_the_next(tmp_path):
    content = b'id,q\n1,a\n2\n3,b,c\n4,"x\n\xff\ny"\n5,\0\n6,d\n'
    assert rows(file(tmp_path, "x.csv", content)) == [
        (2, {"id": "1", "q": "a"}),
        (3, "expected 2 cells (id, q), found 1"),
        (4, "expected 2 cells (id, q), found 3"),
        # The bad byte stands on line 6, in the row that begins on line 5.
        (5, f"{tmp_path / 'x.csv'}:6: expected CSV in UTF-8, found byte 0xff at column 1"),
        (8, "expected CSV, found a NUL byte"),
        (9, {"id": "6", "q": "d"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": expected a first line with the names of the columns, found none"),
        ("\n\n", ": expected a first line with the names of the columns, found none"),
        ("a,b,a\n1,2,3\n", ":1: expected the names of the columns, each once, found 'a' 2 times"),
        ("a,,b\n1,2,3\n", ":1: expected the names of the columns, each once, found '' 1 times"),
        ('a,b\n1,2\n3,"x\n4,5\n', ":3: cannot be read as CSV: unexpected end of data; the row"),
        ('a,b\n1,"x"y\n', ":2: cannot be read as CSV: ',' expected after '\"'; the row"),
        (b"\xff\xfea\0,\0b\0\n", ":1: expected CSV in UTF-8, found byte 0xff at column 1"),
    ],
)
def test_csv_whose_rows_cannot_be_told_apart_is_refused(tmp_path, content, message):
    path = file(tmp_path, "x.csv", content)
    with pytest.raises(InputError) as error:
        rows(path)
    assert str(error.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv"])
def test_files_that_are_not_there_not_packed_or_cut_off_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="expected a (JSON Lines|CSV) file, found none"):
        rows(tmp_path / name)
    packed = gzip.compress(b'{"a": 1}\n' * 500)
    with pytest.raises(InputError, match=rf"is packed with gzip; name it {name}\.gz"):
        rows(file(tmp_path, name, packed))
    for content in (packed[:-9], packed[:20], b"", b'{"a": 1}\n'):
        path = file(tmp_path, f"{name}.gz", content)
        if content:
            with pytest.raises(InputError, match="cannot be read as|not a gzip"):
                rows(path)


READERS = [
    read_prompts,
    read_comparisons,
    lambda path, **options: read_records(path, Chain, **options),
    lambda path, **options: read_records(path, Comparison, **options),
]
NAMES = ["x.jsonl", "x.csv", "x.jsonl.gz", "x.csv.gz"]


def one_line_or_records(path, **options):
    """Reads a file in every way; all that may come of it are records and InputErrors of a line."""
    for read in READERS:
        try:
            assert isinstance(read(path, **options), list)
        except InputError as error:
            assert len(str(error).splitlines()) == 1, str(error)
            assert str(error).startswith(str(path)), str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELD_NAMES = ["id", "prompt", "chosen", "rejected", "transcript", "dialogue", "tags", "p_a"]
DIALOGUES = ["\n\nHuman: a\n\nAssistant: b", "\n\nHuman: a\n\nAssistant: c", "\n\nHuman:", "x"]
records = st.dictionaries(
    st.sampled_from(FIELD_NAMES), st.sampled_from(DIALOGUES) | json_values, max_size=5
)
texts = (
    st.lists(records | json_values, max_size=4)
    .map(lambda values: "\n".join(json.dumps(value) for value in values).encode())
    | st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=4).map(
        lambda lines: "\n".join(",".join(line) for line in lines).encode("utf-8", "replace")
    )
    | st.binary(max_size=60)
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(texts, st.sampled_from(NAMES), st.integers(0, 200), st.booleans())
@example(b'{"id": 1e999, "prompt": "x"}', "x.jsonl", 200, False)
@example(b'{"prompt": "x", "id": NaN}', "x.jsonl", 200, True)
@example(b'{"id": "a", "dialogue": [{"role": "human", "text": "\\u0000"}]}', "x.jsonl", 200, False)
@example(b'prompt\n"\r"\n', "x.csv", 200, True)
@example(b"prompt\ra\rb", "x.csv", 200, True)
def test_no_file_whatever_gives_a_traceback(tmp_path_factory, content, name, end, skip):
    if name.endswith(".gz"):  # whole, or cut off
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as stream:
            stream.write(content)
        content = packed.getvalue()[: end + 1]
    path = file(tmp_path_factory.getbasetemp(), name, content)
    one_line_or_records(path, bad=BadRecords("skip" if skip else "refuse"))
