"""The chat job, fed through stdin."""

import io
from types import SimpleNamespace

import pytest
import tiny_models
from transformers import AutoTokenizer

from cai_jax import chat, checkpoints
from cai_jax.core.keys import base_key
from cai_jax.generation.generate import generate
from cai_jax.generation.settings import SamplingSettings
from cai_jax.text.dialogue import STOPS, cut_at_stop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    tiny_models.write_llama(folder)
    tiny_models.write_tokenizer(folder, chat=True)
    return folder


def talk(monkeypatch, capsys, folder, lines, *flags):
    """What the chat answers to the lines, one answer an item, and what it says on stderr."""
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    chat.main([f"--model={folder}", "--max_new_tokens=8", *flags])
    printed, errors = capsys.readouterr()
    assert printed == "" or printed.startswith("Assistant: ")
    return [text.removesuffix("\n") for text in printed.split("Assistant: ")[1:]], errors


def test_turns_are_kept_and_reset_forgets_them(folder, monkeypatch, capsys):
    model = checkpoints.load_model(folder)
    settings = SamplingSettings(8, 1.0, stop=STOPS)

    def expected(prompt, number):
        ids = model.tokenizer.encode_prompt(prompt)
        [completion] = generate(model, [ids], settings, (base_key(3, "chat"), [number]))
        return cut_at_stop(completion.text)

    answers, _ = talk(monkeypatch, capsys, folder, "hi\n\n  \nso \n/reset\nhi\n", "--seed=3")
    first = expected("\n\nHuman: hi\n\nAssistant:", 0)
    second = expected(f"\n\nHuman: hi\n\nAssistant: {first}\n\nHuman: so\n\nAssistant:", 1)
    assert answers == [first, second, expected("\n\nHuman: hi\n\nAssistant:", 2)]
    assert len(set(answers)) == 3
    again, _ = talk(monkeypatch, capsys, folder, "hi\nso\n/reset\nhi", "--seed=3")
    assert again == answers
    other, _ = talk(monkeypatch, capsys, folder, "hi\n", "--seed=4")
    assert other != answers[:1]


def test_an_answer_stops_before_the_next_turn(folder, monkeypatch, capsys):
    def writes_on(model, prompts, settings, keys, **_):
        assert settings.stop == STOPS
        assert settings.temperature == 0
        seen.append(model.tokenizer.decode(prompts[0]))
        return [SimpleNamespace(text=" one\ntwo\n\nHuman: three")]

    seen: list[str] = []
    monkeypatch.setattr("cai_jax.generation.generate.generate", writes_on)
    answers, _ = talk(monkeypatch, capsys, folder, "a\nb\n", "--temperature=0")
    assert answers == ["one\ntwo", "one\ntwo"]
    assert seen[1] == "\n\nHuman: a\n\nAssistant: one\ntwo\n\nHuman: b\n\nAssistant:"


def test_the_chat_template_lays_out_the_turns(folder, monkeypatch, capsys):
    def writes_on(model, prompts, settings, keys, **_):
        seen.append(model.tokenizer.decode(prompts[0]))
        return [SimpleNamespace(text=" one")]

    seen: list[str] = []
    monkeypatch.setattr("cai_jax.generation.generate.generate", writes_on)
    talk(monkeypatch, capsys, folder, "a\nb\n", "--temperature=0", "--dialogue_format=chat")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "b"},
    ]
    assert seen == [
        tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        for asked in (messages[:1], messages)
    ]


def test_the_oldest_exchange_makes_room_and_a_long_turn_is_refused(folder, monkeypatch, capsys):
    # 128 positions: a turn of 60 fits once with the answer, not twice.
    lines = f"{'x' * 60}\n{'y' * 200}\n{'z' * 60}\n"
    answers, errors = talk(monkeypatch, capsys, folder, lines, "--temperature=0")
    alone, _ = talk(monkeypatch, capsys, folder, f"{'z' * 60}\n", "--temperature=0")
    assert len(answers) == 2
    assert answers[1] == alone[0]
    refusal, note = errors.splitlines()
    assert refusal.startswith("error: this turn: expected a prompt of at most 120 tokens")
    assert note == "(2 turns forgotten: no room)"


def test_control_tokens_that_are_typed_are_text(folder):
    model = checkpoints.load_model(folder)
    ids = model.tokenizer.encode_prompt("</s><pad>")
    assert not set(ids) & {0, 1}
    assert model.tokenizer.decode(ids) == "</s><pad>"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature=-1"], "temperature: expected 0 or more, found -1.0"),
        (["--max_new_tokens=0"], "max_new_tokens: expected at least 1, found 0"),
        (["--modle=x"], "--modle"),
        (["--model=/no/such"], "/no/such: expected a file or folder, found none"),
    ],
)
def test_bad_usage_is_one_line(folder, capsys, flags, message):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        chat.main([f"--model={folder}", *flags])
    assert stop.value.code == 2
    printed, errors = capsys.readouterr()
    [line] = errors.splitlines()
    assert message in line
    assert printed == ""
