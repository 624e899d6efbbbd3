"""Reading by shares, as several hosts that are one process: what each reads, and what all know."""

from collections import Counter
from types import SimpleNamespace

import pytest
import tiny_models
from ml_collections import ConfigDict

from cai_jax import hosts
from cai_jax.data import comparison_sources, comparisons, example_sources, packing, schema, shares
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.forms import NO_FIELDS
from cai_jax.data.schema import Comparison, Demonstration, Turn, write_records
from cai_jax.data.tokenization import TextTokenizer, load_tokenizer
from cai_jax.errors import InputError
from cai_jax.text.dialogue import render

HOSTS, RECORDS = 4, 40


class Waiting(BaseException):
    """A host that has said its part, and has not heard the others."""


def on_hosts(monkeypatch, count, program):
    """What `program()` gives on each of `count` hosts, which exchange their bytes.

    Each runs from its beginning for every exchange, as far as all have said what they say in it.
    """
    heard = []
    while True:
        results, said = [], []
        for index in range(count):
            known = iter(heard)

            def exchanged(part, known=known):
                parts = next(known, None)
                if parts is None:
                    raise Waiting(part)
                return parts

            with monkeypatch.context() as patch:
                patch.setattr(hosts, "index", lambda index=index: index)
                patch.setattr(hosts, "count", lambda: count)
                patch.setattr(hosts, "exchanged", exchanged)
                try:
                    results.append(program())
                except Waiting as waiting:
                    said += waiting.args
        if not said:
            return results
        assert len(said) == count
        heard.append(said)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_models.write_tokenizer(folder)
    return SimpleNamespace(tokenizer=load_tokenizer(folder), config=SimpleNamespace(vocab_size=272))


@pytest.fixture
def read(monkeypatch):
    """Counts of what is read: records parsed, and texts tokenized."""
    found = Counter()
    parse, encode_batch = schema.parse, TextTokenizer.encode_batch

    def counted_parse(kind, value, where):
        found["records"] += kind in (Demonstration, Comparison)
        return parse(kind, value, where)

    def counted_encode(self, texts):
        texts = list(texts)
        found["texts"] += len(texts)
        return encode_batch(self, texts)

    monkeypatch.setattr(schema, "parse", counted_parse)
    monkeypatch.setattr(TextTokenizer, "encode_batch", counted_encode)
    return found


DIALOGUES = [(Turn("human", f"say {i}"),) for i in range(RECORDS)]
DEMONSTRATIONS = [
    # One is cut, and one has nothing to train on.
    Demonstration(f"d{i}", turns, "" if i == 7 else "ab" * (40 if i == 30 else i % 9))
    for i, turns in enumerate(DIALOGUES)
]


def test_each_host_reads_its_share_and_what_it_fills(model, tmp_path, monkeypatch, read):
    write_records(tmp_path / "d.jsonl", DEMONSTRATIONS)
    config = ConfigDict({"revisions": (1,), "sequence_length": 48, "on_long": "truncate"})

    def program():
        read.clear()
        data = [tmp_path / "d.jsonl"]
        lengths, counts = example_sources.read(config, data, model, render, BadRecords())
        learned = dict(read)
        rows = packing.pack([of.length for of in lengths], 48)
        mine = rows[hosts.share(len(rows))]
        wanted = [i for row in mine for i in row]
        made = dict(zip(wanted, shares.items([lengths[i].at for i in wanted])))
        filled = packing.fill(made, mine, len(mine), 48)
        facts = [of[1:] for of in lengths]
        return facts, rows, counts, filled, learned, dict(read), len(wanted)

    [alone] = on_hosts(monkeypatch, 1, program)
    facts, rows, counts, filled, learned, *_ = alone
    assert len(facts) == RECORDS - 6 and counts["empty"] == 6 and counts["truncated"] == 1
    assert learned == alone[5] and learned["records"] == RECORDS  # none is made twice

    several = on_hosts(monkeypatch, HOSTS, program)
    for of in several:
        assert of[:3] == alone[:3]
        # A prompt and a response each, and no others, to know how long all are.
        assert of[4]["records"] == RECORDS / HOSTS
        assert of[4]["texts"] <= 2 * RECORDS / HOSTS
        assert of[5]["records"] <= RECORDS / HOSTS + of[6]
    assert sum(of[6] for of in several) == len(facts)
    assert max(of[5]["records"] for of in several) < 0.7 * RECORDS
    for name, whole in filled._asdict().items():
        parts = [getattr(of[3], name) for of in several]
        assert [part.shape[0] for part in parts] != [0] * HOSTS
        assert (whole == [row for part in parts for row in part]).all(), name


def test_comparisons_are_known_to_all_and_made_where_they_are_wanted(
    model, tmp_path, monkeypatch, read
):
    for name, weight in (("a", 0.1), ("b", 0.7)):
        write_records(
            tmp_path / f"{name}.jsonl",
            [
                Comparison(f"{name}{i}", turns, "ab" * (i % 5), "é" * (i % 11), weight, "human")
                for i, turns in enumerate(DIALOGUES)
            ],
        )
    config = ConfigDict({"weights": (2,), "on_long": "drop", "fields": NO_FIELDS})
    inputs = {"comparisons": [tmp_path / "a.jsonl"], "held_out": tmp_path / "b.jsonl"}

    def program():
        read.clear()
        data = comparison_sources.read(config, inputs, model, render, 40, BadRecords())
        learned = read["texts"]
        pairs = [pair for source in data for pair in source.pairs]
        mine = pairs[hosts.index() :: hosts.count()]
        found = comparisons.token_pairs(mine)
        assert [comparisons.facts(pair) for pair in found] == [pair[1:6] for pair in mine]
        about = [(s.name, s.trained, s.truncated, s.dropped, len(s.pairs)) for s in data]
        return about, [pair[1:] for pair in pairs], found, learned, read["texts"], len(mine)

    [alone] = on_hosts(monkeypatch, 1, program)
    assert [pair[4:] for pair in alone[1][:1] + alone[1][-1:]] == [(0.1, 2.0), (0.7, 1.0)]
    assert sum(dropped for *_, dropped, _ in alone[0]) == 2 * RECORDS - len(alone[1]) > 0
    several = on_hosts(monkeypatch, HOSTS, program)
    for index, of in enumerate(several):
        assert of[:2] == alone[:2] and of[2] == alone[2][index::HOSTS]
        assert of[3] == 3 * 2 * RECORDS / HOSTS
        assert of[4] <= of[3] + 3 * of[5]


LINES = [
    f'{{"id": "{i}", "dialogue": [{{"role": "human", "text": "q"}}], "response": "ok"}}'
    for i in range(RECORDS)
]


def told(monkeypatch, count, tmp_path, model, on_bad="refuse", **changes):
    """What each host says of a file of demonstrations: an error, or its counts and bad lines."""
    config = {"revisions": (1,), "sequence_length": 48, "on_long": "refuse", **changes}

    def program():
        bad = BadRecords(on_bad)
        try:
            found = example_sources.read(
                ConfigDict(config), tmp_path / "d.jsonl", model, render, bad
            )
        except InputError as error:
            return str(error)
        return [of.record_id for of in found[0]], found[1], bad.found

    return on_hosts(monkeypatch, count, program)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({25: "{}", 31: "nonsense"}, "d.jsonl:26: field 'id' is missing"),
        ({31: "nonsense"}, "d.jsonl:32: expected one JSON object, found 'nonsense"),
        ({3: LINES[3].replace("ok", "ok" * 40)}, "record 3: expected at most 48 tokens"),
    ],
    ids=["field", "line", "long"],
)
def test_every_host_gives_the_error_that_one_would_give(
    changed, message, model, tmp_path, monkeypatch
):
    lines = [changed.get(i, line) for i, line in enumerate(LINES)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    [alone] = told(monkeypatch, 1, tmp_path, model)
    assert message in alone and "\n" not in alone
    assert told(monkeypatch, HOSTS, tmp_path, model) == [alone] * HOSTS


def test_bad_lines_are_left_out_and_listed_on_every_host(model, tmp_path, monkeypatch):
    lines = ["?" if i in (0, 19, 39) else line for i, line in enumerate(LINES)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    [alone] = told(monkeypatch, 1, tmp_path, model, on_bad="skip")
    assert [found["line"] for found in alone[2]] == [1, 20, 40] and len(alone[0]) == RECORDS - 3
    assert told(monkeypatch, HOSTS, tmp_path, model, on_bad="skip") == [alone] * HOSTS


def test_hosts_that_do_not_see_the_same_file_are_refused(model, tmp_path, monkeypatch):
    def program():
        lines = LINES[: RECORDS - hosts.index()]
        (tmp_path / "d.jsonl").write_text("\n".join(lines))
        config = ConfigDict({"revisions": (1,), "sequence_length": 48, "on_long": "drop"})
        with pytest.raises(InputError, match="expected the same rows on every host, found 40, 39"):
            example_sources.read(config, tmp_path / "d.jsonl", model, render, BadRecords())

    on_hosts(monkeypatch, 2, program)
