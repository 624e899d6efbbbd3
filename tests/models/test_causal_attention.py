"""Causal attention in blocks, and its own gradient, against the sum over keys written plainly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cai_jax.models import attention, causal_attention

B, K, G, H = 2, 2, 2, 8


def plain(queries, keys, values, bias):
    """Every query against every key, differentiated by jax."""
    logits = jnp.einsum("bkgth,bksh->bkgts", queries, keys) + bias[:, None, None]
    return jnp.einsum("bkgts,bksh->bkgth", jax.nn.softmax(logits, axis=-1), values)


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(function, inputs, direction):
    """What comes out, and the gradients of queries, keys and values."""
    out, back = jax.vjp(function, *inputs)
    return out, *back(direction)[:3]


def arrays(length):
    """Queries, keys, values, the bias of two packed documents and padding, and a direction."""
    rng = np.random.default_rng(length)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))  # noqa: E731
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (B, length)))[:, ::-1].copy())
    bias = attention.segment_bias(segments)
    queries = draw(B, K, G, length, H)
    return (queries, draw(B, K, length, H), draw(B, K, length, H), bias), draw(*queries.shape)


@pytest.mark.parametrize(("length", "blocks"), [(2, 1), (20, 1), (130, 1), (128, 4), (256, 4)])
def test_values_and_gradients_are_those_of_the_plain_sum(length, blocks):
    assert len(causal_attention._blocks(length, length)) == blocks
    inputs, direction = arrays(length)
    close = {"rtol": 1e-4, "atol": 2e-5}
    found = with_gradients(causal_attention.attend, inputs, direction)
    expected = with_gradients(plain, inputs, direction)
    for name, mine, other in zip(("out", "queries", "keys", "values"), found, expected):
        assert float(jnp.abs(other).max()) > 0.01, name
        np.testing.assert_allclose(mine, other, err_msg=name, **close)


def test_queries_of_the_last_positions_alone_see_all_before_them():
    (queries, keys, values, bias), direction = arrays(192)
    inputs = queries[:, :, :, -128:], keys, values, bias[:, -128:]
    found = with_gradients(causal_attention.attend, inputs, direction[:, :, :, -128:])
    expected = with_gradients(plain, inputs, direction[:, :, :, -128:])
    for mine, other in zip(found, expected):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=2e-5)


def test_no_product_looks_past_the_end_of_its_block():
    """Of 4 blocks the n-th sees n quarters of the keys: 10 of 16 parts are computed."""
    inputs, _ = arrays(128)
    program = jax.make_jaxpr(causal_attention.attend)(*inputs)
    sizes = [
        eqn.outvars[0].aval.size
        for eqn in program.jaxpr.eqns[0].params["call_jaxpr"].eqns
        if eqn.primitive.name == "exp"
    ]
    assert sum(sizes) == B * K * G * 128 * 128 * 10 // 16


def test_in_bfloat16_the_softmax_is_in_float32():
    inputs, direction = arrays(128)
    rounded = (*(x.astype(jnp.bfloat16) for x in inputs[:3]), inputs[3])
    found = with_gradients(causal_attention.attend, rounded, direction.astype(jnp.bfloat16))
    for mine, other in zip(found, with_gradients(plain, inputs, direction)):
        assert mine.dtype == jnp.bfloat16
        assert float(jnp.linalg.norm(mine - other) / jnp.linalg.norm(other)) < 0.02
