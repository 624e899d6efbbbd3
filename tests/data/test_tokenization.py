import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from cai_jax.data.tokenization import load_tokenizer
from cai_jax.errors import InputError
from cai_jax.sandbox import corpus, tokenizer

CONTROL = ["<s>", "</s>", "<pad>"]


def write_bytes_tokenizer(folder, *, bos: bool, **settings):
    """A token a byte, three control tokens, and the template of the Llama family if `bos`."""
    names = [*CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CONTROL)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    # What a folder's owner may have left behind, and must not reach our ids.
    backend.enable_truncation(4)
    backend.enable_padding(length=9, pad_id=2, pad_token="<pad>")
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    known = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | settings
    written = {name: value for name, value in known.items() if value is not None}
    written["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def of_bytes(folder):
    return load_tokenizer(write_bytes_tokenizer(folder / "bos", bos=True))


@pytest.fixture(scope="module")
def of_words(folder):
    tokenizer.write_tokenizer(folder / "words")
    return load_tokenizer(folder / "words")


def test_ids_of_bytes_by_hand(of_bytes):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    expected = [3 + alphabet.index(letter) for letter in "Hi!"]
    assert of_bytes.encode("Hi!") == expected
    assert of_bytes.encode_prompt("Hi!") == [0, *expected]
    assert (of_bytes.bos_id, of_bytes.eos_id, of_bytes.pad_id) == (0, 1, 2)
    assert of_bytes.vocab_size == 3 + 256


@settings(max_examples=40, deadline=None)
@given(st.text())
def test_any_text_comes_back_and_no_text_becomes_a_control_token(of_bytes, text):
    ids = of_bytes.encode(text)
    assert of_bytes.decode(ids) == text
    assert not {0, 1, 2} & set(ids)
    assert len(ids) == len(text.encode())


fragments = (
    st.sampled_from([*CONTROL, "<unk>", " the", "\n\nHuman:", " (A)", "<", "s>"]) | st.text()
)


@settings(max_examples=40, deadline=None)
@given(pieces=st.lists(fragments, max_size=6), seed=st.integers(0, 99))
def test_no_text_becomes_a_control_token_of_the_world_and_its_own_comes_back(
    of_words, pieces, seed
):
    assert not {of_words.eos_id, of_words.pad_id} & set(of_words.encode("".join(pieces)))
    spoken = "".join(piece.text for piece in corpus.draw_pieces(random.Random(seed)))
    assert of_words.decode(of_words.encode(spoken)) == spoken


@pytest.mark.parametrize("text", [*CONTROL, "a</s>b", "</s>\n\nHuman: <s>", "<pad><pad>"])
def test_a_control_token_that_somebody_writes_is_text(of_bytes, of_words, text):
    ids = of_bytes.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert of_bytes.decode(ids) == text
    assert of_bytes.encode_batch([text]) == [ids]
    assert of_bytes.encode_prompt(text) == [0, *ids]
    # The world's words have no spelling for it: unknown words, but no end and no padding.
    assert not {of_words.eos_id, of_words.pad_id} & set(of_words.encode(text))


def test_the_beginning_is_never_doubled(of_bytes):
    once = of_bytes.encode_prompt("Hi")
    shown = of_bytes.decode(once)
    assert shown == "<s>Hi"
    assert of_bytes.encode_prompt(shown).count(of_bytes.bos_id) == 1


def test_a_family_trained_without_a_beginning_gets_none(folder):
    made = load_tokenizer(write_bytes_tokenizer(folder / "without", bos=False))
    assert made.bos_id == 0
    assert not made.adds_bos
    assert made.encode_prompt("Hi") == made.encode("Hi")


def test_without_a_padding_token_the_end_pads(folder):
    path = write_bytes_tokenizer(folder / "unpadded", bos=True, pad_token=None)
    backend = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(backend | {"padding": None}))
    made = load_tokenizer(path)
    assert made.pad_id == made.eos_id == 1


def test_a_batch_is_its_texts_one_by_one(of_words):
    rng = random.Random(0)
    texts = ["".join(piece.text for piece in corpus.draw_pieces(rng)) for _ in range(50)]
    assert of_words.encode_batch(texts) == [of_words.encode(text) for text in texts]
    for text, ids in zip(texts, of_words.encode_batch(texts)):
        assert of_words.decode(ids) == text


def test_pieces_by_themselves_are_the_whole_text(of_words):
    """A prompt and its continuation are tokenized apart: in the world nothing is lost by that."""
    rng = random.Random(1)
    for _ in range(50):
        pieces = [piece.text for piece in corpus.draw_pieces(rng)]
        apart = [i for piece in pieces for i in of_words.encode(piece)]
        assert apart == of_words.encode("".join(pieces))


def test_a_saved_tokenizer_is_the_same(of_bytes, tmp_path):
    of_bytes.save(tmp_path)
    again = load_tokenizer(tmp_path)
    for text in ("Hi there", "a</s>b", "é\n\n"):
        assert again.encode_prompt(text) == of_bytes.encode_prompt(text)
    assert (again.bos_id, again.eos_id, again.pad_id) == (0, 1, 2)


def test_what_is_no_tokenizer_is_refused_with_its_folder(folder, tmp_path):
    with pytest.raises(InputError, match="missing: expected a folder with a tokenizer"):
        load_tokenizer(tmp_path / "missing")
    with pytest.raises(InputError, match="expected tokenizer files") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    endless = write_bytes_tokenizer(folder / "endless", bos=True, eos_token=None)
    with pytest.raises(InputError, match="endless: the tokenizer names no eos_token"):
        load_tokenizer(endless)


def test_for_chat_the_end_of_an_answer_ends_a_text(folder):
    template = "{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}"
    made = load_tokenizer(write_bytes_tokenizer(folder / "chat", bos=True, chat_template=template))
    chat = made.in_format("chat")
    assert (made.eos_id, chat.eos_id, made.chat_end()) == (1, 2, "<pad>")
    assert chat.encode("</s>") == made.encode("</s>")
    assert chat.stops == ("</s>", "<pad>")
    text, ids = chat.chat_prompt([{"role": "user", "content": "a<pad>"}])
    assert text == "a<pad><pad>"
    assert ids == [*made.encode("a<pad>"), 2]
    words = template.replace("<pad>", ".")
    endless = write_bytes_tokenizer(folder / "endless chat", bos=True, chat_template=words)
    with pytest.raises(InputError, match="ends an answer with no control token"):
        load_tokenizer(endless).in_format("chat")
