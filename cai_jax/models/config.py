"""The shape of a transformer and how it is computed."""

import dataclasses

from cai_jax.errors import InputError

DTYPES = ("float32", "bfloat16")
REMATS = ("none", "dots", "layer")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer of the Llama kind. Hashable: a static argument of jit.

    The first group is the model and is written to `config.json`; the second is how it is computed
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

    dtype: str = "float32"  # of activations and caches; norms, softmax and logits are float32
    # What of a layer the backward pass computes again: "layer" all, "dots" all but the products
    # with weights, which are kept.
    remat: str = "none"
    scan_unroll: int = 0  # layers unrolled in the loop over layers; 0: all on CPU, else one

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
        if self.head_dim % 2:
            raise InputError(f"model head_dim: expected an even number, found {self.head_dim}")
        if self.dtype not in DTYPES:
            raise InputError(f"model dtype: expected {' or '.join(DTYPES)}, found {self.dtype!r}")
        if self.remat not in REMATS:
            raise InputError(f"model remat: expected {' or '.join(REMATS)}, found {self.remat!r}")

    @property
    def groups(self) -> int:
        """G: query heads that share one key/value head."""
        return self.heads // self.kv_heads
