"""Who may import whom, what a command may load before it works, and what nobody may import."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cai_jax"

# Packages that stand below the stages; which of the others each may import.
LOWER = {
    "algorithms": set(),
    "models": set(),
    "generation": {"models"},
    "data": set(),
    "text": set(),
    "core": set(),
    "page": set(),
    "sandbox": {"text"},
}
# What everybody may know: the error of a user's mistake, and which host this is.
FOR_ALL = ("cai_jax.errors", "cai_jax.hosts")
# Jobs that do not stand at the top: the world's is run as `python -m cai_jax.sandbox.build`.
JOBS_ELSEWHERE = {"cai_jax.sandbox.build"}
SLOW_TO_IMPORT = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "transformers", "tokenizers", "safetensors"),
    *("grain", "tensorflow_datasets", "huggingface_hub"),
}
FORBIDDEN = {"tensorflow", "pickle", "torch", "cloudpickle", "dill", "joblib"}
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}
DISTRIBUTIONS = {"orbax": "orbax_checkpoint"}


def modules(package: Path) -> dict[str, ast.Module]:
    """Every module below `package`, by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imported(tree: ast.AST, on_loading: bool) -> Iterator[str]:
    """Names that a module imports, `from a import b` as "a.b"; or those while it is loaded only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written out from cai_jax"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif on_loading and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif on_loading and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from (name for part in node.orelse for name in imported(part, on_loading))
        else:
            yield from imported(node, on_loading)


def edges(trees: dict[str, ast.Module], on_loading: bool = False) -> dict[str, set[str]]:
    """Module -> the modules of the project that it imports."""

    def module(name: str) -> str | None:
        return next((n for n in (name, name.rpartition(".")[0]) if n in trees), None)

    return {
        name: {found for i in imported(tree, on_loading) if (found := module(i))} - {name}
        for name, tree in trees.items()
    }


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """All modules that importing `start` loads, itself included."""
    found, waiting = {start}, [start]
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def layer(name: str) -> str:
    """ "algorithms", ..., "stages", or "" for a module at the top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in {*LOWER, "stages"} else ""


def misplaced(graph: dict[str, set[str]]) -> list[str]:
    """Imports that go up, or sideways where that is not allowed."""
    wrong = []
    for name, targets in graph.items():
        for target in targets - {"cai_jax", *FOR_ALL}:
            here, there = layer(name), layer(target)
            if name in JOBS_ELSEWHERE or not here:
                # checkpoints.py serves the stages: it may not know them, nor the commands.
                bad = name == "cai_jax.checkpoints" and there not in LOWER
            elif here == "stages":
                bad = there not in LOWER and target not in ("cai_jax.checkpoints", "cai_jax.stages")
            else:
                bad = there not in LOWER[here] | {here} or target in JOBS_ELSEWHERE
            wrong += [f"{name} imports {target}"] * bad
    return sorted(wrong)


def readers_of_the_truth(graph: dict[str, set[str]]) -> set[str]:
    """Modules outside the sandbox from which the oracle can be reached."""
    return {
        name
        for name in graph
        if layer(name) != "sandbox" and "cai_jax.sandbox.oracle" in reached(name, graph)
    }


@pytest.fixture(scope="module")
def trees():
    return modules(PACKAGE)


def test_imports_go_down_and_packages_keep_to_themselves(trees):
    assert misplaced(edges(trees)) == []


def test_the_oracle_is_out_of_reach_of_every_step_but_evaluation_and_the_worlds_people(trees):
    # human_labels stands for crowdworkers: its labels train the baselines, as people's do.
    readers = {"cai_jax.stages.evaluate", "cai_jax.stages.human_labels"}
    assert readers_of_the_truth(edges(trees)) == readers


def test_the_walk_finds_what_it_is_there_to_find(tmp_path):
    sources = {
        "text/a.py": "from cai_jax.core import b",
        "core/b.py": "def f():\n    from cai_jax.stages.c import run",
        "stages/c.py": "import cai_jax.stages.d\nfrom cai_jax import checkpoints",
        "stages/d.py": "from cai_jax.sandbox import judge",
        "sandbox/judge.py": "from cai_jax.sandbox.oracle import f\nfrom cai_jax.text import a",
        "sandbox/oracle.py": "",
        "generation/g.py": "from cai_jax.models.m import f\nfrom cai_jax.errors import InputError",
        "models/m.py": "from cai_jax.generation import g",
        "checkpoints.py": "from cai_jax.run import main",
        "run.py": "from cai_jax import stages",
        "errors.py": "",
    }
    for name, source in sources.items():
        path = tmp_path / "cai_jax" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    graph = edges(modules(tmp_path / "cai_jax"))
    assert misplaced(graph) == [
        "cai_jax.checkpoints imports cai_jax.run",
        "cai_jax.core.b imports cai_jax.stages.c",
        "cai_jax.models.m imports cai_jax.generation.g",
        "cai_jax.stages.c imports cai_jax.stages.d",
        "cai_jax.text.a imports cai_jax.core.b",
    ]
    assert readers_of_the_truth(graph) == {
        "cai_jax.stages.c",
        "cai_jax.stages.d",
        "cai_jax.core.b",
        "cai_jax.text.a",
    }
    assert edges(modules(tmp_path / "cai_jax"), on_loading=True)["cai_jax.core.b"] == set()


def test_commands_and_steps_load_nothing_slow_before_they_work(trees):
    graph = edges(trees, on_loading=True)
    tops = [name for name in trees if layer(name) in ("", "stages") or name in JOBS_ELSEWHERE]
    assert len(tops) > 10
    slow = {
        f"{top}: {module} imports {name}"
        for top in tops
        for module in reached(top, graph)
        for name in imported(trees[module], on_loading=True)
        if name.split(".")[0] in SLOW_TO_IMPORT
    }
    assert slow == set()


JOBS = sorted(
    name
    for name, tree in modules(PACKAGE).items()
    if '__name__ == "__main__"' in ast.unparse(tree).replace("'", '"')
)


@pytest.mark.parametrize("job", JOBS)
def test_help_is_printed_without_jax(job):
    # Seconds depend on the machine; what is loaded does not.
    script = (
        "import runpy, sys\n"
        f"sys.argv = [{job!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({job!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    print('status', stop.code)\n"
        f"print('loaded', sorted(set(sys.modules) & {SLOW_TO_IMPORT!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    *shown, status, loaded = done.stdout.splitlines()
    assert shown[0].startswith(f"usage: python -m {job}"), done.stdout + done.stderr
    assert (status, loaded) == ("status 0", "loaded []")


def test_every_job_of_the_contract_that_is_there_is_among_those_tested():
    assert {"cai_jax.run", "cai_jax.generate", "cai_jax.score", "cai_jax.report"} <= set(JOBS)


def test_nothing_imports_pickle_or_another_framework(trees):
    for name, tree in trees.items():
        roots = {found.split(".")[0] for found in imported(tree, on_loading=False)}
        assert not roots & FORBIDDEN, name


def test_what_is_imported_is_declared(trees):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.match(r"[\w.-]+", text).group().replace("-", "_") for text in project["dependencies"]
    }
    roots = {
        found.split(".")[0] for tree in trees.values() for found in imported(tree, on_loading=False)
    }
    others = roots - set(sys.stdlib_module_names) - {"cai_jax"}
    assert {DISTRIBUTIONS.get(name, name) for name in others} <= declared


def test_no_file_has_a_name_that_says_nothing():
    files = [path for top in ("cai_jax", "tests", "configs") for path in (ROOT / top).rglob("*.py")]
    assert len(files) > 50
    assert [str(path) for path in files if path.stem.strip("_") in EMPTY_NAMES] == []
