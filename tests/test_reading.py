"""What a config says of files from outside, on its way to the step that reads them."""

import gzip
import json
import shutil

import fakes
import pytest
from ml_collections import ConfigDict

from cai_jax import inputs, pipeline, prepare
from cai_jax import run as runner
from cai_jax.core import artifact
from cai_jax.data import readers
from cai_jax.data.bad_records import BadRecords
from cai_jax.errors import InputError
from cai_jax.stages import step

CONFIG = """
from ml_collections import ConfigDict
from test_reading import read_step

def get_config():
    config = ConfigDict()
    config.seed = 7
    config.steps = ConfigDict(sort_keys=False)
    config.steps.reading = read_step({"prompts": "p.csv"}, fields={"prompt": "question"})
    return config
"""


class Reading:
    """A kind of step that reads prompts, as the stages do."""

    @staticmethod
    def default_config():
        return ConfigDict({"fields": readers.default_fields(), "data": readers.default_data()})

    @staticmethod
    def run(config, inputs, folder):
        bad = BadRecords(config.data.on_bad_record)
        prompts = readers.read_all_prompts(inputs["prompts"], 0, config.fields, bad)
        (folder / "ids.txt").write_text(" ".join(prompt.id for prompt in prompts))
        return {"records": len(prompts), "tokens": 0} | bad.report(folder)

    @staticmethod
    def plan(config, planned):
        return {"records": planned["prompts"]["records"], "tokens": 0, "flops": 0.0}


def load(kind):
    return Reading


def read_step(given, **parameters):
    return step("read", given, load=load, **parameters)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "p.csv").write_text("question\none?\n \ntwo,three\nfour?\n")
    return tmp_path


def run(*arguments):
    runner.main(["--config=config.py", "--workdir=work", *arguments], load_stage=load)


def test_a_bad_record_is_refused_before_anything_runs(workplace, capsys):
    with pytest.raises(SystemExit) as stop:
        run()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "step 'reading': inputs.prompts: p.csv:4: expected 1 cells (question), found 2" in error
    assert not (workplace / "work").exists()


def test_bad_records_are_counted_in_manifest_and_summary_and_listed_in_the_artifact(
    workplace, capsys
):
    run("--config.data.on_bad_record=skip")
    assert (workplace / "work/reading/ids.txt").read_text() == "p-0 p-2"
    manifest = artifact.read_manifest(workplace / "work/reading")
    assert manifest["counts"] == {"records": 2, "tokens": 0, "bad_records": 1}
    assert manifest["config"]["data"]["on_bad_record"] == "skip"
    summary = json.loads((workplace / "work/summary.json").read_text())
    assert summary["steps"]["reading"]["bad_records"] == 1
    (line,) = (workplace / "work/reading/bad_records.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "file": "p.csv",
        "line": 4,
        "reason": "expected 1 cells (question), found 2",
    }
    # What was skipped is part of what was computed: another word on it is another run.
    with pytest.raises(SystemExit):
        (workplace / "p.csv").write_text("question\none?\n")
        run()
    assert 'data.on_bad_record was "skip", now "refuse"' in capsys.readouterr().err


def test_another_word_than_refuse_and_skip_is_refused(workplace, capsys):
    for flag, message in [
        ("--config.data.on_bad_record=ignore", "expected one of refuse, skip, found 'ignore'"),
        ("--config.data.on_bad=skip", "unknown key 'on_bad'; did you mean 'on_bad_record'?"),
        ("--config.steps.reading.fields.prompt=q", "p.csv:2: field 'q' is missing"),
    ]:
        with pytest.raises(SystemExit):
            run(flag)
        assert message in capsys.readouterr().err


def test_the_data_group_goes_to_steps_that_read_and_to_no_others():
    config = ConfigDict({"seed": 0, "data": readers.default_data(), "steps": {}})
    config.data.on_bad_record = "skip"
    config.steps.reading = read_step({"prompts": "p.csv"})
    config.steps.other = fakes.fake_step("revise", {"prompts": "p.csv"})
    steps = pipeline.read_steps(config, lambda kind: fakes.KINDS.get(kind, Reading))
    found = {made.name: made.config.get("data") for made in steps}
    assert found == {"reading": {"on_bad_record": "skip", "tfds_dir": ""}, "other": None}


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_a_plan_counts_rows_and_not_lines(tmp_path, ending):
    path = tmp_path / f"p.{ending}"
    text = 'prompt\n"a\nb"\nc\n' if "csv" in ending else '{"prompt": "a\\nb"}\n\n{"prompt": "c"}\n'
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    assert inputs.count("prompts", path)["records"] == 2
    inputs.check("prompts", path, {})


def test_a_tfds_reference_is_for_prompts_and_comparisons(tmp_path):
    config = {"data": {"tfds_dir": str(tmp_path), "on_bad_record": "refuse"}, "fields": {}}
    with pytest.raises(InputError, match=f"expected a prepared data set in {tmp_path}/hh_rlhf/x"):
        inputs.resolve("comparisons", "tfds:hh_rlhf/x:train", config)
    with pytest.raises(InputError, match="expected a file or folder, found a TFDS data set"):
        inputs.resolve("constitution", "tfds:hh_rlhf/x:train", config)


def test_a_split_of_a_tfds_data_set_is_an_input_like_a_file(workplace, capsys):
    def pairs(count):
        lines = (
            json.dumps({"chosen": f"\n\nHuman: {i}\n\nAssistant: y", "rejected": f"\n\nHuman: {i}"})
            for i in range(count)
        )
        (workplace / "train.jsonl").write_text("\n".join(lines))
        command = ["--dataset=hh_rlhf/helpful-online", "--source=train.jsonl", "--data_dir=tfds"]
        prepare.main(command)

    pairs(3)
    config = (workplace / "config.py").read_text()
    reference = "tfds:hh_rlhf/helpful-online:train[1:]"
    (workplace / "config.py").write_text(
        config.replace('"p.csv"', f'"{reference}"').replace('fields={"prompt": "question"}', "")
    )
    run("--config.data.tfds_dir=tfds")
    ids = "helpful-online-train[1-]-0 helpful-online-train[1-]-1"
    assert (workplace / "work/reading/ids.txt").read_text() == ids
    manifest = artifact.read_manifest(workplace / "work/reading")
    assert manifest["inputs"]["prompts"]["reference"] == reference
    capsys.readouterr()
    run("--config.data.tfds_dir=tfds")
    assert "(finished before)" in capsys.readouterr().out
    # Other data under the same name are other data.
    shutil.rmtree(workplace / "tfds")
    pairs(4)
    with pytest.raises(SystemExit):
        run("--config.data.tfds_dir=tfds")
    assert "the content of inputs.prompts (tfds:hh_rlhf/helpful" in capsys.readouterr().err
