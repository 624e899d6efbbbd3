"""Chat templates: the ids of `transformers` for ordinary text; no text becomes a control token."""

import functools
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from cai_jax.data.chat_template import DATE, ChatTemplate
from cai_jax.data.tokenization import TextTokenizer
from cai_jax.errors import InputError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ '<|begin|>' }}{% for m in messages %}{{ '<|start_header|>' + m['role'] + '<|end_header|>' "
    "+ '\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header|>assistant<|end_header|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% if m['role'] == 'assistant' %}"
    "{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Beginnings are marked, and turns are words: the Llama 2 kind.
INST = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] | trim + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}"
    "{% endif %}{% endfor %}"
)
KINDS = {
    "chatml": (CHATML, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|im_end|>"),
    "llama 3": (LLAMA_3, ["<|begin|>", "<|start_header|>", "<|end_header|>", "<|eot|>"], "<|eot|>"),
    "gemma": (GEMMA, ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<end_of_turn>"),
    "inst": (INST, ["<s>", "</s>"], "</s>"),
}
ENDS = {"chatml": "<|endoftext|>", "llama 3": "<|eot|>", "gemma": "<eos>", "inst": "</s>"}
CORPUS = [
    "the user said that the model is fine.\n\nassistant\nAnd then? It's what we want, 12 times.",
    "user\nmodel\nassistant\n[INST] what is the answer? [/INST] The answer is fine. </s>",
]


def tokenizer(kind, chat_template=None):
    """A small tokenizer, with the template of its kind or another one."""
    fast = trained(kind)
    fast.chat_template = KINDS[kind][0] if chat_template is None else chat_template
    return fast


@functools.cache
def trained(kind):
    _, control, _ = KINDS[kind]
    backend = Tokenizer(models.BPE())
    if kind in ("chatml", "llama 3"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        alphabet = [*map(chr, range(33, 127)), "\n", "é", "▁"]
        if kind == "gemma":
            backend.normalizer = normalizers.Replace(" ", "▁")
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=alphabet,
        special_tokens=control,
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 3, trainer)
    bos = None if kind == "chatml" else control[0]
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ENDS[kind], bos_token=bos)


ORDINARY = [
    [("user", "what is the answer?")],
    [("user", "  the model\n\nis fine "), ("assistant", "And then? é"), ("user", "12 times.\n")],
    [
        ("user", "What?"),
        ("assistant", "[INST] is fine."),
        ("user", "<b>the</b> user\nsaid <|im_e"),
    ],
]


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("turns", ORDINARY)
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_text_has_the_ids_of_transformers(kind, turns):
    fast = tokenizer(kind)
    expected = fast.apply_chat_template(
        messages(turns), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    prompt = ChatTemplate(fast).encode(messages(turns))
    assert prompt.ids == expected
    assert prompt.text == fast.apply_chat_template(
        messages(turns), add_generation_prompt=True, tokenize=False
    )


FRAGMENTS = [token for _, control, _ in KINDS.values() for token in control]
FRAGMENTS += ["\n", " ", "user\n", "the", "<|im_", "end|>", "[INST]", "é", "<", "<0x0A>", "\ue000"]
spoilt = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join) | st.text(max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(texts=st.lists(spoilt, min_size=3, max_size=3))
def test_no_text_becomes_a_control_token(kind, texts):
    template = ChatTemplate(tokenizer(kind))
    turns = list(zip(("user", "assistant", "user"), texts))
    plain = template.encode(messages([(role, "a") for role, _ in turns]))
    prompt = template.encode(messages(turns))
    control = template.control_ids
    assert [i for i in prompt.ids if i in control] == [i for i in plain.ids if i in control]
    if kind in ("chatml", "llama 3"):  # every byte has its token there
        assert tokenizer(kind).decode(prompt.ids, skip_special_tokens=False) == prompt.text


def test_a_control_token_in_a_text_changes_no_other_token():
    template = ChatTemplate(tokenizer("chatml"))
    words = ("X", "<|im_end|>")
    spoken, quoted = (template.encode(messages([("user", f"the {w} user")])).ids for w in words)
    letters = tokenizer("chatml").backend_tokenizer
    letters.encode_special_tokens = True
    x, token = (letters.encode(f" {word}").ids for word in words)
    letters.encode_special_tokens = False
    place = next(i for i in range(len(spoken)) if spoken[i : i + len(x)] == x)
    assert quoted == spoken[:place] + token + spoken[place + len(x) :]


@pytest.mark.parametrize("kind", KINDS)
def test_the_end_of_an_answer_is_the_templates(kind):
    fast = tokenizer(kind)
    assert ChatTemplate(fast).end_id() == fast.convert_tokens_to_ids(KINDS[kind][2])


REFUSED = {
    "no template": (None, [("user", "a")], "has no chat template; give a prompt instead"),
    "refuses": (GEMMA, [("system", "a")], "template refuses them: System role not supported"),
    "broken": ("{% for %}", [("user", "a")], "the chat template refuses them"),
    "a role": (CHATML, [("<|im_end|>", "a")], "[0] role: contains the control token '<|im_end|>'"),
    "twice": (
        "{{ messages[0]['content'] }} {{ messages[0]['content'] }}",
        [("user", "a")],
        "[0]: the chat template shows its text 2 times",
    ),
    "left out": ("hello", [("user", "a")], "[0]: the chat template shows its text 0 times"),
    "changed": (
        "{{ messages[0]['content'] | upper }}",
        [("user", "ab")],
        "[0] content: the chat template changes the text 'ab'",
    ),
    "cut": (
        "{{ messages[0]['content'].split('</b>')[-1] }}",
        [("user", "a</b>b")],
        "[0] content: the chat template changes the text 'a</b>b'",
    ),
    "depends": (
        "{% if 'a' in messages[0]['content'] %}A{% endif %}{{ messages[0]['content'] }}",
        [("user", "ab")],
        "[0] content: the chat template changes the text 'ab'",
    ),
}


@pytest.mark.parametrize(("template", "turns", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_encoded_exactly_is_refused_in_one_line(template, turns, message):
    fast = tokenizer("chatml", template or "")
    with pytest.raises(InputError) as error:
        ChatTemplate(fast).encode(messages(turns))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_reasoning_of_an_earlier_answer_may_be_left_out():
    template = CHATML.replace(
        "m['content'] +", "m['content'].split('</think>')[-1].lstrip('\\n') +"
    )
    assert template != CHATML
    turns = [("user", "a"), ("assistant", "<think>hm</think>\n\nb<|im_end|>"), ("user", "c")]
    prompt = ChatTemplate(tokenizer("chatml", template)).encode(messages(turns))
    turns[1] = ("assistant", "b<|im_end|>")
    assert prompt == ChatTemplate(tokenizer("chatml")).encode(messages(turns))


def test_a_template_that_ends_answers_with_words_has_no_end():
    template = "{% for m in messages %}{{ m['content'] }} END <|im_end|>{% endfor %}"
    assert ChatTemplate(tokenizer("chatml", template)).end_id() is None


def test_a_date_in_a_template_is_the_same_every_day():
    fast = tokenizer("chatml", "{{ date_string }}: {{ messages[0]['content'] }}")
    assert ChatTemplate(fast).encode(messages([("user", "a")])).text == f"{DATE}: a"


class Said(NamedTuple):
    """A chat prompt, as `text/formats.py` makes them."""

    turns: tuple
    begun: str = ""


class Turn(NamedTuple):
    role: str
    text: str


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_for_chat_encodes_prompts_and_ends_answers_as_the_template(kind):
    fast = tokenizer(kind)
    plain = TextTokenizer(fast, "here")
    chat = plain.in_format("chat")
    assert plain.in_format("plain") is plain
    asked = Said((Turn("human", "what?"), Turn("assistant", "[]"), Turn("human", "the </s> user")))
    begun = asked._replace(begun="The answer is:")
    turns = [("user", "what?"), ("assistant", "[]"), ("user", "the </s> user")]
    expected = ChatTemplate(fast).encode(messages(turns)).ids
    assert chat.encode_prompts([asked, begun]) == [
        expected,
        expected + plain.encode("The answer is:"),
    ]
    assert chat.encode_prompt(asked) == expected
    begins = [] if kind == "chatml" else [fast.convert_tokens_to_ids(KINDS[kind][1][0])]
    assert chat.prompt_start == begins
    assert chat.encode_batch(["a text", asked]) == [
        plain.encode("a text"),
        expected[len(begins) :],
    ]
    assert chat.decode([chat.eos_id]) == KINDS[kind][2]
    assert set(chat.stops) == set(KINDS[kind][1])
    assert plain.stops == ()
    assert (plain.answer("yes"), chat.answer("yes")) == (" yes", "yes")
    # What stands before an answer and the answer: together, the conversation as the template has
    # it, but for what the template writes around an answer.
    if kind in ("chatml", "llama 3", "gemma"):
        answered = [*turns, ("assistant", "It is fine.")]
        whole = fast.apply_chat_template(messages(answered), tokenize=True, return_dict=False)
        ids = expected + chat.encode(chat.answer("It is fine.")) + [chat.eos_id]
        assert whole[: len(ids)] == ids


def test_a_prompt_that_the_template_refuses_is_named():
    chat = TextTokenizer(tokenizer("gemma"), "here").in_format("chat")
    chat._chat = ChatTemplate(tokenizer("gemma", "{{ raise_exception('no') }}"))
    with pytest.raises(InputError, match="dialogue 'what.': the chat template refuses them: no"):
        chat.encode_prompts([Said((Turn("human", "what?"),))])
