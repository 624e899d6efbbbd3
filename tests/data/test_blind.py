import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai_jax.data.blind import plain_cell, read_votes, vote_files, write_blind
from cai_jax.data.schema import Pair, Turn
from cai_jax.errors import InputError

HOSTILE = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2",
    "@SUM(A1)",
    "  =late",
    "\t=tab",
    "\n=line",
    "\uff1d1",
    'a "quoted", one\r\nand two\n\nand = three',
)


def pair(number, a, b):
    tags = {"model_a": "secret", "model_b": "other", "prompt": "1", "prompt_set": "red_team"}
    dialogue = (Turn("human", "=q?\nplease"), Turn("assistant", "yes"), Turn("human", "so"))
    return Pair(f"p{number}", dialogue, a, b, tags)


def cells(path):
    text = path.read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_exports_are_blind_and_keep_every_character(tmp_path):
    pairs = [pair(9 - n, text, text[::-1]) for n, text in enumerate(HOSTILE)]
    write_blind(tmp_path, pairs, "Which?")
    rows = [json.loads(line) for line in (tmp_path / "blind.jsonl").read_text().splitlines()]
    by_id = {p.id: p for p in pairs}
    assert [row["id"] for row in rows] == sorted(by_id)
    for row, cell in zip(rows, cells(tmp_path / "blind.csv"), strict=True):
        original = by_id[row["id"]]
        assert row["response_a"] == original.response_a
        assert row["response_b"] == original.response_b
        assert row["dialogue"] == "Human: =q?\nplease\n\nAssistant: yes\n\nHuman: so"
        assert row["choice"] == "" and row["question"] == "Which?"
        for name, text in row.items():
            assert cell[name].removeprefix("'") == text  # newlines and quotes survive
            assert not cell[name].lstrip(" ").startswith(tuple("=+-@\t\r\n\uff1d"))
    both = (tmp_path / "blind.csv").read_text("utf-8-sig") + (tmp_path / "blind.jsonl").read_text()
    assert "secret" not in both and "other" not in both


def test_plain_cells_are_left_alone():
    for text in ("", "a = b", "1 - 2", "'=x", "3@4", " x"):
        assert plain_cell(text) == text


def test_filled_exports_are_read_back(tmp_path):
    write_blind(tmp_path, [pair(n, f"={n}\n\nx", "y") for n in range(5)], "Which?")
    choices = ("a", " B ", "Tie", "", "b")
    filled = cells(tmp_path / "blind.csv")
    for row, choice in zip(filled, choices):
        row["choice"] = choice
    for delimiter in ",;\t":
        path = tmp_path / "anna.csv"
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(filled[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(filled)
        read = read_votes(path)
        assert [(v.id, v.p_a) for v in read.votes] == [
            ("p0", 1.0), ("p1", 0.0), ("p2", None), ("p4", 0.0)
        ]  # fmt: skip
        assert {v.annotator for v in read.votes} == {"anna.csv"}
        assert (read.unjudged, read.duplicates) == (1, 0)
    assert read.votes[1].where == f"{path}:{2 + 8}"  # a row takes eight lines
    lines = [json.loads(line) for line in (tmp_path / "blind.jsonl").read_text().splitlines()]
    path = tmp_path / "anna.jsonl"
    path.write_text("".join(json.dumps(r | {"choice": c}) + "\n" for r, c in zip(lines, choices)))
    assert [(v.id, v.p_a) for v in read_votes(path).votes] == [(v.id, v.p_a) for v in read.votes]


def test_several_people_in_one_file_and_rows_said_twice(tmp_path):
    path = tmp_path / "all.csv"
    path.write_text("Annotator,ID,Choice\nann,p1,a\nbob,p1,b\nann,p1,A\n,,\nann,p2,tie\n,p2,a\n\n")
    read = read_votes(path)
    assert [(v.annotator, v.id, v.p_a) for v in read.votes] == [
        ("ann", "p1", 1.0),
        ("bob", "p1", 0.0),
        ("ann", "p2", None),
        ("all.csv", "p2", 1.0),
    ]
    assert (read.unjudged, read.duplicates) == (0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,choice\np1,c\n", ":2: choice: expected a, b, tie or nothing, found 'c'"),
        ("id,choice\np1,a\np1,b\n", ":3: choice: expected what"),
        ("id,choice\np1,a\np1,tie\n", ":3: choice: expected what"),
        ("id,choice\n,a\n", ":2: id: expected the id of a pair, found none"),
        ("id,choice\np1\n", ":2: choice: expected text, found 'None'"),
        ("id,chioce\np1,a\n", ":1: expected a header with one column 'choice'"),
        ("id,id,choice\n", ":1: expected a header with one column 'id'"),
        ("", ":1: expected a header with one column 'id', found ''"),
        ('id,choice\np1,"a', ": cannot be read as CSV"),
    ],
)
def test_bad_csv_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "votes.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_votes(path)
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


def test_bad_bytes_and_lines_are_refused(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_bytes(b"id,choice\np1,\xff\n")
    with pytest.raises(InputError, match="cannot be read as CSV in UTF-8"):
        read_votes(path)
    with pytest.raises(InputError, match="expected a CSV file, found none"):
        read_votes(tmp_path / "none.csv")
    path = tmp_path / "votes.jsonl"
    for value, message in [
        ([1], "expected an object"),
        ({"id": "p1"}, "choice: expected text, found 'None'"),
        ({"id": 3, "choice": "a"}, "id: expected text, found '3'"),
        ({"id": "p1", "choice": "a", "annotator": 3}, "annotator: expected text, found '3'"),
    ]:
        path.write_text(json.dumps(value))
        with pytest.raises(InputError, match=f"{path}:1: {message}"):
            read_votes(path)


def test_a_folder_means_the_files_of_votes_in_it(tmp_path):
    with pytest.raises(InputError, match="expected files of votes"):
        vote_files(tmp_path)
    for name in ("b.csv", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [path.name for path in vote_files(tmp_path)] == ["a.jsonl", "b.csv"]
    assert vote_files(tmp_path / "b.csv") == [tmp_path / "b.csv"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=3))
def test_any_text_survives_the_export_and_the_way_back(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("blind")
    write_blind(folder, [pair(n, text, "y") for n, text in enumerate(texts)], "Which?")
    found = cells(folder / "blind.csv")
    assert [row["response_a"].removeprefix("'") for row in found] == [
        text.removeprefix("'") for text in texts
    ]
    for name in ("blind.csv", "blind.jsonl"):
        read = read_votes(folder / name)
        assert (read.votes, read.unjudged) == ((), len(texts))


FRAGMENTS = st.lists(
    st.sampled_from(["id", "choice", "annotator", ",", ";", "\n", "\r\n", '"', "a", "tie", "p1"])
    | st.text(max_size=3),
    max_size=20,
)


@settings(max_examples=200, deadline=None)
@given(FRAGMENTS, st.sampled_from([".csv", ".jsonl"]), st.booleans())
def test_no_file_of_votes_breaks_the_reader(tmp_path_factory, fragments, suffix, headed):
    path = tmp_path_factory.mktemp("votes") / f"votes{suffix}"
    text = "".join(fragments)
    path.write_text(("id,choice\n" if headed else "") + text, encoding="utf-8", newline="")
    try:
        read = read_votes(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and len(str(error).splitlines()) == 1
    else:
        assert all(vote.p_a in (0, 1, None) for vote in read.votes)
