"""Model families: how the world names what `models/transformer.py` computes.

A family is a table of tensors and two translations of `config.json`. What the table does not know
is refused by name, never ignored: an option that is read and not obeyed gives wrong numbers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cai_jax.errors import InputError
from cai_jax.models.config import DTYPES, ModelConfig

CAUSAL_LM = "LlamaForCausalLM"
PREFERENCE_MODEL = "LlamaForSequenceClassification"


class Tensor(NamedTuple):
    """One tensor of a file, and the arrays of the params tree that it holds: one, or several.

    Axes are letters; a group of letters in `file_axes` is one axis of the file, their product. The
    letter P counts the arrays of a tensor that holds several, all of the shape `axes`.
    """

    paths: tuple[tuple[str, ...], ...]  # below the root of params; "layers" have L in front
    name: str  # "{layer}" stands for the number of the layer
    file_axes: tuple[str, ...]
    axes: str

    @property
    def stacked(self) -> bool:
        """Whether the params tree has all layers in one array."""
        return self.paths[0][0] == "layers"


LLAMA = (
    Tensor((("embedder", "embedding"),), "model.embed_tokens.weight", ("V", "D"), "VD"),
    *(
        Tensor((("layers", *path),), f"model.layers.{{layer}}.{name}.weight", file_axes, axes)
        for path, name, file_axes, axes in (
            (("attention_norm", "scale"), "input_layernorm", ("D",), "D"),
            (("attention", "query"), "self_attn.q_proj", ("NH", "D"), "DNH"),
            (("attention", "key"), "self_attn.k_proj", ("KH", "D"), "DKH"),
            (("attention", "value"), "self_attn.v_proj", ("KH", "D"), "DKH"),
            (("attention", "out"), "self_attn.o_proj", ("D", "NH"), "NHD"),
            (("mlp_norm", "scale"), "post_attention_layernorm", ("D",), "D"),
            (("mlp", "gate"), "mlp.gate_proj", ("F", "D"), "DF"),
            (("mlp", "up"), "mlp.up_proj", ("F", "D"), "DF"),
            (("mlp", "down"), "mlp.down_proj", ("D", "F"), "FD"),
        )
    ),
    Tensor((("final_norm", "scale"),), "model.norm.weight", ("D",), "D"),
)
UNEMBEDDER = Tensor((("unembedder", "kernel"),), "lm_head.weight", ("V", "D"), "DV")
SCORE_HEAD = Tensor((("score_head", "kernel"),), "score.weight", ("1", "D"), "D")

# Options with one supported value; a folder that has another computes something else.
SUPPORTED: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "sliding_window": None,
}


def tensors(config: ModelConfig, preference_model: bool) -> tuple[Tensor, ...]:
    """The tensors of a causal LM or of a preference model of this shape."""
    if preference_model:
        return (*LLAMA, SCORE_HEAD)
    return LLAMA if config.tied_embeddings else (*LLAMA, UNEMBEDDER)


def known_name(name: str, config: ModelConfig) -> str:
    """The name in the table of `tensors` of what a file calls `name`."""
    return name


def is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor of a file that is not in the table carries nothing that the model needs."""
    # Old Llama files hold the frequencies; tied and classifying ones may hold a second unembedding.
    return name.endswith("rotary_emb.inv_freq") or name == UNEMBEDDER.name


def file_shape(tensor: Tensor, config: ModelConfig) -> tuple[int, ...]:
    """The shape of (one layer of) `tensor` in a file."""
    sizes = _sizes(tensor, config)
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in tensor.file_axes)


def params_shape(tensor: Tensor, config: ModelConfig) -> tuple[int, ...]:
    """The shape of (one layer of) each array of `tensor` in the params tree."""
    return tuple(_sizes(tensor, config)[letter] for letter in tensor.axes)


def from_file(tensor: Tensor, array: np.ndarray, config: ModelConfig) -> tuple[np.ndarray, ...]:
    """One layer of a tensor of a file as arrays for `tensor.paths`: views, if they can be."""
    sizes, letters = _sizes(tensor, config), _letters(tensor)
    array = array.reshape([sizes[letter] for letter in letters])
    array = array.transpose([letters.index(letter) for letter in "P" + tensor.axes])
    return tuple(array)


def to_file(tensor: Tensor, arrays: Sequence[np.ndarray], config: ModelConfig) -> np.ndarray:
    """One layer of a tensor of a file, from the arrays of `tensor.paths`."""
    letters = _letters(tensor)
    array = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
    array = array.transpose([("P" + tensor.axes).index(letter) for letter in letters])
    return np.ascontiguousarray(array.reshape(file_shape(tensor, config)))


def _letters(tensor: Tensor) -> str:
    """The axes of a file's tensor, one by one, with P among them."""
    letters = "".join(tensor.file_axes).replace("1", "")
    return letters if "P" in letters else "P" + letters


def _sizes(tensor: Tensor, config: ModelConfig) -> dict[str, int]:
    return {
        "P": len(tensor.paths),
        "V": config.vocab_size,
        "D": config.width,
        "N": config.heads,
        "K": config.kv_heads,
        "H": config.head_dim,
        "F": config.hidden,
        "1": 1,
    }


def read_config(values: Mapping[str, Any], where: str) -> tuple[ModelConfig, bool]:
    """Translates a `config.json`, and says whether it is a preference model's.

    Args:
        values: the parsed file.
        where: its path, for messages.

    Raises:
        InputError: another architecture, or an option that this model does not compute.
    """
    architectures = values.get("architectures") or ["none"]
    if not isinstance(architectures, list):
        raise InputError(f"{where}: architectures: expected a list, found {architectures!r}")
    if architectures[0] not in (CAUSAL_LM, PREFERENCE_MODEL):
        raise InputError(
            f"{where}: architectures: expected {CAUSAL_LM} or {PREFERENCE_MODEL} (one label), "
            f"found {architectures[0]}; only the Llama family is known (cai_jax/models/families.py)"
        )
    preference_model = architectures[0] == PREFERENCE_MODEL
    for option in ("rope_parameters", "rope_scaling", "id2label"):
        if not isinstance(values.get(option) or {}, dict):
            raise InputError(f"{where}: {option}: expected an object, found {values[option]!r}")
    rope = values.get("rope_parameters") or {}
    options = dict(values)
    if _is_default_rope(options.get("rope_scaling")):
        options["rope_scaling"] = None
    for option, supported in SUPPORTED.items():
        found = options.get(option, supported)
        if found is None and option in ("pretraining_tp", "partial_rotary_factor"):
            continue
        if found != supported:
            raise _unsupported(where, option, supported, found)
    if not _is_default_rope(rope):
        raise _unsupported(where, "rope_parameters.rope_type", "default", rope.get("rope_type"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(
            where, "rope_parameters.partial_rotary_factor", 1.0, rope["partial_rotary_factor"]
        )
    if preference_model:
        labels = len(values.get("id2label") or ()) or values.get("num_labels", 2)
        if labels != 1:
            raise _unsupported(where, "num_labels (id2label)", 1, labels)

    def whole(option: str, default: int | None = None) -> int:
        found = values.get(option)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool):
            raise InputError(f"{where}: {option}: expected a whole number, found {found!r}")
        return found

    def positive(option: str, found: Any) -> float:
        if not isinstance(found, int | float) or isinstance(found, bool) or not found > 0:
            raise InputError(f"{where}: {option}: expected a positive number, found {found!r}")
        return float(found)

    theta = rope.get("rope_theta", values.get("rope_theta"))
    epsilon = values.get("rms_norm_eps")
    width, heads = whole("hidden_size"), whole("num_attention_heads")
    config = ModelConfig(
        vocab_size=whole("vocab_size"),
        width=width,
        layers=whole("num_hidden_layers"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", heads),
        head_dim=whole("head_dim", width // max(heads, 1)),
        hidden=whole("intermediate_size"),
        rope_theta=positive("rope_theta", 10_000.0 if theta is None else theta),
        norm_eps=positive("rms_norm_eps", 1e-6 if epsilon is None else epsilon),
        tied_embeddings=bool(values.get("tie_word_embeddings", False)),
        max_positions=whole("max_position_embeddings", 2048),
        dtype=_dtype(values),
    )
    return config, preference_model


def write_config(
    config: ModelConfig, preference_model: bool, special_tokens: Mapping[str, int | None]
) -> dict[str, Any]:
    """The `config.json` of a model, readable by `transformers` 4 and 5."""
    values: dict[str, Any] = {
        "architectures": [PREFERENCE_MODEL if preference_model else CAUSAL_LM],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.hidden,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_positions,
        "dtype": config.dtype,
    }
    if preference_model:
        values |= {"id2label": {"0": "score"}, "label2id": {"score": 0}}
    return values | {f"{name}_token_id": special_tokens.get(name) for name in ("bos", "eos", "pad")}


def _is_default_rope(rope: Any) -> bool:
    return not rope or rope.get("rope_type", rope.get("type", "default")) == "default"


def _dtype(values: Mapping[str, Any]) -> str:
    """The compute dtype: the file's where we have it, else float32."""
    found = values.get("dtype", values.get("torch_dtype"))
    return found if found in DTYPES else "float32"


def _unsupported(where: str, option: str, supported: Any, found: Any) -> InputError:
    return InputError(
        f"{where}: {option}: only {supported!r} is supported, found {found!r}; "
        "the model would compute something else"
    )
