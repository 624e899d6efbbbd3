import gzip
import json
import os
from pathlib import Path

import pytest

from cai_jax.data.readers import read_prompts
from cai_jax.data.schema import Prompt, Turn, write_records
from cai_jax.errors import InputError
from cai_jax.text.dialogue import parse_dialogue

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


@pytest.mark.parametrize(
    ("value", "message"),
    [
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
