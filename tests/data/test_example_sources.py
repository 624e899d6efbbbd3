"""Files of records as the examples of a language model, with a token a letter, or nearly."""

from types import SimpleNamespace

import pytest
import tiny_models
from ml_collections import ConfigDict

from cai_jax.data import example_sources, shares
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.schema import (
    Chain,
    Demonstration,
    Document,
    Piece,
    Round,
    Turn,
    write_records,
)
from cai_jax.data.tokenization import load_tokenizer
from cai_jax.errors import InputError
from cai_jax.text.dialogue import render


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What of a model is looked at: its tokenizer, and how many tokens it has."""
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write_tokenizer(folder)
    return SimpleNamespace(tokenizer=load_tokenizer(folder), config=SimpleNamespace(vocab_size=272))


def read(model, data, bad=None, **changes):
    parameters = {"revisions": (1,), "sequence_length": 48, "on_long": "truncate", **changes}
    config = ConfigDict(parameters)
    return example_sources.read(config, data, model, render, bad or BadRecords())


CHAINS = [
    Chain(f"c{i}", (Turn("human", "q"),), "r0", (Round("p", "k", "r1"), Round("p", "k", "r2")))
    for i in range(3)
] + [Chain("helpful", (Turn("human", "q"),), "ok")]


def prepared(model, records, tmp_path, **changes):
    write_records(tmp_path / "records.jsonl", records)
    lengths, report = read(model, tmp_path / "records.jsonl", **changes)
    made = shares.items([of.at for of in lengths])
    assert [(example.record_id, len(example.ids)) for example in made] == [of[1:] for of in lengths]
    return [model.tokenizer.decode(example.ids) for example in made], report


@pytest.mark.parametrize(
    ("revisions", "expected"),
    [((1,), ["r1"]), ((1, 2), ["r1", "r2"]), ((0, 2), ["r0", "r2"])],
)
def test_revisions_chooses_what_of_a_chain_is_learned(model, tmp_path, revisions, expected):
    texts, _ = prepared(model, CHAINS, tmp_path, revisions=revisions)
    prompt = "\n\nHuman: q\n\nAssistant: "
    assert texts == [f"{prompt}{r}</s>" for r in expected] * 3 + [f"{prompt}ok</s>"]


def test_more_revisions_than_rounds_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="chain c0: revisions: expected at most 2"):
        prepared(model, CHAINS, tmp_path, revisions=(1, 2, 3, 4))


DOCUMENTS = [
    Document("short", (Piece("abc", 1.0),)),
    Document("context only", (Piece("abc", 0.0),)),
    Document("nothing", (Piece("  \n", 1.0),)),
    Document("long", (Piece("a" * 40, 0.0), Piece("b" * 20, 1.0))),
]


@pytest.mark.parametrize(
    ("on_long", "texts", "counts"),
    [
        ("truncate", ["abc</s>", "a" * 40 + "b" * 8], (1, 0, 2, 13)),
        ("drop", ["abc</s>"], (0, 1, 2, 21)),
    ],
)
def test_what_does_not_fit_is_counted(model, tmp_path, on_long, texts, counts):
    found, report = prepared(model, DOCUMENTS, tmp_path, on_long=on_long)
    assert found == texts
    names = ("truncated", "dropped", "empty", "lost_tokens")
    assert tuple(report[name] for name in names) == counts


def test_long_records_can_be_refused(model, tmp_path):
    with pytest.raises(InputError, match="record long: expected at most 48 tokens, found 61"):
        prepared(model, DOCUMENTS, tmp_path, on_long="refuse")


def test_data_without_anything_to_train_is_refused(model, tmp_path):
    with pytest.raises(InputError, match="expected examples, found none"):
        prepared(model, DOCUMENTS[1:3], tmp_path)


def test_a_tokenizer_of_another_model_is_refused(model, tmp_path):
    write_records(tmp_path / "d.jsonl", [Document("d", (Piece("é", 1.0),))])
    small = SimpleNamespace(tokenizer=model.tokenizer, config=SimpleNamespace(vocab_size=9))
    with pytest.raises(InputError, match="its vocabulary has only 9 entries"):
        read(small, tmp_path / "d.jsonl")


def test_data_is_files_and_folders_of_any_kind_in_order(model, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_records(tmp_path / "one" / "chains.jsonl", CHAINS[:1])
    demonstration = Demonstration("d0", (Turn("human", "say a"),), "a")
    write_records(tmp_path / "one" / "demonstrations.jsonl", [demonstration])
    write_records(tmp_path / "two" / "documents.jsonl", DOCUMENTS[:1])
    sources = [tmp_path / "two", tmp_path / "one"]
    lengths, _ = read(model, sources, revisions=(2,))
    assert [of.record_id for of in lengths] == ["short", "c0", "d0"]
    # A bad line in front does not hide what the file holds.
    path = tmp_path / "two" / "documents.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    bad = BadRecords("skip")
    again, _ = read(model, sources, bad, revisions=(2,))
    assert [of.record_id for of in again] == ["short", "c0", "d0"]
    assert [found["line"] for found in bad.found] == [1]
    with pytest.raises(InputError, match="documents.jsonl:1: expected one JSON object"):
        read(model, sources, revisions=(2,))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected chains.jsonl, .* found none of them"):
        read(model, tmp_path / "empty")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="empty.jsonl: expected at least one record, found none"):
        read(model, tmp_path / "empty.jsonl")
