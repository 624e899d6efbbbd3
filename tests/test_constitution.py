import json

import pytest

from cai_jax import constitution as job
from cai_jax.text.constitution import load_constitution

WORDINGS = ("critique_request", "revision_request", "comparison")
SOURCE = {
    "name": "n",
    "provenance": "ours",
    "principles": [{"id": f"p{n}"} | dict.fromkeys(WORDINGS, f"Text {n}.") for n in range(6)],
    "critique_few_shots": ["\n\nHuman: é"],
    "comparison_few_shots": [],
    "reasoning_few_shots": ["a {} b", "c {} d"],
}


def write(folder):
    path = folder / "source.json"
    path.write_text(json.dumps(SOURCE))
    return path


def test_what_is_written_reads_as_what_was_given(tmp_path, capsys):
    source, out = write(tmp_path), tmp_path / "out.json"
    job.main([f"--source={source}", f"--out={out}"])
    assert load_constitution(out) == load_constitution(source)
    assert "é" in out.read_text("utf-8")
    said = f"{out}: 6 principles; 1 critique, 0 comparison, 2 reasoning few-shots\n"
    assert capsys.readouterr().out == said
    drawn = [f"--source={source}", f"--out={out}", "--num_principles=2", "--seed=5", "--overwrite"]
    job.main(drawn)
    assert load_constitution(out) == load_constitution(source).drawn(2, 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "exists already; name another file, or give --overwrite"),
        (("--overwrite", "--num_principles=7"), "num_principles: expected 0 (all) to 6"),
        (("--overwrite", "--seed=-1"), "expected 0 to"),
    ],
)
def test_bad_usage_is_one_line_and_touches_nothing(tmp_path, capsys, more, message):
    source, out = write(tmp_path), tmp_path / "out.json"
    out.write_text("kept")
    with pytest.raises(SystemExit) as stopped:
        job.main([f"--source={source}", f"--out={out}", *more])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and error.count("\n") == 1
    assert out.read_text() == "kept"
