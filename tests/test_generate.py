"""The generate job: files in, files out, and one line for whatever is wrong."""

import gzip
import json
import os
import subprocess
import sys

import pytest
import tiny_models
import torch

from cai_jax import checkpoints, command_line, generate
from cai_jax.data.schema import json_lines

PROMPTS = ["\n\nHuman: hi\n\nAssistant:", "the", "é </s> x", "sixteen tokens,.", "man"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(folder with a chat template, torch module)."""
    folder = tmp_path_factory.mktemp("llama")
    module = tiny_models.write_llama(folder)
    tiny_models.write_tokenizer(folder, chat=True)
    return folder, module


@pytest.fixture
def job(llama, tmp_path):
    """Writes lines to a file, runs the job on it, and gives what it wrote."""

    def run(lines, *flags, out="out.jsonl", source="in.jsonl", read=None):
        write_lines(tmp_path / source, lines)
        generate.main(
            [
                f"--model={llama[0]}",
                f"--prompts={tmp_path / source}",
                f"--out={tmp_path / out}",
                "--max_new_tokens=12",
                "--batch_size=8",
                *flags,
            ]
        )
        return [
            json.loads(line) for line in (tmp_path / (read or out)).read_text("utf-8").splitlines()
        ]

    return run


def write_lines(path, lines):
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")


def refused(capsys, run, *arguments, **options) -> str:
    """The one line with which the job must end, and status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments, **options)
    assert stop.value.code == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    [line] = errors.splitlines()
    return line


def torch_greedy(module, ids, count=12):
    with torch.no_grad():
        return module.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False)[
            0, len(ids) :
        ].tolist()


def test_completions_are_in_the_files_order_and_the_contracts_format(job, llama, tmp_path):
    tokenizer = checkpoints.load_model(llama[0]).tokenizer
    records = [{"prompt": prompt, "more": 1} for prompt in PROMPTS]
    out = job(records, "--temperature=0", f"--stats={tmp_path / 'stats.json'}")
    assert [record["prompt"] for record in out] == PROMPTS
    for prompt, record in zip(PROMPTS, out):
        assert list(record) == ["prompt", "completions"]
        [completion] = record["completions"]
        assert list(completion) == ["text", "token_ids", "logprobs", "finish_reason"]
        ids = tokenizer.encode(prompt)
        assert 1 not in ids
        assert completion["token_ids"] == torch_greedy(llama[1], ids)
        ended = completion["token_ids"][-1] == 1
        spoken = completion["token_ids"][: -1 if ended else None]
        assert completion["text"] == tokenizer.decode(spoken)
        assert completion["finish_reason"] == ("stop" if ended else "length")
        assert len(completion["logprobs"]) == len(completion["token_ids"])
        assert max(completion["logprobs"]) <= 0
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert list(stats) == [
        "seconds",
        "compile_seconds",
        "prompt_tokens",
        "forwarded_prompt_tokens",
        "generated_tokens",
        "decode_steps",
        "slots",
    ]
    assert stats["prompt_tokens"] == sum(len(tokenizer.encode(prompt)) for prompt in PROMPTS)
    assert stats["generated_tokens"] == sum(
        len(record["completions"][0]["token_ids"]) for record in out
    )
    assert stats["decode_steps"] <= 12
    assert stats["slots"] == 8


def test_samples_depend_on_seed_line_and_number_alone(job):
    records = [{"prompt": prompt} for prompt in PROMPTS]

    def ids(out):
        return [[c["token_ids"] for c in record["completions"]] for record in out]

    three = ids(job(records, "--num_samples=3", "--seed=5"))
    assert [len(samples) for samples in three] == [3] * 5
    assert len({tuple(sample) for samples in three for sample in samples}) == 15
    one = ids(job(records, "--seed=5", out="one.jsonl"))
    assert one == [samples[:1] for samples in three]
    fewer = ids(job(records[:2], "--num_samples=3", "--seed=5", out="fewer.jsonl"))
    assert fewer == three[:2]
    other = ids(job(records, "--seed=6", out="other.jsonl"))
    assert all(a != b for a, b in zip(other, one))


def test_parts_of_several_processes_are_what_one_writes(job, tmp_path, monkeypatch):
    records = [{"prompt": prompt} for prompt in PROMPTS]
    whole = job(records, "--num_samples=2", out="whole.jsonl")
    for host in (2, 0):
        name = f"out-0000{host}-of-00003.jsonl"
        job(records, "--num_samples=2", "--num_hosts=3", f"--host={host}", read=name)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "3")
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    job(records, "--num_samples=2", read="out-00001-of-00003.jsonl")
    # Under the name of the whole the reader finds them all.
    parts = [value for _, value in json_lines(tmp_path / "out.jsonl")]
    assert [texts_of(line) for line in parts] == [texts_of(line) for line in whole]
    for one, other in zip(parts, whole, strict=True):
        for a, b in zip(one["completions"], other["completions"], strict=True):
            assert a["logprobs"] == pytest.approx(b["logprobs"], abs=1e-4)


def texts_of(line):
    return [(one["text"], one["token_ids"], one["finish_reason"]) for one in line["completions"]]


def test_messages_go_through_the_chat_template(job, llama):
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "the"},
        {"role": "user", "content": "man"},
    ]
    [record] = job([{"messages": messages}], "--temperature=0")
    assert record["prompt"] == "<user>hi</s><assistant>the</s><user>man</s><assistant>"
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(llama[0])
    ids = theirs(record["prompt"], add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 3
    assert record["completions"][0]["token_ids"] == torch_greedy(llama[1], ids)


def test_a_control_token_in_a_message_is_text(job, llama):
    messages = [{"role": "user", "content": "a</s>"}]
    [record] = job([{"messages": messages}], "--temperature=0")
    assert record["prompt"] == "<user>a</s></s><assistant>"
    tokenizer = checkpoints.load_model(llama[0]).tokenizer
    parts = [tokenizer.encode("<user>a</s>"), [tokenizer.eos_id], tokenizer.encode("<assistant>")]
    assert 1 not in parts[0]
    expected = torch_greedy(llama[1], [i for part in parts for i in part])
    assert record["completions"][0]["token_ids"] == expected


def test_stops_and_top_k_are_obeyed(job):
    [greedy] = job([{"prompt": "the"}], "--temperature=0")
    [first] = job([{"prompt": "the"}], "--top_k=1", out="k.jsonl")
    [nucleus] = job([{"prompt": "the"}], "--top_p=0.0001", out="p.jsonl")
    for record in (first, nucleus):
        assert record["completions"][0]["token_ids"] == greedy["completions"][0]["token_ids"]
    text = greedy["completions"][0]["text"]
    stop = next(letter for letter in text[2:] if letter != "\ufffd")
    [stopped] = job(
        [{"prompt": "the"}], "--temperature=0", f"--stop={stop}", "--stop=@@@", out="stop.jsonl"
    )
    [completion] = stopped["completions"]
    assert completion["text"] == text[: text.index(stop)]
    assert completion["finish_reason"] == "stop"


def test_gzip_is_read_and_overwrite_replaces(job, llama, tmp_path, capsys):
    job([{"prompt": "the"}], "--temperature=0")
    expected = (tmp_path / "out.jsonl").read_bytes()
    with gzip.open(tmp_path / "packed.jsonl.gz", "wt") as file:
        file.write('{"prompt": "the"}\n')
    flags = [f"--model={llama[0]}", f"--prompts={tmp_path / 'packed.jsonl.gz'}"]
    flags += [f"--out={tmp_path / 'out.jsonl'}", "--max_new_tokens=12", "--temperature=0"]
    assert "exists already" in refused(capsys, generate.main, flags)
    (tmp_path / "out.jsonl").write_text("old")
    generate.main([*flags, "--overwrite", "--batch_size=8"])
    assert (tmp_path / "out.jsonl").read_bytes() == expected


GOOD = '{"prompt": "a"}\n'
BAD_FILES = {
    "no JSON": (["{\n"], ":1: expected one JSON object, found '{"),
    "a blank line": ([GOOD, "\n"], ":2: expected one JSON object"),
    "no object": ([GOOD, "[1]\n"], ":2: expected an object, found '[1]'"),
    "no prompt": ([GOOD, GOOD, '{"text": "a"}\n'], ":3: field 'prompt' is missing; found text"),
    "a number": (['{"prompt": 5}\n'], ":1: prompt: expected text, found '5'"),
    "null": (['{"prompt": null}\n'], ":1: prompt: expected text, found 'None'"),
    "half a character": (['{"prompt": "a\\ud800"}\n'], ":1: prompt: expected text, found the lone"),
    "both": (['{"prompt": "a", "messages": []}\n'], ":1: expected prompt or messages, found both"),
    "no messages": (['{"messages": []}\n'], ":1: messages: expected at least one message"),
    "text as messages": (['{"messages": "a"}\n'], ":1: messages: expected a list, found 'a'"),
    "a message without role": (
        ['{"messages": [{"role": "user", "content": "a"}, {"content": "a"}]}\n'],
        ":1: messages[1]: field 'role' is missing; found content",
    ),
    "no lines": ([], "expected at least one prompt, found an empty file"),
    "too long": (
        [GOOD, {"prompt": "x" * 117}],
        ":2: prompt: expected a prompt of at most 116 tokens (128 positions less 12 max_new",
    ),
}


@pytest.mark.parametrize(("lines", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_input_is_one_line_and_leaves_nothing(job, tmp_path, capsys, lines, message):
    line = refused(capsys, job, lines)
    assert line.startswith(f"error: {tmp_path / 'in.jsonl'}")
    assert message in line
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temprature=1"], "unrecognized arguments: --temprature=1"),
        (["--temp=1"], "unrecognized arguments: --temp=1"),
        (["--temperature=hot"], "--temperature: invalid float value: 'hot'"),
        (["--temperature=-1"], "temperature: expected 0 or more, found -1.0"),
        (["--top_p=0"], "top_p: expected more than 0 and at most 1 (off), found 0.0"),
        (["--top_k=-1"], "top_k: expected 0 (off) or more, found -1"),
        (["--max_new_tokens=0"], "max_new_tokens: expected at least 1, found 0"),
        (["--num_samples=0"], "num_samples: expected at least 1, found 0"),
        (["--batch_size=0"], "batch_size: expected at least 1, found 0"),
        (["--seed=4294967296"], "--seed: expected 0 to 4294967295, found 4294967296"),
        (["--stop="], "stop: expected texts that are not empty"),
        (["--model=/no/such"], "/no/such: expected a file or folder, found none"),
        (
            ["--model=no/such-model"],
            "no/such-model: no such folder here, and not readable as an id",
        ),
        (["--prompts=/no/such"], "/no/such: expected a JSON Lines file, found none"),
        (["--out=/no/such/out"], "/no/such/out: expected an existing folder"),
        (["--stats=/"], "/: expected a file to write, found a folder"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(job, tmp_path, capsys, flags, message):
    assert message in refused(capsys, job, [GOOD], *flags)
    assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--num_hosts=2"], {}, "--host=I together, I from 0 to N - 1, found 2 and None"),
        (["--num_hosts=2", "--host=2"], {}, "I from 0 to N - 1, found 2 and 2"),
        ([], {"SLURM_STEP_NUM_TASKS": "2"}, "expected --num_hosts=N and --host=I on each of the"),
    ],
    ids=["half", "beyond", "slurm"],
)
def test_whose_part_it_is_must_be_said(
    job, tmp_path, capsys, monkeypatch, flags, environment, message
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert message in refused(capsys, job, [{"prompt": "a"}], *flags)
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_two_outputs_are_two_files(job, tmp_path, capsys):
    both = tmp_path / "nowhere" / ".." / "out.jsonl"
    (tmp_path / "nowhere").mkdir()
    line = refused(capsys, job, [GOOD], f"--stats={both}")
    assert "expected another file for each output" in line


def test_models_that_cannot_write_are_refused(job, tmp_path, capsys):
    tiny_models.write_llama(tmp_path / "pm", preference_model=True)
    line = refused(capsys, job, [GOOD], f"--model={tmp_path / 'pm'}")
    assert "expected a language model, found a preference model" in line
    tiny_models.write_llama(tmp_path / "small", vocab_size=200)
    line = refused(capsys, job, [{"prompt": "the Human"}], f"--model={tmp_path / 'small'}")
    assert ":1: prompt: expected tokens of the model's vocabulary of 200, found 26" in line
    without = tmp_path / "small"
    (without / "tokenizer.json").unlink()
    assert "expected tokenizer files" in refused(capsys, job, [GOOD], f"--model={without}")
    tiny_models.write_llama(tmp_path / "plain")
    messages = {"messages": [{"role": "user", "content": "a"}]}
    line = refused(capsys, job, [messages], f"--model={tmp_path / 'plain'}")
    assert ":1: messages: the model's tokenizer has no chat template" in line
    assert not (tmp_path / "out.jsonl").exists()


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    def values():
        yield {"a": 1}
        raise OSError("disk full")

    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        command_line.write_lines(path, values())
    assert os.listdir(tmp_path) == ["out.jsonl"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["generate", "score", "export", "chat"])
def test_help_and_bad_flags_import_nothing_heavy(name):
    script = (
        "import sys, importlib\n"
        f"job = importlib.import_module('cai_jax.{name}')\n"
        "for flags in (['--help'], ['--no_such']):\n"
        "    try:\n"
        "        job.main(flags)\n"
        "    except SystemExit as stop:\n"
        "        print('status', stop.code)\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers', 'orbax', 'tokenizers', 'optax'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert f"usage: python -m cai_jax.{name}" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith(("status", "heavy"))] == [
        "status 0",
        "status 2",
        "heavy []",
    ]
    assert done.stderr.splitlines() == [
        line for line in done.stderr.splitlines() if line.startswith("error: ")
    ]
    assert len(done.stderr.splitlines()) == 1
