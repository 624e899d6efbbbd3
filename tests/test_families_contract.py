"""`score` and `generate` on folders of other families than Llama, against torch."""

import json

import pytest
import references
import tiny_models
import torch

from cai_jax import checkpoints, generate, score

# Learned positions; partial rotary and biases; soft caps and windows; norms of queries and keys.
KINDS = ("GPT2Config", "GPTNeoXConfig", "Gemma2Config", "Qwen3Config")
FAMILIES = dict(reversed(tiny_models.CASES.values()))


@pytest.fixture(scope="module", params=KINDS)
def case(request, tmp_path_factory):
    """A folder with weights and tokenizer, and the torch module."""
    folder = tmp_path_factory.mktemp("model")
    shape = FAMILIES[request.param] | {"vocab_size": 288}
    module = tiny_models.write_family(folder, request.param, **shape)
    tiny_models.write_tokenizer(folder, chat=True)
    return folder, module


def run(job, folder, tmp_path, records, *flags):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    job.main([f"--model={folder}", f"--out={out}", *(flag.format(source) for flag in flags)])
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_both_jobs_keep_their_contract(case, tmp_path):
    folder, module = case
    tokenizer = checkpoints.load_model(folder).tokenizer
    texts = [{"prompt": "the Human", "completions": [" is", " was"]}]
    [scored] = run(score, folder, tmp_path, texts, "--texts={}")
    prompt = tokenizer.encode("the Human")
    for text, found in zip(texts[0]["completions"], scored["completions"]):
        assert list(found) == ["token_ids", "logprobs", "total"]
        assert found["token_ids"] == tokenizer.encode(text)
        expected = references.logprobs(module, prompt, found["token_ids"])
        assert found["logprobs"] == pytest.approx(expected, abs=1e-4)
        assert found["total"] == pytest.approx(sum(expected), abs=1e-3)

    (tmp_path / "out.jsonl").unlink()
    messages = [{"role": "user", "content": "hi </s>"}]
    flags = ("--prompts={}", "--temperature=0", "--max_new_tokens=5")
    [written] = run(generate, folder, tmp_path, [{"messages": messages}], *flags)
    [completion] = written["completions"]
    assert list(completion) == ["text", "token_ids", "logprobs", "finish_reason"]
    ids = [*tokenizer.encode("<user>hi </s>"), 1, *tokenizer.encode("<assistant>")]
    for token in completion["token_ids"]:
        with torch.no_grad():
            assert token == int(module(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
    assert len(completion["token_ids"]) == 5 or ids[-1] == 1
