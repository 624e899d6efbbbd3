"""Models on disk: what a model reference means, and how a step's model is saved and loaded.

A reference is a Hugging Face folder, a finished step of a workdir, "sandbox:models/<name>" for a
model that ships with the package, or, where there is no such path, an id of the hub ("org/name"),
which without a network is taken from the hub's local cache. "STEP@40" is the model that a finished
step kept after iteration 40. A step holds its model in `model/`:
`params/` (Orbax), `config.json` (as Hugging Face writes it) and the tokenizer's files.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cai_jax import hosts
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    from jax.sharding import Mesh

    from cai_jax.models.language_model import LanguageModel

SANDBOX = "sandbox:"
MODEL = "model"  # a step's folder for its model
PARAMS = "params"  # in it, the Orbax checkpoint
SNAPSHOTS = "snapshots"  # its folder for models along training
MANIFEST = "manifest.json"  # what a finished step has
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Of the hub's files: no pickle, no code, and nothing that only another program reads.
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "merges.txt")
NOT_HUB_FILES = ("*/*", "consolidated*")


def resolve(reference: str | Path) -> Path:
    """The path that a reference means; "sandbox:..." is looked up in the package's data.

    Raises:
        InputError: there is no such file or folder.
    """
    name = str(reference)
    if name.startswith(SANDBOX):
        path = Path(str(importlib.resources.files("cai_jax.sandbox"))) / "data"
        path = path / name.removeprefix(SANDBOX)
        if not path.exists():
            have = sorted(p.name for p in path.parent.glob("*")) or ["nothing there"]
            raise InputError(f"{name}: no such file in the package; found {', '.join(have)}")
        return path
    path = Path(name)
    if not path.exists():
        raise InputError(f"{name}: expected a file or folder, found none; check the path")
    return path


def model_folder(reference: str | Path) -> Path:
    """The folder that holds a referenced model's config, weights and tokenizer.

    Raises:
        InputError: no such folder, an unfinished step, or a step without a model.
    """
    name = str(reference)
    step, number = split_snapshot(name)
    if number is not None and not Path(name).exists():
        return snapshot_folder(Path(step), number)
    if not Path(name).exists() and HUB_ID.fullmatch(name):
        return _from_hub(name)
    path = resolve(reference)
    if not path.is_dir():
        raise InputError(f"{name}: expected a model folder or a finished step, found a file")
    if (path / "config.json").is_file():
        return path
    finished = (path / MANIFEST).is_file()
    if (path / MODEL).is_dir() and not finished:
        raise InputError(f"{name}: unfinished step (no {MANIFEST}); run it to its end first")
    if finished and not (path / MODEL / "config.json").is_file():
        raise InputError(f"{name}: this step makes no model; name one that has {MODEL}/")
    return path / MODEL if finished else path


def snapshot_name(number: int) -> str:
    """Where in a step's folder its model after iteration `number` is."""
    return f"{SNAPSHOTS}/step-{number:04d}"


def split_snapshot(reference: str) -> tuple[str, int | None]:
    """("STEP", 40) of "STEP@40"; (reference, None) of any other."""
    step, at, number = reference.rpartition("@")
    return (step, int(number)) if at and number.isdecimal() else (reference, None)


def snapshot_folder(step: Path, number: int) -> Path:
    """The folder of the model that a finished step kept after iteration `number`.

    Raises:
        InputError: the step is not finished, or kept no such model.
    """
    if not (step / MANIFEST).is_file():
        raise InputError(f"{step}@{number}: expected a finished step {step}, found none")
    folder = step / snapshot_name(number)
    if not folder.is_dir():
        there = [int(path.name.removeprefix("step-")) for path in (step / SNAPSHOTS).glob("step-*")]
        raise InputError(
            f"{step}@{number}: no such model; this step kept those after iterations "
            f"{', '.join(map(str, sorted(there))) or '(none: set its snapshot_every)'}"
        )
    return folder


def load_model(
    reference: str | Path, mesh: Mesh | None = None, dtype: str | None = None
) -> LanguageModel:
    """Loads a model and its tokenizer.

    Args:
        reference: see the top of this file.
        mesh: where to put the params, by the table of `core/sharding.py`; None: default device.
        dtype: of the params: "float32", for training; None: the one in which a language model
            computes, since decoding reads all of them for each token. A preference model's are
            then float32, so that a score is the same wherever it is read.

    Returns:
        The model with its params on devices. A preference model's have a `score_head`.

    Raises:
        InputError: the reference means no model, or one that this package cannot compute.
    """
    import jax

    from cai_jax.core import checkpoint, sharding
    from cai_jax.data.tokenization import load_tokenizer
    from cai_jax.models import weights
    from cai_jax.models.language_model import LanguageModel

    folder = model_folder(reference)
    place = None if mesh is None else lambda tree: sharding.tree_shardings(tree, mesh)
    config, preference_model = weights.read_config(folder)
    dtype = dtype or ("float32" if preference_model else config.dtype)
    if not (folder / PARAMS).is_dir():
        config, params = weights.read_folder(folder, place, dtype)
        return LanguageModel(config, params, load_tokenizer(folder))

    abstract = abstract_params(config, preference_model, dtype)
    if place is not None:
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            abstract,
            place(abstract),
        )
    return LanguageModel(
        config, checkpoint.restore(folder / PARAMS, abstract), load_tokenizer(folder)
    )


def in_format(model: LanguageModel, name: str) -> LanguageModel:
    """The model with the tokenizer of a dialogue format of `text/formats.py`.

    Raises:
        InputError: the format is "chat", and the model has no chat template for it.
    """
    if name == "plain":
        return model
    try:
        return model._replace(tokenizer=model.tokenizer.in_format(name))
    except InputError as error:
        raise InputError(f"dialogue_format {name}: {error}") from None


def save_model(step_folder: Path, model: LanguageModel, name: str = MODEL) -> None:
    """Saves a model as `step_folder`/`name`, all hosts together; only a manifest finishes a step.

    A model whose params have a `score_head` is a preference model, and loses its unembedding. A
    policy that carries a value head must be saved without it.
    """
    from cai_jax.core import checkpoint
    from cai_jax.models import weights

    folder = Path(step_folder) / name
    params = dict(model.params)
    preference_model = "score_head" in params
    if preference_model:
        params.pop("unembedder", None)
    if hosts.is_first():
        folder.mkdir(parents=True)
        model.tokenizer.save(folder)
        special = special_tokens(model.tokenizer)
        weights.write_config(folder, model.config, preference_model, special)
    checkpoint.save(folder / PARAMS, params)


def export(reference: str | Path, folder: Path) -> None:
    """Writes a model into an existing folder as `transformers` reads it.

    No more than what is written is in memory, and on the host one tensor of it. The ids that end
    texts are those of the source's config.json: a model trained in the chat format ends its answers
    as its chat template does.

    Raises:
        InputError: as `load_model`.
    """
    from cai_jax.models import weights

    source = model_folder(reference)
    export_model(folder, load_model(reference), weights.read_special_tokens(source))


def export_model(
    folder: Path, model: LanguageModel, special: Mapping[str, Any] | None = None
) -> None:
    """Writes a model into an existing folder as `transformers` reads it, tokenizer included.

    Args:
        folder: where to.
        model: what to write.
        special: ids under "bos", "eos" and "pad", which go before those of the tokenizer.
    """
    from cai_jax.models import weights

    special = special_tokens(model.tokenizer) | dict(special or {})
    weights.write_folder(folder, model.config, model.params, special)
    model.tokenizer.save(folder)


def special_tokens(tokenizer: Any) -> dict[str, int | None]:
    """The ids that `config.json` names."""
    return {name: getattr(tokenizer, f"{name}_id", None) for name in ("bos", "eos", "pad")}


def abstract_params(config: Any, preference_model: bool, dtype: str = "float32") -> Any:
    """Shapes, with the dtype, of the params of a causal LM or of a preference model."""
    import jax

    from cai_jax.models import transformer

    def init(key):
        params = transformer.init_params(config, key)
        if preference_model:
            params.pop("unembedder", None)
            params = transformer.add_score_head(params, config)
        return params

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype),
        jax.eval_shape(init, jax.random.key(0)),
    )


def _from_hub(name: str) -> Path:
    """A model of the hub, downloaded; of the local cache, where the hub cannot be asked."""
    from huggingface_hub import snapshot_download

    download = functools.partial(
        snapshot_download,
        name,
        allow_patterns=list(HUB_FILES),
        ignore_patterns=list(NOT_HUB_FILES),
    )
    try:
        return Path(download())
    except Exception as error:  # the client has many error types; all mean the same here
        reason = str(error).strip().split("\n")[0]
    try:
        return Path(download(local_files_only=True))
    except Exception:
        raise InputError(
            f"{name}: no such folder here, and not readable as an id of the hub, of which there is "
            f"no copy in the local cache either: {reason}"
        ) from None
