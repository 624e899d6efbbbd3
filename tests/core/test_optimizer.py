import math

import jax
import numpy as np
import optax
import pytest
import torch
from torch.optim.adamw import adamw

from cai_jax.core import optimizer as optimizers
from cai_jax.errors import InputError


def config(**changes):
    made = optimizers.default_config()
    made.update(changes)
    return made


def rates(schedule, num_steps):
    return [float(schedule(step)) for step in range(num_steps)]


def test_warmup_and_cosine_have_their_closed_form():
    peak, final, num_steps, warmup = 0.02, 0.1, 40, 8
    made = config(learning_rate=peak, final=final, warmup=warmup / num_steps)
    expected = [peak * (step + 1) / warmup for step in range(warmup)]
    for step in range(num_steps - warmup):
        cosine = 0.5 * (1 + math.cos(math.pi * step / (num_steps - warmup)))
        expected.append(peak * ((1 - final) * cosine + final))
    np.testing.assert_allclose(
        rates(optimizers.make_schedule(made, num_steps), num_steps), expected, rtol=1e-5
    )


def test_a_constant_rate_stays_after_its_warmup():
    made = config(learning_rate=0.5, schedule="constant", warmup=0.2)
    found = rates(optimizers.make_schedule(made, 10), 12)
    np.testing.assert_allclose(found, [0.25, 0.5, *[0.5] * 10], rtol=1e-6)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10, 25])
def test_no_step_is_thrown_away_at_rate_zero_and_none_is_above_the_peak(num_steps):
    found = rates(optimizers.make_schedule(config(learning_rate=1.0), num_steps), num_steps)
    assert min(found) > 0 and max(found) <= 1.0 + 1e-6
    assert max(found) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("optimizer", "sgd", "optimizer: expected one of adamw, adafactor, found 'sgd'"),
        ("schedule", "linear", "schedule: expected one of constant, warmup_cosine, found 'linear'"),
        ("warmup", 1.5, "warmup: expected a fraction from 0 to 1, found 1.5"),
        ("beta2", 1.0, "beta2: expected 0 <= beta2 < 1, found 1.0"),
        ("learning_rate", -1e-3, "learning_rate: expected 0 or more, found -0.001"),
    ],
)
def test_parameters_out_of_range_are_refused(name, value, message):
    with pytest.raises(InputError, match=message):
        optimizers.make_optimizer(config(**{name: value}), 10)


def make_params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "embedder": {"embedding": draw(5, 4)},
        "layers": {"mlp": {"up": draw(2, 4, 3)}, "mlp_norm": {"scale": draw(2, 4)}},
        "final_norm": {"scale": draw(4)},
        "score_head": {"kernel": draw(4)},
    }


def test_all_but_the_scales_of_norms_decay():
    assert optimizers.decayed(make_params()) == {
        "embedder": {"embedding": True},
        "layers": {"mlp": {"up": True}, "mlp_norm": {"scale": False}},
        "final_norm": {"scale": False},
        "score_head": {"kernel": True},
    }


@pytest.mark.parametrize("clip_norm", [0.0, 2.0])
def test_steps_are_those_of_torch(clip_norm):
    """Gradients of very different norms, so that an ignored clipping would show in the moments."""
    num_steps, sizes = 6, (0.01, 30.0, 0.1, 5.0, 0.001, 1.0)
    made = config(learning_rate=0.05, warmup=0.34, weight_decay=0.2, clip_norm=clip_norm)
    params = make_params()
    optimizer = optimizers.make_optimizer(made, num_steps)
    schedule = optimizers.make_schedule(made, num_steps)
    leaves, structure = jax.tree.flatten(params)
    masked = jax.tree.leaves(optimizers.decayed(params))

    theirs = [torch.tensor(leaf) for leaf in leaves]
    moments = [[torch.zeros_like(leaf) for leaf in theirs] for _ in range(2)]
    counts = [torch.tensor(0.0) for _ in theirs]

    @jax.jit
    def update(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    rng = np.random.default_rng(1)
    for step, size in enumerate(sizes):
        drawn = [(size * rng.normal(size=leaf.shape)).astype(np.float32) for leaf in leaves]
        params, state = update(params, state, jax.tree.unflatten(structure, drawn))
        gradients = [torch.tensor(gradient) for gradient in drawn]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in gradients]))
        if clip_norm and norm > clip_norm:
            gradients = [gradient * (clip_norm / norm) for gradient in gradients]
        for i, decays in enumerate(masked):
            # The function behind torch.optim.AdamW, which would load torch's compiler first.
            adamw(
                *([theirs[i]], [gradients[i]], [moments[0][i]], [moments[1][i]], [], [counts[i]]),
                **dict(amsgrad=False, maximize=False, beta1=0.9, beta2=0.98, eps=1e-8),
                lr=float(schedule(step)),
                weight_decay=0.2 * decays,
            )
    for ours, reference in zip(jax.tree.leaves(params), theirs):
        np.testing.assert_allclose(np.asarray(ours), reference, rtol=2e-5, atol=2e-6)


def run_steps(optimizer, params, gradients):
    """The parameters after each step, and the last state."""

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state, found = optimizer.init(params), []
    for gradient in gradients:
        params, state = update(params, state, gradient)
        found.append(params)
    return found, state


def draw_gradients(params, count, seed=1):
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(params)
    return [
        jax.tree.unflatten(structure, [rng.normal(size=x.shape).astype(np.float32) for x in leaves])
        for _ in range(count)
    ]


def test_adafactor_is_that_of_its_paper():
    """Equations of Shazeer and Stern (2018), algorithm 4, in numpy; decay of weights by AdamW."""
    rate, decay, shape = 0.03, 0.1, (128, 160)
    made = config(
        optimizer="adafactor", schedule="constant", warmup=0.0, learning_rate=rate,
        weight_decay=decay, clip_norm=0.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=shape).astype(np.float32),
        "scale": rng.normal(size=5).astype(np.float32),
    }
    gradients = draw_gradients(params, 4)
    found, state = run_steps(optimizers.make_optimizer(made, 4), params, gradients)
    kernel, scale = (np.asarray(params[name], np.float64) for name in ("kernel", "scale"))
    rows, columns, whole = np.zeros(shape[0]), np.zeros(shape[1]), np.zeros(5)
    for t, gradient in enumerate(gradients, start=1):
        beta = 1 - t**-0.8
        square = np.asarray(gradient["kernel"], np.float64) ** 2 + 1e-30
        rows = beta * rows + (1 - beta) * square.mean(1)
        columns = beta * columns + (1 - beta) * square.mean(0)
        second = np.outer(rows, columns) / rows.mean()
        whole = beta * whole + (1 - beta) * np.asarray(gradient["scale"], np.float64) ** 2
        updates = [gradient["kernel"] / np.sqrt(second), gradient["scale"] / np.sqrt(whole)]
        updates = [u / max(1.0, math.sqrt((u**2).mean())) for u in updates]
        kernel = kernel - rate * (updates[0] + decay * kernel)
        scale = scale - rate * updates[1]
        np.testing.assert_allclose(found[t - 1]["kernel"], kernel, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[t - 1]["scale"], scale, rtol=1e-4, atol=1e-5)
    # A row and a column, not a matrix.
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) < shape[0] + shape[1] + 5 + 16


@pytest.mark.parametrize("kind", optimizers.OPTIMIZERS)
def test_moments_are_kept_in_the_dtype_that_the_config_says(kind):
    made = [config(optimizer=kind, moment_dtype=dtype) for dtype in optimizers.MOMENT_DTYPES]
    params = make_params()
    gradients = draw_gradients(params, 5)
    whole, half = (run_steps(optimizers.make_optimizer(c, 5), params, gradients) for c in made)
    for (_, state), dtype in ((whole, "float32"), (half, "bfloat16")):
        dtypes = {str(x.dtype) for x in jax.tree.leaves(state)}
        assert dtypes == {dtype, "int32"}
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole[0][-1], params)
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole[0][-1], half[0][-1])
    for distance, way in zip(jax.tree.leaves(apart), jax.tree.leaves(moved)):
        assert 0 < distance < 0.02 * way  # rounded, and no more than rounded
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(half[0][-1]))


def test_a_second_moment_that_could_not_fall_in_bfloat16_is_refused():
    with pytest.raises(InputError, match="beta2: expected at most 0.996.* found 0.999"):
        optimizers.check(config(moment_dtype="bfloat16", beta2=0.999))
    optimizers.check(config(moment_dtype="bfloat16", beta2=0.99))
    optimizers.check(config(optimizer="adafactor", moment_dtype="bfloat16", beta2=0.999))


def test_the_average_is_the_normalised_exponential_one_and_changes_no_update():
    decay, params = 0.7, make_params()
    made = optimizers.make_optimizer(config(), 6)
    gradients = draw_gradients(params, 6)
    plain, plain_state = run_steps(made, params, gradients)
    found, state = run_steps(optimizers.with_average(made, decay), params, gradients)
    jax.tree.map(np.testing.assert_array_equal, plain, found)
    weights = decay ** np.arange(5, -1, -1.0)
    expected = jax.tree.map(lambda *x: np.average(x, axis=0, weights=weights), *found)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        optimizers.averaged(state, found[-1]),
        expected,
    )
    assert optimizers.with_average(made, 0.0) is made
    assert optimizers.averaged(plain_state, plain[-1]) is plain[-1]
