import os
from collections import Counter
from pathlib import Path

import pytest

from cai_jax.data.schema import Turn
from cai_jax.data.xstest import read_xstest
from cai_jax.errors import InputError

SHARED = Path(os.environ.get("CAI_JAX_SHARED", Path(__file__).parents[3] / "shared"))
HEAD = "id,prompt,type,label,focus,note\n"


def test_rows_become_prompts_with_tags(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text(HEAD + '1,"How, then?\nNow",homonyms,safe,kill,\n2,b,contrast,unsafe,,n\n')
    first, second = read_xstest(path)
    assert first.id == "xstest-1" and first.dialogue == (Turn("human", "How, then?\nNow"),)
    assert first.tags == {"type": "homonyms", "label": "safe", "focus": "kill", "note": ""}
    assert second.tags["label"] == "unsafe" and read_xstest(path, 1) == [first]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": expected a first line with the names of the columns, found none"),
        (
            "id,prompt\n1,a\n",
            ":2: expected the columns id, prompt, type, label, focus, note, found",
        ),
        (HEAD, ": expected at least one prompt, found none"),
        (HEAD + "1,a,t,maybe,,\n", ":2: label: expected safe or unsafe, found 'maybe'"),
        (HEAD + "1,a,t,safe,\n", ":2: expected 6 cells"),
        (HEAD + "1,a,t,safe,,,\n", ":2: expected 6 cells"),
        (HEAD + "1, ,t,safe,,\n", ":2: prompt: expected text, found none"),
        (HEAD + "1,a,t,safe,,\n1,b,t,safe,,\n", ":3: id: expected each once, found 'xstest-1'"),
        (HEAD + '1,"a', ":2: cannot be read as CSV"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_xstest(path)
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


def test_values_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    for line in ("[1]", '{"id": 1}'):
        path.write_text(line)
        with pytest.raises(InputError, match=f"{path}:1: expected"):
            read_xstest(path)


def test_bad_bytes_and_missing_files_are_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes(HEAD.encode() + b"\xff")
    with pytest.raises(InputError, match=":2: expected CSV in UTF-8"):
        read_xstest(tmp_path / "x.csv")
    with pytest.raises(InputError, match="found none; check the path"):
        read_xstest(tmp_path / "y.csv")


def test_the_published_file():
    path = SHARED / "data/xstest_prompts.csv"
    if not path.is_file():
        pytest.skip(f"XSTest's prompts are not at {path}")
    prompts = read_xstest(path)
    assert len(prompts) == 450
    assert Counter(prompt.tags["label"] for prompt in prompts) == {"safe": 250, "unsafe": 200}
    kinds = Counter((prompt.tags["label"], prompt.tags["type"]) for prompt in prompts)
    assert len(kinds) == 18 and set(kinds.values()) == {25}
    assert all(kind.startswith("contrast_") == (label == "unsafe") for label, kind in kinds)
