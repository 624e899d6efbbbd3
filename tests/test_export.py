"""The export job: its folder is what `transformers` reads, whole or not there."""

import json
import os

import jax
import numpy as np
import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file

from cai_jax import checkpoints, export
from cai_jax.core import artifact

IDS = np.array([[5, 70, 200, 31, 8, 8, 100]])


@pytest.fixture(scope="module", params=[False, True], ids=["language", "preference"])
def case(request, tmp_path_factory):
    """A finished step with a model, the torch model of the same weights, and its class."""
    root = tmp_path_factory.mktemp("export")
    source, step = root / "source", root / "step"
    module = tiny_models.write_llama(source, preference_model=request.param)
    step.mkdir()
    checkpoints.save_model(step, checkpoints.load_model(source))
    artifact.write_manifest(step, {"kind": "finetune"})
    auto = (
        transformers.AutoModelForSequenceClassification
        if request.param
        else transformers.AutoModelForCausalLM
    )
    return step, module, auto


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        export.main(list(arguments))
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_transformers_loads_the_same_model(case, tmp_path):
    step, module, auto = case
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        export.main([f"--checkpoint={step}", f"--out={out}"])
        loaded, report = auto.from_pretrained(out, output_loading_info=True)
        assert not any(report.values())
        for name, tensor in module.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        with torch.no_grad():
            ids = torch.tensor(IDS)
            assert torch.equal(loaded(ids).logits, module(ids).logits)
        assert set(os.listdir(tmp_path)) <= {"empty", "new"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert tokenizer.decode(tokenizer("the Human\n\né")["input_ids"]) == "the Human\n\né"
    assert loaded.config.eos_token_id == tokenizer.eos_token_id == 1
    assert loaded.config.pad_token_id == tokenizer.pad_token_id == 0
    weights = tmp_path / "new" / "model.safetensors"
    assert weights.stat().st_mode == (tmp_path / "new" / "config.json").stat().st_mode


def test_export_of_an_export_is_the_same_files(case, tmp_path):
    step, _, _ = case
    export.main([f"--checkpoint={step}", f"--out={tmp_path / 'one'}"])
    export.main([f"--checkpoint={tmp_path / 'one'}", f"--out={tmp_path / 'two'}"])
    assert artifact.file_hashes(tmp_path / "one") == artifact.file_hashes(tmp_path / "two")


@pytest.mark.parametrize("preference_model", [False, True], ids=["language", "preference"])
def test_bfloat16_is_exported_bit_for_bit(tmp_path, preference_model):
    """From a folder, and from a step, which holds float32."""
    source, step = tmp_path / "source", tmp_path / "step"
    module = tiny_models.write_llama(source, preference_model=preference_model, num_hidden_layers=1)
    module.to(torch.bfloat16).save_pretrained(source)
    step.mkdir()
    checkpoints.save_model(step, checkpoints.load_model(source))
    artifact.write_manifest(step, {"kind": "finetune"})
    for number, reference in enumerate((source, step)):
        out = tmp_path / str(number)
        export.main([f"--checkpoint={reference}", f"--out={out}"])
        theirs, ours = (load_file(folder / "model.safetensors") for folder in (source, out))
        assert theirs.keys() == ours.keys()
        for name, tensor in theirs.items():
            assert tensor.dtype == ours[name].dtype == torch.bfloat16
            assert torch.equal(tensor, ours[name]), name


def test_the_end_of_an_answer_in_a_chat_is_kept(tmp_path):
    """A step in the chat format says in config.json where answers end, and so does its export."""
    source, step, out = (tmp_path / name for name in ("source", "step", "out"))
    tiny_models.write_llama(source, num_hidden_layers=1)
    tiny_models.write_tokenizer(source, chat=True)
    model = checkpoints.load_model(source)
    model.tokenizer.eos_id = 0  # as if the template ended answers with another token
    step.mkdir()
    checkpoints.save_model(step, model)
    artifact.write_manifest(step, {"kind": "finetune"})
    export.main([f"--checkpoint={step}", f"--out={out}"])
    assert transformers.AutoConfig.from_pretrained(out).eos_token_id == 0
    assert transformers.AutoTokenizer.from_pretrained(out).eos_token_id == 1
    assert "<assistant>" in transformers.AutoTokenizer.from_pretrained(out).chat_template


def test_bad_usage_is_one_line_and_writes_nothing(case, tmp_path, capsys):
    step, _, _ = case
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    out = f"--out={tmp_path / 'out'}"
    assert "expected a new or empty folder, found files" in refused(
        capsys, f"--checkpoint={step}", f"--out={taken}"
    )
    assert "found a file" in refused(capsys, f"--checkpoint={step}", f"--out={taken / 'mine.txt'}")
    assert "expected an existing folder" in refused(
        capsys, f"--checkpoint={step}", f"--out={tmp_path / 'no' / 'out'}"
    )
    assert "expected a file or folder, found none" in refused(capsys, "--checkpoint=/no/such", out)
    assert "--checkpoint" in refused(capsys, out)
    unfinished = tmp_path / "unfinished"
    (unfinished / "model").mkdir(parents=True)
    assert "unfinished step" in refused(capsys, f"--checkpoint={unfinished}", out)
    without = tmp_path / "without"
    without.mkdir()
    artifact.write_manifest(without, {"kind": "compare"})
    assert "makes no model" in refused(capsys, f"--checkpoint={without}", out)
    assert sorted(os.listdir(tmp_path)) == ["taken", "unfinished", "without"]
    assert (taken / "mine.txt").read_text() == "mine"


def test_an_export_that_fails_halfway_leaves_nothing(case, tmp_path, monkeypatch):
    step, _, _ = case

    def fail(folder, model, special):
        (folder / "config.json").write_text(json.dumps({}))
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "export_model", fail)
    (tmp_path / "out.partial").mkdir()  # of a job that was killed
    (tmp_path / "out.partial" / "old").touch()
    with pytest.raises(OSError, match="disk full"):
        export.main([f"--checkpoint={step}", f"--out={tmp_path / 'out'}"])
    assert os.listdir(tmp_path) == []


def test_a_step_reads_back_bit_for_bit(case):
    step, module, _ = case
    model = checkpoints.load_model(step)
    embedding = module.get_input_embeddings().weight.detach().numpy()
    assert np.array_equal(model.params["embedder"]["embedding"], embedding)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
