"""Losses, as pure functions of arrays."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# Logits held at a time, in numbers: bounds memory; more leave a CPU's cache, and fewer make short
# products and add up the gradient of `unembed` more often.
CHUNK_LOGITS = 2**22
# Up to here `token_logprobs` makes all logits at once, and keeps them: 64 MiB, and a product less.
KEPT_LOGITS = 2**24


def lm_cross_entropy(
    hidden: jax.Array,
    unembed: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    soft_cap: float | None = None,
    positions: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Weighted next-token cross-entropy, without ever holding all logits.

    The logits are made a chunk of T at a time, and the gradients with respect to `hidden` and
    `unembed` in the same pass, while the chunk is at hand: three matrix products in all, and no
    [B, T, V] array in memory.

    Args:
        hidden: [..., T, D] after the final norm.
        unembed: [D, V].
        targets: [..., T] ids to predict.
        weights: [..., T] non-negative weights; 0 leaves a position out.
        soft_cap: c of a model whose logits are c tanh(x / c).
        positions: of T in a chunk, at most; 0: as many as CHUNK_LOGITS allows.

    Returns:
        (sum over positions of weight x loss in nats, sum of weights), float32 scalars. Divide the
        sums, not the means, where batches or devices are added up.
    """
    total = _weighted_loss(hidden, unembed, targets, weights, soft_cap, positions)
    return total, jnp.sum(weights, dtype=jnp.float32)


def token_logprobs(
    hidden: jax.Array,
    unembed: jax.Array,
    targets: jax.Array,
    *,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    positions: int = 0,
) -> jax.Array:
    """Log-probabilities (nats) of given next tokens; all logits are held only where they are few.

    More of them than KEPT_LOGITS are made a chunk of T at a time, and again in the backward pass.

    Args:
        hidden: [..., T, D] after the final norm.
        unembed: [D, V].
        targets: [..., T] ids.
        soft_cap: c of a model whose logits are c tanh(x / c).
        temperature: of the distribution, above 0; logits are divided by it.
        positions: of T in a chunk, at most; 0: as many as CHUNK_LOGITS allows.

    Returns:
        [..., T] float32.
    """
    if targets.size * unembed.shape[1] <= KEPT_LOGITS:
        return _logprobs(hidden, unembed, targets, soft_cap, temperature, True)
    chunks = _chunks(positions, hidden, unembed, targets)

    def of_chunk(chunk):
        hidden, targets = chunk
        return _logprobs(hidden, unembed, targets, soft_cap, temperature, False)

    return _join(lax.map(of_chunk, chunks), -1).reshape(targets.shape)


def bradley_terry(score_a: jax.Array, score_b: jax.Array, p_a: jax.Array) -> jax.Array:
    """Cross-entropy of soft labels under the Bradley-Terry model (Bai et al. 2022a, section 2.3).

    -(p log sigmoid(m) + (1 - p) log sigmoid(-m)) of the margin m = score_a - score_b: least, and
    the label's entropy, where m = log(p / (1 - p)).

    Args:
        score_a: [B] scores of the responses A.
        score_b: [B] scores of the responses B.
        p_a: [B] in [0, 1], the probability that A is the better one.

    Returns:
        [B] float32, in nats. A label outside [0, 1] has no meaning and is not looked for.
    """
    margins = jnp.asarray(score_a, jnp.float32) - jnp.asarray(score_b, jnp.float32)
    return -(p_a * jax.nn.log_sigmoid(margins) + (1 - p_a) * jax.nn.log_sigmoid(-margins))


def dpo(
    policy_a: jax.Array,
    policy_b: jax.Array,
    ref_a: jax.Array,
    ref_b: jax.Array,
    p_a: jax.Array,
    *,
    beta: float,
) -> jax.Array:
    """Direct preference optimization (Rafailov et al. 2023, equation 7) on soft labels.

    Bradley-Terry on the implied rewards beta x log(policy / reference): the expectation, over which
    response the judge would prefer, of the loss of DPO. With labels 1 and 0 it is that loss, with
    1 - e and e conservative DPO (Mitchell 2023). Least where the implied rewards differ by
    log(p / (1 - p)); log 2, whatever the label, where policy and reference are the same.

    Args:
        policy_a: [B] log-probability (nats) of each response A, summed over its tokens, under the
            policy that is trained.
        policy_b: [B] of the responses B.
        ref_a: [B] of the responses A under the reference.
        ref_b: [B] of the responses B under the reference.
        p_a: [B] in [0, 1], the probability that A is the better one.
        beta: what a nat of difference to the reference costs, in units of reward; above 0.

    Returns:
        [B] float32, in nats.
    """
    return bradley_terry(beta * (policy_a - ref_a), beta * (policy_b - ref_b), p_a)


def ppo_policy(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
) -> jax.Array:
    """The clipped surrogate of PPO (Schulman et al. 2017, equation 7), negated.

    Args:
        logp: [B, T] log-probabilities (nats) of the sampled tokens, under the policy that is
            trained.
        old_logp: [B, T] under the policy that sampled them.
        advantages: [B, T].
        mask: [B, T] True for the tokens of a response; what stands elsewhere changes nothing.
        clip: how far the ratio of the two may leave 1 and still gain.

    Returns:
        The mean over tokens of -min(ratio x A, clipped ratio x A), a float32 scalar; 0 without any
        token.
    """
    free, clipped = _surrogates(logp, old_logp, advantages, mask, clip)
    return -masked_mean(jnp.minimum(free, clipped), mask)


def ppo_clip_fraction(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
) -> jax.Array:
    """The share of tokens whose clipped term is the smaller one, and which so have no gradient.

    Arguments are those of `ppo_policy`; a float32 scalar from 0 to 1.
    """
    free, clipped = _surrogates(logp, old_logp, advantages, mask, clip)
    return masked_mean(clipped < free, mask)


def ppo_value(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
) -> jax.Array:
    """Half the squared error of the values, with their move from the old ones clipped.

    Args:
        values: [B, T] under the parameters that are trained, in units of reward.
        old_values: [B, T] under those that sampled.
        returns: [B, T] the targets.
        mask: [B, T] True for the tokens of a response; what stands elsewhere changes nothing.
        clip: a value that has moved further towards its target has no gradient.

    Returns:
        The mean over tokens of max(error^2, clipped error^2) / 2, a float32 scalar; 0 without any
        token. As in the PPO of Dhariwal et al.'s `baselines`; the paper (equation 9) does not clip.
    """
    clipped = old_values + jnp.clip(values - old_values, -clip, clip)
    squares = jnp.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * masked_mean(squares, mask)


def masked_mean(x: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean of `x` where `mask` is True, whatever stands elsewhere; 0 if that is nowhere."""
    return jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32) / jnp.maximum(jnp.sum(mask), 1)


def _surrogates(logp, old_logp, advantages, mask, clip):
    """ratio x A and clipped ratio x A [B, T]."""
    ratio = jnp.exp(jnp.where(mask, logp - old_logp, 0.0))
    return ratio * advantages, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantages


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _weighted_loss(hidden, unembed, targets, weights, soft_cap, positions):
    def add_chunk(total, chunk):
        hidden, targets, weights = chunk
        _, losses, _ = _token_losses(hidden, unembed, targets, soft_cap)
        return total + jnp.sum(losses * weights), None

    return lax.scan(
        add_chunk, jnp.float32(0), _chunks(positions, hidden, unembed, targets, weights)
    )[0]


def _loss_forward(hidden, unembed, targets, weights, soft_cap, positions):
    def add_chunk(carry, chunk):
        total, unembed_gradient = carry
        hidden, targets, weights = chunk
        logits, losses, normalizer = _token_losses(hidden, unembed, targets, soft_cap)
        of_hidden, of_unembed = _gradients(
            hidden, unembed, targets, weights, logits, normalizer, soft_cap
        )
        total += jnp.sum(losses * weights)
        return (total, unembed_gradient + of_unembed), (of_hidden, losses)

    start = (jnp.float32(0), jnp.zeros(unembed.shape, jnp.float32))
    chunks = _chunks(positions, hidden, unembed, targets, weights)
    (total, unembed_gradient), (hidden_gradients, losses) = lax.scan(add_chunk, start, chunks)
    hidden_gradient = _join(hidden_gradients, -2).reshape(hidden.shape)
    unembed_gradient = unembed_gradient.astype(unembed.dtype)
    return total, (hidden_gradient, unembed_gradient, _join(losses, -1).reshape(weights.shape))


def _loss_backward(soft_cap, positions, residuals, gradient):
    hidden_gradient, unembed_gradient, losses = residuals
    return (
        hidden_gradient * gradient.astype(hidden_gradient.dtype),
        unembed_gradient * gradient.astype(unembed_gradient.dtype),
        None,
        losses * gradient,
    )


_weighted_loss.defvjp(_loss_forward, _loss_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _logprobs(hidden, unembed, targets, soft_cap, temperature, keep):
    return -_token_losses(hidden, unembed, targets, soft_cap, temperature)[1]


def _logprobs_forward(hidden, unembed, targets, soft_cap, temperature, keep):
    logits, losses, normalizer = _token_losses(hidden, unembed, targets, soft_cap, temperature)
    return -losses, (hidden, unembed, targets, normalizer, logits if keep else None)


def _logprobs_backward(soft_cap, temperature, keep, residuals, gradient):
    hidden, unembed, targets, normalizer, logits = residuals
    if not keep:
        logits = _logits(hidden, unembed, soft_cap, temperature)
    of_hidden, of_unembed = _gradients(
        hidden, unembed, targets, -gradient, logits, normalizer, soft_cap, temperature
    )
    return of_hidden, of_unembed.astype(unembed.dtype), None


_logprobs.defvjp(_logprobs_forward, _logprobs_backward)


def _gradients(hidden, unembed, targets, weights, logits, normalizer, soft_cap, temperature=1.0):
    """By `hidden` and `unembed` (float32) of the sum of weights x losses, given the logits."""
    hits = _hits(targets, logits.shape[-1])
    slopes = (jnp.exp(logits - normalizer[..., None]) - hits) * weights[..., None]
    if temperature != 1:
        slopes = slopes / temperature
    if soft_cap is not None:
        slopes *= 1 - (logits * temperature / soft_cap) ** 2
    slopes = slopes.astype(hidden.dtype)
    of_hidden = jnp.einsum("...v,dv->...d", slopes, unembed.astype(hidden.dtype))
    of_unembed = jnp.einsum(
        "td,tv->dv",
        hidden.reshape(-1, hidden.shape[-1]),
        slopes.reshape(-1, slopes.shape[-1]),
        preferred_element_type=jnp.float32,
    )
    return of_hidden, of_unembed


def _token_losses(hidden, unembed, targets, soft_cap, temperature=1.0):
    """Logits [..., T, V], losses [..., T] and log-normalizers [..., T], float32."""
    logits = _logits(hidden, unembed, soft_cap, temperature)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    # A sum over the vocabulary, not a gather, so that a split vocabulary stays split.
    chosen = jnp.sum(jnp.where(_hits(targets, logits.shape[-1]), logits, 0.0), axis=-1)
    return logits, normalizer - chosen, normalizer


def _logits(hidden, unembed, soft_cap, temperature):
    logits = jnp.einsum(
        "...d,dv->...v",
        hidden,
        unembed.astype(hidden.dtype),
        preferred_element_type=jnp.float32,
    )
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return logits if temperature == 1 else logits / temperature


def _hits(targets, vocab_size):
    return targets[..., None] == jnp.arange(vocab_size)


def _chunks(positions, hidden, unembed, targets, *more):
    """Cuts T into pieces, on a new leading axis; B stays whole, since devices split it."""
    length = targets.shape[-1]
    others = targets.size // length
    pieces = _pieces(length, positions or max(1, CHUNK_LOGITS // (others * unembed.shape[1])))
    of_targets = (_cut(x, pieces, -1) for x in (targets, *more))
    return _cut(hidden, pieces, -2), *of_targets


def _pieces(length: int, wanted: int) -> int:
    """The smallest divisor of `length` that makes pieces of at most `wanted`."""
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= wanted)


def _cut(x, pieces, axis):
    axis = x.ndim + axis
    shape = (*x.shape[:axis], pieces, x.shape[axis] // pieces, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _join(x, axis):
    return jnp.moveaxis(x, 0, x.ndim - 1 + axis)
