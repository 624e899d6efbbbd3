import hashlib
import json

import pytest

from cai_jax.core import artifact
from cai_jax.errors import InputError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_folder_is_finished_by_its_manifest_and_by_that_alone(tmp_path):
    (tmp_path / "text.jsonl").write_text("{}\n")
    assert not artifact.is_finished(tmp_path)
    assert artifact.read_manifest(tmp_path) is None
    artifact.write_manifest(tmp_path, {"kind": "finetune", "records": 3})
    assert artifact.is_finished(tmp_path)
    assert artifact.read_manifest(tmp_path) == {"kind": "finetune", "records": 3}


def test_a_path_that_is_a_file_or_missing_has_no_manifest(tmp_path):
    (tmp_path / "file").write_text("x")
    assert artifact.read_manifest(tmp_path / "file") is None
    assert artifact.read_manifest(tmp_path / "missing") is None


@pytest.mark.parametrize("text", ["{", "[1]", '"finished"', "\udcff"])
def test_a_manifest_that_cannot_be_read_is_refused_by_name(tmp_path, text):
    path = tmp_path / artifact.MANIFEST
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="manifest.json: expected .* remove it"):
        artifact.read_manifest(tmp_path)


def test_what_cannot_be_written_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "summary.json"
    artifact.write_json(path, {"loss": 1.5, "text": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "loss": 1.5,\n  "text": "é"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        artifact.write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 1.5, "text": "é"}


def test_a_written_file_leaves_no_partial_one(tmp_path):
    artifact.write_json(tmp_path / "summary.json", {})
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_hashes_are_those_of_the_bytes_by_relative_name(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    (tmp_path / "a.jsonl").write_bytes(b"one\n")
    artifact.write_manifest(tmp_path, {"kind": "finetune"})
    (tmp_path / "model" / artifact.MANIFEST).write_bytes(b"not ours")
    hashes = artifact.file_hashes(tmp_path)
    assert list(hashes.items()) == [
        ("a.jsonl", sha256(b"one\n")),
        ("model/config.json", sha256(b"{}")),
        ("model/manifest.json", sha256(b"not ours")),
    ]
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    assert artifact.combined_hash(hashes) == sha256(lines.encode())
    assert artifact.fingerprint(tmp_path) == artifact.combined_hash(hashes)
    assert artifact.fingerprint(tmp_path / "a.jsonl") == sha256(b"one\n")


def test_a_combined_hash_knows_names_and_contents_but_no_order():
    first = artifact.combined_hash({"a": "1", "b": "2"})
    assert artifact.combined_hash({"b": "2", "a": "1"}) == first
    assert artifact.combined_hash({"a": "2", "b": "1"}) != first
    assert artifact.combined_hash({"a": "1", "c": "2"}) != first
