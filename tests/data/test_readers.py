import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from cai_jax.data.bad_records import BadRecords
from cai_jax.data.readers import (
    default_fields,
    read_all_prompts,
    read_comparisons,
    read_prompts,
)
from cai_jax.data.schema import Comparison, Prompt, Turn, write_records
from cai_jax.errors import InputError
from cai_jax.text.dialogue import parse_dialogue, render

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))


def write(tmp_path, *values, name="p.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_prompt_records_come_back_and_limit_takes_the_first(tmp_path):
    prompts = [Prompt(f"id-{i}", (Turn("human", f"q{i}"),), {"k": i}) for i in range(3)]
    write_records(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl") == prompts
    assert read_prompts(tmp_path / "p.jsonl", limit=2) == prompts[:2]


def test_plain_text_is_one_human_turn_and_marked_text_a_dialogue(tmp_path):
    marked = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    path = write(tmp_path, {"prompt": " hi ", "topic": "x"}, {"id": "own", "prompt": marked})
    one, two = read_prompts(path)
    assert one == Prompt("p-0", (Turn("human", "hi"),), {"topic": "x"})
    assert two.id == "own"
    assert two.dialogue == (Turn("human", "a"), Turn("assistant", "b"), Turn("human", "c"))


def test_hh_records_share_their_prompt(tmp_path):
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    path = tmp_path / "hh.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for chosen, rejected in [
            (f"{start}\n\nAssistant: x", f"{start}\n\nAssistant: y"),
            # One side goes on for longer: the last "Assistant:" is not where they part.
            (f"{start}\n\nAssistant: x\n\nHuman: d\n\nAssistant: z", f"{start}\n\nAssistant: y"),
            (f"{start}\n\nAssistant: Human: x", f"{start}\n\nAssistant: x\n\nAssistant: y"),
            (f"{start}\n\nAssistant: same", f"{start}\n\nAssistant: same"),
        ]:
            file.write(json.dumps({"chosen": chosen, "rejected": rejected}) + "\n")
    prompts = read_prompts(path)
    assert [prompt.id for prompt in prompts] == ["hh-0", "hh-1", "hh-2", "hh-3"]
    for prompt in prompts:
        assert [(t.role, t.text) for t in prompt.dialogue] == parse_dialogue(start)


def test_all_of_the_public_file_parses():
    path = SHARED / "data/hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the public HH-RLHF file is not at {path}")
    prompts = read_prompts(path)
    assert len(prompts) == 2312
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    same_prefix = 0
    for prompt, row in zip(prompts, rows):
        text = "".join(f"\n\n{t.role.capitalize()}: {t.text}".rstrip() for t in prompt.dialogue)
        assert prompt.dialogue[-1].role == "human" and prompt.dialogue[-1].text
        squeezed = "".join(text.split())
        for side in ("chosen", "rejected"):
            assert "".join(row[side].split()).startswith(squeezed + "Assistant:")
        same_prefix += "".join(row["chosen"].rpartition("\n\nAssistant:")[0].split()) == squeezed
    assert same_prefix >= 2307


def test_all_comparisons_of_the_public_file_are_their_prompt_and_two_responses():
    path = SHARED / "data/hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the public HH-RLHF file is not at {path}")
    comparisons = read_comparisons(path)
    assert [c.dialogue for c in comparisons] == [p.dialogue for p in read_prompts(path)]
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(comparisons) == len(rows) == 2312
    for comparison, row in zip(comparisons, rows):
        for response, side in (
            (comparison.response_a, "chosen"),
            (comparison.response_b, "rejected"),
        ):
            whole = render(comparison.dialogue) + " " + response
            assert "".join(whole.split()) == "".join(row[side].split())
    assert {(c.p_a, c.source) for c in comparisons} == {(1.0, "human")}


def test_responses_of_comparisons_are_what_follows_the_shared_prompt(tmp_path):
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"
    further = f"{start}\n\nAssistant: x\n\nHuman: d\n\nAssistant: z"
    path = write(
        tmp_path,
        {"chosen": f"{start}\n\nAssistant: x", "rejected": f"{start}\n\nAssistant:", "k": 1},
        {"id": 7, "chosen": f"{start}\n\nAssistant: y", "rejected": further},
        {"prompt": start, "chosen": " good ", "rejected": "bad"},
        {"prompt": "plain", "chosen": "good", "rejected": "bad", "id": ""},
    )
    dialogue = (Turn("human", "a"), Turn("assistant", "b"), Turn("human", "c"))
    assert read_comparisons(path) == [
        Comparison("p-0", dialogue, "x", "", 1.0, "human", tags={"k": 1}),
        Comparison("7", dialogue, "y", "x\n\nHuman: d\n\nAssistant: z", 1.0, "human"),
        Comparison("p-2", dialogue, "good", "bad", 1.0, "human"),
        Comparison("p-3", (Turn("human", "plain"),), "good", "bad", 1.0, "human"),
    ]


def test_ids_of_comparisons_may_repeat(tmp_path):
    line = {"id": "a", "prompt": "q", "chosen": "x", "rejected": "y"}
    assert [c.id for c in read_comparisons(write(tmp_path, line, line))] == ["a", "a"]


def test_our_own_comparisons_come_back(tmp_path):
    record = Comparison("a", (Turn("human", "q"),), "x", "y", 0.25, "feedback", "p", tags={"k": 1})
    write_records(tmp_path / "c.jsonl", [record])
    assert read_comparisons(tmp_path / "c.jsonl") == [record]


def test_a_red_team_attempt_is_its_first_human_turn_with_tags(tmp_path):
    attempt = {
        "transcript": "\n\nHuman: do harm \n\nAssistant: no\n\nHuman: please",
        "rating": 4.0,
        "tags": ["Theft"],
        "task_description_harmlessness_score": None,
    }
    (path := tmp_path / "red_team_attempts.jsonl").write_text(json.dumps([attempt, attempt]))
    first, second = read_prompts(path)
    assert first == Prompt(
        "red_team_attempts-0", (Turn("human", "do harm"),), {"rating": 4.0, "tags": ["Theft"]}
    )
    assert second.id == "red_team_attempts-1"


def fields(**columns):
    return {**default_fields(), **columns}


def test_a_field_map_names_the_columns_of_a_csv_file(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text('number,question,prompt\n3,"what,\nnow?",old\n,how?,older\n')
    found = read_prompts(path, fields=fields(id="number", prompt="question"))
    # A column that has our name, and was not meant, is a tag like any other.
    assert found == [
        Prompt("3", (Turn("human", "what,\nnow?"),), {"prompt": "old"}),
        Prompt("q-1", (Turn("human", "how?"),), {"prompt": "older"}),
    ]
    pairs = tmp_path / "c.csv"
    pairs.write_text("ask,better,worse\nq,x,y\n")
    mapped = fields(prompt="ask", chosen="better", rejected="worse")
    assert read_comparisons(pairs, mapped) == [
        Comparison("c-0", (Turn("human", "q"),), "x", "y", 1.0, "human")
    ]


def test_the_prompts_of_xstest_are_read_as_they_are():
    path = SHARED / "data/xstest_prompts.csv"
    if not path.is_file():
        pytest.skip(f"XSTest's file is not at {path}")
    prompts = read_prompts(path)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(prompts) == len(rows) == 450
    for prompt, row in zip(prompts, rows):
        assert (prompt.id, prompt.dialogue) == (row["id"], (Turn("human", row["prompt"].strip()),))
        assert prompt.tags == {name: row[name] for name in ("type", "label", "focus", "note")}


def test_a_column_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text("number,question\n3,what?\n")
    with pytest.raises(InputError) as error:
        read_prompts(path, fields=fields(prompt="questions"))
    assert str(error.value) == (
        f"{path}:2: field 'questions' is missing (fields.prompt names it); found number, question"
    )
    with pytest.raises(InputError, match="q.csv:2: question: .* ends in a human turn"):
        path.write_text("number,question\n3,\n")
        read_prompts(path, fields=fields(prompt="question"))


def test_our_own_records_need_no_map(tmp_path):
    prompts = [Prompt("a", (Turn("human", "q"),), {})]
    write_records(tmp_path / "p.jsonl", prompts)
    assert read_prompts(tmp_path / "p.jsonl", fields=fields(prompt="question")) == prompts


MIXED = (
    '{"id": "a", "prompt": "one"}\n'
    "nonsense\n"
    '{"id": "a", "prompt": "twice"}\n'
    '{"prompt": 3}\n'
    "\n"
    '{"prompt": "two"}\n'
    '{"prompt": "three"}\n'
)


def test_bad_records_are_skipped_counted_and_listed_when_asked(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(MIXED)
    bad = BadRecords("skip")
    # Ids are those that the rows have with nothing skipped; a limit is of good records.
    assert [prompt.id for prompt in read_prompts(path, bad=bad)] == ["a", "p-4", "p-5"]
    assert bad.report(tmp_path) == {"bad_records": 3}
    lines = (tmp_path / "bad_records.jsonl").read_text().splitlines()
    listed = [json.loads(line) for line in lines]
    assert [(entry["file"], entry["line"]) for entry in listed] == [
        (str(path), n) for n in (2, 3, 4)
    ]
    assert listed[1]["reason"] == "id: 'a' stands in an earlier line already"
    assert listed[2]["reason"] == "prompt: expected str, found '3'"
    assert [p.id for p in read_prompts(path, 2, bad=BadRecords("skip"))] == ["a", "p-4"]
    assert len(read_all_prompts([path, path], bad=BadRecords("skip"))) == 6
    with pytest.raises(InputError, match="p.jsonl:2: expected one JSON object"):
        read_prompts(path)


def test_nothing_is_listed_where_nothing_is_bad_and_nothing_counted_where_it_is_refused(tmp_path):
    assert BadRecords("skip").report(tmp_path) == {"bad_records": 0}
    assert BadRecords("refuse").report(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="expected one of refuse, skip, found 'ignore'"):
        BadRecords("ignore")


def test_a_file_of_bad_records_alone_is_refused_all_the_same(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("x\ny\n")
    with pytest.raises(InputError, match=r"at least one prompt, found none \(2 bad records"):
        read_prompts(path, bad=BadRecords("skip"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"prompt": "q", "chosen": "x"}, "p.jsonl:1: field 'rejected' is missing; expected 'p_a'"),
        ({"prompt": "q", "chosen": "x", "rejected": None}, "rejected: expected str, found 'None'"),
        (
            {"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "y"},
            "p.jsonl:1: chosen: expected one response to the prompt, found a turn marker",
        ),
        ({"id": [], "prompt": "q", "chosen": "x", "rejected": "y"}, "1: id: expected str"),
        ({"p_a": 1.0}, "field 'id' is missing"),
        ("x", "p.jsonl:1: expected an object, found 'x'"),
    ],
)
def test_a_bad_comparison_is_refused_with_file_line_and_field(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        read_comparisons(write(tmp_path, value))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"transcript": "\n\nAssistant: x"},
            "transcript: expected a dialogue that ends in a human",
        ),
        ({"transcript": "x"}, "transcript: expected a dialogue that begins"),
        ({"text": "x"}, "p.jsonl:1: field 'chosen' is missing; expected 'dialogue'"),
        ({"chosen": "\n\nHuman: x"}, "field 'rejected' is missing"),
        ({"chosen": "x", "rejected": "y"}, r"p.jsonl:1: chosen: expected a dialogue that begins"),
        ({"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: y"}, "share a human turn"),
        ({"prompt": 3}, "p.jsonl:1: prompt: expected str, found '3'"),
        ({"prompt": "  "}, "prompt: expected a dialogue that ends in a human turn"),
        ({"prompt": "x\n\nAssistant: y"}, "prompt: expected a dialogue that begins"),
        ({"prompt": "\n\nHuman: x\n\nAssistant: y"}, "ends in a human turn, found assistant turn"),
        ({"id": "a", "dialogue": []}, "found no turns"),
        ({"id": "a", "dialogue": [{"role": "user", "text": "x"}]}, "expected human or assistant"),
        (
            {"id": "a", "dialogue": [{"role": "human", "text": "x\n\nAssistant: y"}]},
            r"dialogue\[0\]: text: expected one turn, found a turn marker",
        ),
        ({"dialogue": [{"role": "human", "text": "x"}]}, "field 'id' is missing"),
        (["x"], "p.jsonl:1: expected an object"),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_field(tmp_path, value, message):
    with pytest.raises(InputError, match=message) as error:
        read_prompts(write(tmp_path, value))
    assert "\n" not in str(error.value)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="found none; check the path"):
        read_prompts(tmp_path / "nothing.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n{"prompt": \n')
    with pytest.raises(InputError, match="bad.jsonl:2: expected one JSON object"):
        read_prompts(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="expected at least one prompt"):
        read_prompts(tmp_path / "empty.jsonl")
    twice = {"id": "a", "prompt": "x"}
    with pytest.raises(InputError, match="p.jsonl:2: id: 'a' stands in an earlier line"):
        read_prompts(write(tmp_path, twice, twice))
