"""The shape of a transformer and how it is computed."""

import dataclasses

from cai_jax.errors import InputError

DTYPES = ("float32", "bfloat16")
REMATS = ("none", "dots", "layer")
CHOICES = {
    "activation": ("silu", "gelu", "gelu_tanh"),
    "norm": ("rms", "layer"),
    "norms": ("before", "after", "both"),
    "query_key_norm": ("none", "head", "all_heads"),
    "dtype": DTYPES,
    "remat": REMATS,
    "attention": ("", "plain", "splash", "cudnn"),
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the rotary frequencies are slowed down, for texts longer than those of pretraining."""

    kind: str  # "linear", "llama3" or "yarn"; see models/rotary.py
    factor: float
    original_positions: int = 0  # of pretraining; llama3 and yarn
    low_frequency: float = 1.0  # llama3: turns in original_positions, up to which all is slowed
    high_frequency: float = 4.0  # llama3: turns from which nothing is
    beta_fast: float = 32.0  # yarn: turns from which nothing is
    beta_slow: float = 1.0  # yarn: turns up to which all is slowed
    truncate: bool = True  # yarn: whether the range between the two is widened to whole dims
    attention_factor: float = 1.0  # yarn: on rotated queries and on rotated keys


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Hashable: a static argument of jit. The defaults are Llama's.

    The first groups are the model and are written to `config.json`; the last is how it is computed
    here, and changes no parameter.
    """

    vocab_size: int  # V
    width: int  # D
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K; N is a multiple of it
    head_dim: int  # H; need not be D / N
    hidden: int  # F
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied_embeddings: bool = True
    max_positions: int = 2048

    # Which names and options of the outside world these are; see models/families/.
    family: str = "llama"

    # The embedding.
    learned_positions: bool = False  # added to the embedding [max_positions, D]; no rotation
    scaled_embeddings: bool = False  # times D^0.5, rounded to the compute dtype
    logits_soft_cap: float | None = None  # c: logits are c tanh(x / c)

    # The norms.
    norm: str = "rms"  # "layer": mean and variance, with a bias
    unit_offset: bool = False  # norms scale by 1 + their parameter
    norms: str = "before"  # of attention and MLP; "after", or "both"
    parallel_residual: bool = False  # attention and MLP read the same residual stream

    # Attention.
    qkv_bias: bool = False
    out_bias: bool = False
    query_key_norm: str = "none"  # "head": over H with one scale; "all_heads": over N and H
    query_scalar: float | None = None  # queries are divided by its root; None: by that of H
    attention_soft_cap: float | None = None
    rotary_fraction: float = 1.0  # of the head dims, the first ones
    rope_scaling: RopeScaling | None = None
    window: int | None = None  # W: windowed layers see the last W positions, their own included
    windowed_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None  # of the windowed layers, never scaled; None: rope_theta

    # The MLP.
    activation: str = "silu"
    gated: bool = True
    mlp_bias: bool = False

    dtype: str = "float32"  # of activations and caches; norms, softmax and logits are float32
    # What of a layer the backward pass computes again: "layer" all, "dots" all but the products
    # with weights, which are kept.
    remat: str = "none"
    # What computes attention, where it can: "splash", "cudnn", "plain", or "": what the platform
    # has; see models/attention_kernels.py.
    attention: str = ""
    scan_unroll: int = 0  # layers unrolled in the loop over layers; 0: all on a CPU or one GPU
    # Positions of a row whose logits a loss holds at a time; 0: few on a CPU, to stay in its cache,
    # else 2048, since devices exchange gradients of the unembedding with every piece.
    loss_positions: int = 0

    def __post_init__(self):
        """Refuses shapes that no model can have."""
        for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden"):
            if getattr(self, field) < 1:
                raise InputError(
                    f"model {field}: expected at least 1, found {getattr(self, field)}"
                )
        if self.heads % self.kv_heads:
            raise InputError(
                f"model heads: expected a multiple of kv_heads = {self.kv_heads}, "
                f"found {self.heads}"
            )
        if self.rotary_dim % 2:
            name = "head_dim" if self.rotary_fraction == 1 else "rotary_dim"
            raise InputError(f"model {name}: expected an even number, found {self.rotary_dim}")
        for field, choices in CHOICES.items():
            found = getattr(self, field)
            if found not in choices:
                raise InputError(f"model {field}: expected {' or '.join(choices)}, found {found!r}")
        if self.windowed_layers and (self.window or 0) < 1:
            raise InputError(f"model window: expected at least 1, found {self.window}")

    @property
    def groups(self) -> int:
        """G: query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def rotary_dim(self) -> int:
        """R: the leading dims of a head that are rotated; 0 with learned positions."""
        return 0 if self.learned_positions else int(self.head_dim * self.rotary_fraction)

    @property
    def mixed_layers(self) -> bool:
        """Whether some layers are windowed and others are not."""
        return 0 < len(self.windowed_layers) < self.layers
