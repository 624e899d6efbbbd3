"""The score job: log-probabilities of given texts, in the files' order."""

import json
import os

import pytest
import references
import tiny_models

from cai_jax import checkpoints, score
from cai_jax.data.schema import json_lines

RECORDS = [
    {"prompt": "the Human", "completions": [" is", " was here", ""]},
    {"prompt": "", "completions": ["</s>"]},
    {"prompt": "the Human", "completions": [" is", "\n\n"]},
    {"prompt": "man", "completions": []},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder, torch module); this tokenizer begins every text with <s>, id 2."""
    folder = tmp_path_factory.mktemp("llama")
    module = tiny_models.write_llama(folder)
    tiny_models.write_tokenizer(folder, begins=True)
    return folder, module


@pytest.fixture
def job(llama, tmp_path):
    def run(lines, *flags):
        source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        text = "".join(l if isinstance(l, str) else json.dumps(l) + "\n" for l in lines)  # noqa: E741
        source.write_text(text, encoding="utf-8")
        score.main([f"--model={llama[0]}", f"--texts={source}", f"--out={out}", *flags])
        return [json.loads(line) for line in out.read_text("utf-8").splitlines()]

    return run


def test_scores_are_those_of_torch_in_the_contracts_format(job, llama, tmp_path):
    tokenizer = checkpoints.load_model(llama[0]).tokenizer
    out = job(RECORDS, f"--stats={tmp_path / 'stats.json'}", "--batch_size=8")
    assert [len(record["completions"]) for record in out] == [3, 1, 2, 0]
    for record, found in zip(RECORDS, out):
        assert list(found) == ["completions"]
        prompt = [2, *tokenizer.encode(record["prompt"])]
        for text, scored in zip(record["completions"], found["completions"]):
            assert list(scored) == ["token_ids", "logprobs", "total"]
            assert scored["token_ids"] == tokenizer.encode(text)
            assert tokenizer.decode(scored["token_ids"]) == text
            expected = references.logprobs(llama[1], prompt, scored["token_ids"])
            assert scored["logprobs"] == pytest.approx(expected, abs=1e-4)
            assert scored["total"] == pytest.approx(sum(expected), abs=1e-3)
    assert out[0]["completions"][0] == out[2]["completions"][0]
    assert out[0]["completions"][2] == {"token_ids": [], "logprobs": [], "total": 0.0}
    stats = json.loads((tmp_path / "stats.json").read_text())
    shared = 1 + len(tokenizer.encode("the Human"))
    assert stats["forwarded_prompt_tokens"] == shared + 1
    assert stats["prompt_tokens"] == 5 * shared + 1
    assert stats["slots"] == 4


BAD_FILES = {
    "no JSON": (["{"], ":1: expected one JSON object"),
    "no completions": (['{"prompt": "a"}\n'], ":1: field 'completions' is missing; found prompt"),
    "one text": (['{"prompt": "a", "completions": "b"}\n'], ":1: completions: expected a list"),
    "a number": (
        ['{"prompt": "a", "completions": ["b", 3]}\n'],
        ":1: completions[1]: expected text, found '3'",
    ),
    "half a character": (
        ['{"prompt": "a", "completions": ["\\udc00"]}\n'],
        ":1: completions[0]: expected text, found the lone surrogate",
    ),
    "no prompt": (['{"completions": ["b"]}\n'], ":1: field 'prompt' is missing; found completions"),
    "no lines": ([], "expected at least one prompt, found an empty file"),
    "too long": (
        [{"prompt": "a", "completions": ["b"]}, {"prompt": "x" * 100, "completions": ["y" * 28]}],
        ":2: prompt: expected a prompt of at most 100 tokens (128 positions less 28 tokens of "
        "completion), found 101",
    ),
}


def test_parts_of_several_processes_are_what_one_writes(job, tmp_path):
    whole = job(RECORDS)
    os.remove(tmp_path / "out.jsonl")
    for host in range(5):  # more than there are lines
        with pytest.raises(FileNotFoundError):  # there is no whole
            job(RECORDS, "--num_hosts=5", f"--host={host}")
    parts = [value for _, value in json_lines(tmp_path / "out.jsonl")]
    for one, other in zip(parts, whole, strict=True):
        for a, b in zip(one["completions"], other["completions"], strict=True):
            assert a["token_ids"] == b["token_ids"]
            assert a["total"] == pytest.approx(b["total"], abs=1e-4)


@pytest.mark.parametrize(("lines", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_input_is_one_line_and_leaves_nothing(job, tmp_path, capsys, lines, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        job(lines)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'in.jsonl'}")
    assert message in line
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch_size=0", "batch_size: expected at least 1, found 0"),
        ("--texts=/no/such", "/no/such: expected a JSON Lines file, found none"),
        ("--model=/no/such", "/no/such: expected a file or folder, found none"),
        ("--no_such", "unrecognized arguments: --no_such"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(job, tmp_path, capsys, flag, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        job(RECORDS, flag)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert os.listdir(tmp_path) == ["in.jsonl"]
