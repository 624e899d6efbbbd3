"""Exports of every family: read by `transformers` with every bit as it was."""

import pytest
import tiny_models
import torch
import transformers

from cai_jax import checkpoints, export
from cai_jax.core import artifact

# The first case of each family.
FAMILIES = dict(reversed(tiny_models.CASES.values()))


@pytest.mark.parametrize(
    ("preference_model", "dtype"),
    [(False, torch.float32), (False, torch.bfloat16), (True, torch.bfloat16)],
    ids=["language, float32", "language, bfloat16", "preference, bfloat16"],
)
@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_reads_the_same_bits(tmp_path, kind, preference_model, dtype):
    source, step, out = (tmp_path / name for name in ("source", "step", "out"))
    module = tiny_models.write_family(
        source, kind, preference_model=preference_model, **FAMILIES[kind]
    )
    module.to(dtype).save_pretrained(source)
    tiny_models.write_tokenizer(source)
    step.mkdir()
    checkpoints.save_model(step, checkpoints.load_model(source))
    artifact.write_manifest(step, {"kind": "finetune"})
    export.main([f"--checkpoint={step}", f"--out={out}"])
    auto = (
        transformers.AutoModelForSequenceClassification
        if preference_model
        else transformers.AutoModelForCausalLM
    )
    loaded, report = auto.from_pretrained(out, output_loading_info=True)
    assert not any(report.values())
    assert type(loaded) is type(module)
    expected = module.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded.state_dict()[name].dtype == dtype
        assert torch.equal(loaded.state_dict()[name], tensor), name
