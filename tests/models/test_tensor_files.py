"""The safetensors format, against the library of that name."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cai_jax.models import tensor_files
from cai_jax.models.tensor_files import Outgoing


@pytest.mark.parametrize(
    ("name", "dtype"), [("F32", np.float32), ("BF16", ml_dtypes.bfloat16), ("F16", np.float16)]
)
def test_files_are_those_of_the_library(tmp_path, name, dtype):
    rng = np.random.default_rng(0)
    shapes = {"b.é": (3, 5), "a": (7,), "c.0": (2, 1, 3), "c.10": (1,), "c.2": (4,)}
    arrays = {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    # Whatever order, layout or dtype it is given in.
    outgoing = [
        Outgoing(key, name, array.shape, lambda array=array: np.asfortranarray(array))
        for key, array in arrays.items()
    ]
    tensor_files.write(tmp_path / "ours", outgoing)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    loaded, found = load_file(tmp_path / "ours"), tensor_files.contents(tmp_path / "ours")
    assert loaded.keys() == found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert loaded[key].tobytes() == array.tobytes()
        assert found[key].dtype == name
        assert found[key].mapped().tobytes() == array.tobytes()


def test_one_tensor_at_a_time_is_in_memory(tmp_path):
    held = []

    def read(number):
        held.append(number)
        assert (tmp_path / "file").stat().st_size >= 0  # the file is begun before the first
        return np.full(3, number, np.float32)

    outgoing = [Outgoing(str(i), "F32", (3,), lambda i=i: read(i)) for i in range(4)]
    assert held == []
    tensor_files.write(tmp_path / "file", outgoing)
    assert held == [0, 1, 2, 3]
    assert load_file(tmp_path / "file")["2"].tolist() == [2, 2, 2]


def test_a_tensor_of_another_shape_is_never_written(tmp_path):
    outgoing = [Outgoing("a", "F32", (3,), lambda: np.zeros(4, np.float32))]
    with pytest.raises(ValueError, match="tensor a"):
        tensor_files.write(tmp_path / "file", outgoing)


# An embedding whose rows are pages of memory; its second half is cut off once it is mapped, and
# what is read of that is an error of the bus.
READ_A_PART = """
import os, sys
import numpy as np
from pathlib import Path
from cai_jax.models import families, tensor_files, weights
from cai_jax.models.config import ModelConfig
config = ModelConfig(
    vocab_size=64, width=1024, layers=1, heads=2, kv_heads=2, head_dim=2, hidden=4
)
tensor = families.tensors(config, False)[0]
assert tensor.paths == (("embedder", "embedding"),)
file, start, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
file.write_bytes(bytes(64 * 4096))
stored = tensor_files.Stored(file, "F32", (64, 1024), 0)
mapped = stored.mapped()
tensor_files.Stored.mapped = lambda self: mapped
os.truncate(file, 32 * 4096)
leaf = weights._Leaf(tensor, 0, (64, 1024), (stored,))
index = (slice(start, stop), slice(0, 1024))
part = weights._read(leaf, config, np.dtype("float32"), index)
assert part.shape == (stop - start, 1024) and (part == 0).all()
"""


@pytest.mark.parametrize(("start", "stop", "code"), [(0, 32, 0), (8, 24, 0), (16, 48, -7)])
def test_only_the_bytes_of_a_part_are_read(tmp_path, start, stop, code):
    program = [sys.executable, "-c", READ_A_PART, str(tmp_path / "half"), str(start), str(stop)]
    done = subprocess.run(program, capture_output=True, timeout=60, text=True)
    assert done.returncode == code, done.stderr
