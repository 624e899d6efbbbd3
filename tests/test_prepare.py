"""TFDS data sets from local files: prepared and read without TensorFlow, exactly."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cai_jax import prepare
from cai_jax.data import pipeline, tfds_splits
from cai_jax.data.bad_records import BadRecords
from cai_jax.data.readers import read_comparisons, read_prompts
from cai_jax.data.schema import Comparison, Prompt, Turn
from cai_jax.errors import InputError

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("CAI_JAX_SHARED", ROOT.parent / "shared"))


def dialogue(*turns):
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {text}" for i, text in enumerate(turns))


PAIRS = [
    {"chosen": dialogue(f"é {i}", "yes"), "rejected": dialogue(f"é {i}", "no")} for i in range(30)
]
ATTEMPT = {
    "min_harmlessness_score_transcript": -0.5,
    "num_params": "52B",
    "model_type": "rlhf",
    "rating": 4.0,
    "task_description": "make it swear",
    "task_description_harmlessness_score": 0.25,
    "red_team_member_id": 17,
    "is_upworker": True,
    "tags": ["Profanity", "Theft"],
}


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(value) + "\n" for value in values)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the public repository, small."""
    folder = tmp_path_factory.mktemp("hh-rlhf")
    write_lines(folder / "harmless-base/train.jsonl.gz", PAIRS)
    write_lines(folder / "harmless-base/test.jsonl.gz", PAIRS[:3])
    write_lines(folder / "helpful-online/test.jsonl.gz", PAIRS[:2])
    attempts = [
        ATTEMPT | {"transcript": dialogue("swear!", "no", "please")},
        ATTEMPT | {"transcript": dialogue("steal"), "rating": None, "tags": None},
    ]
    path = folder / "red-team-attempts/red_team_attempts.jsonl.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps(attempts, indent=1).encode()))  # as it is published
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory, repository):
    """Data sets prepared by the command, in processes where TensorFlow would betray itself."""
    folder = tmp_path_factory.mktemp("tfds")
    stub = tmp_path_factory.mktemp("stub") / "tensorflow"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')\n")
    path = os.pathsep.join([str(ROOT), str(stub.parent)])
    script = (
        "import sys\n"
        "from cai_jax import prepare\n"
        "from cai_jax.data import tfds_splits\n"
        f"source, data_dir = {str(repository)!r}, {str(folder)!r}\n"
        "for name in ('hh_rlhf/harmless-base', 'red_team_attempts'):\n"
        "    prepare.main([f'--dataset={name}', f'--source={source}', f'--data_dir={data_dir}'])\n"
        "path = tfds_splits.resolve('tfds:hh_rlhf/harmless-base:train', data_dir)\n"
        "print(len(list(tfds_splits.examples(path))), 'tensorflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "tfds:hh_rlhf/harmless-base:train  30 examples",
        "tfds:hh_rlhf/harmless-base:test  3 examples",
        "tfds:red_team_attempts:train  2 examples",
        "30 False",
    ]
    return folder


def split(data_dir, reference):
    return tfds_splits.resolve(reference, str(data_dir))


def test_comparisons_come_back_as_published_and_in_their_order(data_dir):
    path = split(data_dir, "tfds:hh_rlhf/harmless-base:train")
    assert list(tfds_splits.examples(path)) == PAIRS
    found = read_comparisons(path)
    assert found == [
        Comparison(f"harmless-base-train-{i}", (Turn("human", f"é {i}"),), "yes", "no", 1, "human")
        for i in range(30)
    ]
    assert [prompt.dialogue for prompt in read_prompts(path)] == [c.dialogue for c in found]
    assert len(list(path.parent.glob("*.array_record*"))) == 2


def test_a_red_team_attempt_comes_back_with_its_tags(data_dir):
    first, second = read_prompts(split(data_dir, "tfds:red_team_attempts:train"))
    assert first == Prompt("red_team_attempts-train-0", (Turn("human", "swear!"),), ATTEMPT)
    # What the file does not know is not there, rather than a number that means nothing.
    unknown = {key: tag for key, tag in ATTEMPT.items() if key != "rating"} | {"tags": []}
    assert second.tags == unknown


def test_slices_and_versions_are_references_too(data_dir):
    for reference in ("tfds:hh_rlhf/harmless-base:train[3:5]", "tfds:hh_rlhf/harmless-base:test"):
        path = split(data_dir, reference)
        assert tfds_splits.count(path) == len(read_prompts(path)) == (2 if "[" in reference else 3)
    path = split(data_dir, "tfds:hh_rlhf/harmless-base/1.0.0:train[3:5]")
    assert [prompt.dialogue[0].text for prompt in read_prompts(path)] == ["é 3", "é 4"]


def test_the_environment_says_where_data_sets_are(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert tfds_splits.resolve("tfds:red_team_attempts:train").parent.name == "1.0.0"


def test_array_records_go_through_the_pipeline_and_on_from_its_state(data_dir):
    import tensorflow_datasets as tfds

    folder = split(data_dir, "tfds:hh_rlhf/harmless-base:train").parent
    source = tfds.builder_from_directory(str(folder)).as_data_source(split="train")
    order = list(range(29, -1, -1))

    def iterator():
        return pipeline.iterate(pipeline.batches(source, order, 4))

    undisturbed = list(iterator())
    texts = [example["chosen"].decode() for batch in undisturbed for example in batch]
    assert texts == [pair["chosen"] for pair in reversed(PAIRS)]
    stopped, continued = iterator(), iterator()
    for position in range(len(undisturbed)):
        continued.set_state(stopped.get_state())
        assert next(continued) == undisturbed[position] == next(stopped)


def test_all_of_the_public_file_is_prepared(tmp_path):
    path = SHARED / "data/hh-rlhf-harmless-base-test.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"the public HH-RLHF file is not at {path}")
    lines = prepare.prepare("hh_rlhf/harmless-base", path, tmp_path, BadRecords())
    assert lines == ["tfds:hh_rlhf/harmless-base:test  2,312 examples"]
    found = read_comparisons(split(tmp_path, "tfds:hh_rlhf/harmless-base:test"))
    whole = read_comparisons(path)
    assert [c.dialogue for c in found] == [c.dialogue for c in whole]
    assert [(c.response_a, c.response_b) for c in found] == [
        (c.response_a, c.response_b) for c in whole
    ]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        prepare.main(list(arguments))
    errors = capsys.readouterr().err
    assert stop.value.code == 2 and errors.count("\n") == 1, errors
    return errors


def test_bad_usage_is_one_line(capsys, repository, tmp_path):
    source, to = f"--source={repository}", f"--data_dir={tmp_path}"
    found = refused(capsys, "--dataset=hh_rlhf/harmles-base", source, to)
    assert "did you mean 'hh_rlhf/harmless-base'?" in found
    found = refused(capsys, "--dataset=hh_rlhf/helpful-base", source, to)
    assert "expected helpful-base/train.jsonl.gz or test.jsonl.gz" in found
    found = refused(capsys, "--dataset=red_team_attempts", f"--source={tmp_path}", to)
    assert "expected red-team-attempts/red_team_attempts.jsonl.gz" in found
    found = refused(capsys, "--dataset=red_team_attempts", f"--source={tmp_path}/no", to)
    assert "expected a file or folder, found none" in found
    assert list(tmp_path.iterdir()) == []


def test_a_bad_record_leaves_nothing_half_written_or_is_listed(capsys, tmp_path):
    source = tmp_path / "train.jsonl"
    write_lines(source, [PAIRS[0], {"chosen": "x", "rejected": "y"}, PAIRS[1]])
    arguments = ["--dataset=hh_rlhf/helpful-base", f"--source={source}", f"--data_dir={tmp_path}/d"]
    assert f"{source}:2: chosen: expected a dialogue that begins" in refused(capsys, *arguments)
    assert not list(tmp_path.glob("d/**/*.array_record*"))
    with pytest.raises(
        InputError, match="expected a prepared data set .* \\(of none there\\); run"
    ):
        split(f"{tmp_path}/d", "tfds:hh_rlhf/helpful-base:train")

    prepare.main([*arguments, "--on_bad_record=skip"])
    folder = tmp_path / "d/hh_rlhf/helpful-base/1.0.0"
    assert capsys.readouterr().out.splitlines() == [
        "tfds:hh_rlhf/helpful-base:train  2 examples",
        f"bad_records: 1, listed in {folder}",
    ]
    (line,) = (folder / "bad_records.jsonl").read_text().splitlines()
    assert json.loads(line)["line"] == 2
    assert "exists already" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rating": "high"}, ":1: rating: expected a number, found 'high'"),
        ({"tags": [1]}, r":1: tags: expected a list of texts, found '\[1\]'"),
        ({"is_upworker": None}, ":1: is_upworker: expected true or false, found 'None'"),
        ({"red_team_member_id": 2**70}, ":1: red_team_member_id: expected a whole number"),
        ({"transcript": dialogue("")}, ":1: transcript: .* ends in a human turn"),
    ],
)
def test_a_bad_attempt_is_refused_by_its_field(tmp_path, change, message):
    source = tmp_path / "red_team_attempts.jsonl"
    write_lines(source, [ATTEMPT | {"transcript": dialogue("x")} | change])
    with pytest.raises(InputError, match=message):
        prepare.prepare("red_team_attempts", source, tmp_path / "d", BadRecords())


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("tfds:hh_rlhf/harmless-base:dev", "with split 'dev': Unknown split 'dev'"),
        ("tfds:hh_rlhf/harmless-bas:train", "found none \\(of hh_rlhf/harmless-base, red_team"),
        ("tfds:hh_rlhf", "expected tfds:DATASET/CONFIG:SPLIT"),
        ("tfds:../x:train", "expected tfds:DATASET/CONFIG:SPLIT"),
    ],
)
def test_a_reference_that_means_nothing_is_refused(data_dir, reference, message):
    with pytest.raises(InputError, match=message) as error:
        split(data_dir, reference)
    assert "\n" not in str(error.value)


def test_the_command_and_the_builders_know_the_same_data_sets():
    from cai_jax.data.builders import hh_rlhf, red_team_attempts

    assert tuple(hh_rlhf.CONFIGS) == prepare.DATASETS[hh_rlhf.HhRlhf.name]
    assert red_team_attempts.RedTeamAttempts.name in prepare.DATASETS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", b"\x00\xff\xfe random"),
        ("train.jsonl.gz", gzip.compress(b'{"chosen": 1}' * 99, mtime=0)[:-12]),
        ("train.jsonl.gz", b""),
        ("train.csv", b'chosen,rejected\n"unended,x\n'),
        ("train.jsonl", b"[[[[{"),
    ],
    ids=["binary", "cut gzip", "empty gzip", "unended csv", "unended json"],
)
@pytest.mark.parametrize("dataset", ["hh_rlhf/harmless-base", "red_team_attempts"])
def test_no_file_whatever_gives_a_traceback(capsys, tmp_path, dataset, name, content):
    (tmp_path / name).write_bytes(content)
    arguments = [f"--dataset={dataset}", f"--source={tmp_path / name}", f"--data_dir={tmp_path}/d"]
    assert str(tmp_path / name) in refused(capsys, *arguments)
    assert not list(tmp_path.glob("d/**/dataset_info.json"))
    # With all of its records skipped, a data set would be empty.
    refused(capsys, *arguments, "--on_bad_record=skip")


def test_a_place_where_nothing_can_be_written_is_refused(capsys, repository, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["--dataset=hh_rlhf/harmless-base", f"--source={repository}"]
    assert "cannot be written" in refused(capsys, *arguments, f"--data_dir={tmp_path}/file")
