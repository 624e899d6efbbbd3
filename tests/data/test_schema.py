import dataclasses
import gzip
import json

import pytest

from cai_jax.data import schema
from cai_jax.data.schema import Chain, Comparison, Demonstration, Document, Piece, Round, Turn
from cai_jax.errors import InputError

ASKED = (Turn("human", "How?"),)
CHAIN = Chain("c", ASKED, "a", (Round("p1", "bad", "better"), Round("p2", "fine", "best")))


@pytest.mark.parametrize(
    "record",
    [
        CHAIN,
        Document("d", (Piece("text\n", 0.5), Piece("é", 1.0))),
        Demonstration("e", ASKED, "answer"),
        Comparison("f", ASKED, "a", "b", 0.25, "human", tags={"kind": "red_team"}),
        Comparison("g", ASKED, "a", "b", 1.0, "feedback", "p1", -0.3, -1.6, False, "since"),
    ],
)
def test_records_survive_a_file(tmp_path, record):
    path = tmp_path / "records.jsonl"
    assert schema.write_records(path, [record, record]) == 2
    assert schema.read_records(path, type(record)) == [record, record]
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]
    packed = tmp_path / "records.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert schema.read_records(packed, type(record)) == [record, record]


def test_blank_lines_and_marks_are_passed_over(tmp_path):
    path = tmp_path / "records.jsonl"
    schema.write_records(path, [CHAIN, CHAIN])
    path.write_text("\ufeff" + path.read_text().replace("\n", "\r\n\r\n"))
    assert schema.read_records(path, Chain) == [CHAIN, CHAIN]
    # Where an answer is due for each line, a blank one is a mistake.
    with pytest.raises(InputError, match=":2: expected one JSON object"):
        list(schema.json_lines(path))


def test_a_failed_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "records.jsonl"
    schema.write_records(path, [CHAIN])

    def broken():
        yield CHAIN
        raise KeyError

    with pytest.raises(KeyError):
        schema.write_records(path, broken())
    assert schema.read_records(path, Chain) == [CHAIN]


def changed(**changes) -> str:
    value = dataclasses.asdict(CHAIN) | changes
    return json.dumps({name: item for name, item in value.items() if item != "remove"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: expected one JSON object, found '{"),
        ("[]", ":2: expected an object, found '[]'"),
        (changed(response="remove"), ":2: field 'response' is missing; found id, dialogue, rounds"),
        (
            changed(answer="x"),
            ":2: unknown field 'answer'; expected id, dialogue, response, rounds",
        ),
        (changed(response=3), ":2: response: expected str, found '3'"),
        (changed(dialogue="x"), ":2: dialogue: expected a list, found 'x'"),
        (changed(dialogue=[{"role": "human"}]), ":2: dialogue[0]: field 'text' is missing"),
        (changed(rounds=[{}]), ":2: rounds[0]: field 'principle' is missing"),
        (changed(id=True), ":2: id: expected str, found True"),
    ],
)
def test_a_wrong_line_is_refused_with_file_line_and_field(tmp_path, line, message):
    path = tmp_path / "chains.jsonl"
    path.write_text(changed() + "\n" + line + "\n")
    with pytest.raises(InputError) as error:
        schema.read_records(path, Chain)
    assert str(error.value).startswith(f"{path}{message}")


def test_whole_numbers_are_numbers_but_truth_values_are_not():
    assert schema.parse(float, 1, "x") == 1.0
    assert isinstance(schema.parse(float, 1, "x"), float)
    assert schema.parse(float | None, None, "x") is None
    with pytest.raises(InputError, match="x: expected float, found True"):
        schema.parse(float | None, True, "x")
    with pytest.raises(InputError, match="x: expected bool, found '1'"):
        schema.parse(bool | None, 1, "x")


def test_files_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(InputError, match="expected a JSON Lines file, found none"):
        list(schema.json_lines(path))
    path.write_bytes(b'""\n"\xff"\n')
    with pytest.raises(InputError, match=r":2: expected JSON Lines in UTF-8, .* 0xff at column 2"):
        list(schema.json_lines(path))
    (tmp_path / "x.jsonl.gz").write_bytes(b"plain")
    with pytest.raises(InputError, match="cannot be read as JSON Lines"):
        list(schema.json_lines(tmp_path / "x.jsonl.gz"))


def test_a_damaged_or_bottomless_file_is_one_line_too(tmp_path):
    whole = gzip.compress(b'{"a": 1}\n' * 400)
    damaged = tmp_path / "damaged.jsonl.gz"
    damaged.write_bytes(whole[:12] + bytes(byte ^ 0xFF for byte in whole[12:-8]) + whole[-8:])
    deep = tmp_path / "deep.jsonl"
    deep.write_text("[" * 100_000 + "]" * 100_000 + "\n")
    for path in (damaged, deep):
        with pytest.raises(InputError, match=f"{path.name}.*cannot be read as JSON Lines") as error:
            list(schema.json_lines(path))
        assert "\n" not in str(error.value)
