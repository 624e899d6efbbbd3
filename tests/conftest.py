"""Settings of all tests: eight CPU devices to choose from, and little time spent on compiling."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Before jax is imported anywhere. A mesh of one device uses the first of them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    # Most programs here run once or twice: to optimise their machine code costs more than it saves,
    # a quarter of the time of all tests. What XLA makes of a program before that stays as it is.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
given = os.environ.get("XLA_FLAGS", "").split()
names = {flag.split("=")[0] for flag in given}
os.environ["XLA_FLAGS"] = " ".join(
    [*given, *(flag for flag in FLAGS if flag.split("=")[0] not in names)]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
# No test looks anything up.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
