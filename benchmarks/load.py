"""Peak host memory of loading a model folder, and how long it takes.

    python benchmarks/load.py [--devices=4] [--dtype=bfloat16]

writes a random Llama of 267 MB in four files, loads it in a process of its own, and prints one JSON
object. On CPU "device" memory is host memory, so that the params count: the bound is the process
before loading, the params, and one tensor. `holds` says whether the peak stayed below it.

Measured on two cores, in MB above the process before loading:

    devices  dtype     params  largest tensor  bound   peak  seconds
    1        float32    266.9            65.5  332.4  292.9      1.1
    4        float32    266.9            65.5  332.4  292.9      1.4
    4        bfloat16   133.5            65.5  199.0  140.6      1.3
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Runs the benchmark; `--folder` is for its own child process, which measures."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--devices", type=int, default=1, help="simulated: fsdp, then 2 for tensor")
    flags.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    flags.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.folder is not None:
        print(json.dumps(measure(args.folder, args.devices, args.dtype)))
        return
    with tempfile.TemporaryDirectory() as folder:
        sys.path.insert(0, str(ROOT))
        write_model(Path(folder))
        devices = f"--xla_force_host_platform_device_count={args.devices}"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": devices,
            "PYTHONPATH": str(ROOT),
            # What is freed goes back to the system at once: counted is what is held.
            "MALLOC_MMAP_THRESHOLD_": "65536",
        }
        subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], f"--folder={folder}"],
            env=environment,
            check=True,
        )


def write_model(folder: Path) -> None:
    """A random Llama: 12 layers of 16.8 MB, and an embedding of 65.5 MB."""
    import numpy as np

    from cai_jax.models import families, weights
    from cai_jax.models.config import ModelConfig

    config = ModelConfig(
        vocab_size=32_000, width=512, layers=12, heads=8, kv_heads=8, head_dim=64, hidden=2048
    )
    rng = np.random.default_rng(0)
    params: dict = {}
    for tensor in families.tensors(config, False):
        shape = families.params_shape(tensor, config)
        shape = (config.layers, *shape) if tensor.stacked else shape
        node, [path] = params, tensor.paths
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = rng.standard_normal(shape, np.float32)
    weights.write_folder(folder, config, params, shard_bytes=70_000_000)


def measure(folder: Path, devices: int, dtype: str) -> dict:
    """Loads the folder, and gives memory in bytes and the time in seconds."""
    import jax
    from ml_collections import ConfigDict

    from cai_jax.core import mesh, sharding
    from cai_jax.models import tensor_files, weights

    tensor = 2 if devices % 2 == 0 else 1
    device_mesh = mesh.make_mesh(
        ConfigDict({"data": 1, "fsdp": devices // tensor, "tensor": tensor})
    )

    def load():
        place = lambda tree: sharding.tree_shardings(tree, device_mesh)  # noqa: E731
        return jax.block_until_ready(weights.read_folder(folder, place, dtype)[1])

    load()  # the programs are compiled before anything is measured ...
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # ... and what that took is given back
    files = sorted(folder.glob("*.safetensors"))
    stored = [found for file in files for found in tensor_files.contents(file).values()]
    baseline = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    start = time.perf_counter()
    params = load()
    seconds = time.perf_counter() - start
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    largest = max(found.mapped().nbytes for found in stored)
    bound = baseline + size + largest
    return {
        "devices": devices,
        "dtype": dtype,
        "files": len(files),
        "baseline_bytes": baseline,
        "params_bytes": size,
        "largest_tensor_bytes": largest,
        "peak_bytes": memory("VmHWM"),
        "bound_bytes": bound,
        "holds": memory("VmHWM") <= bound,
        "seconds": round(seconds, 3),
    }


def memory(name: str) -> int:
    """The most memory that this program had resident, mapped files included.

    Not `getrusage`: its number outlives `exec`, so that a child process begins with its parent's.
    """
    [line] = [
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    ]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
