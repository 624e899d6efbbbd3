"""The parameters of PPO as an algorithm: what the reward is, what advantages are, how it updates.

Without jax, so that a config can be read and refused before anything slow is loaded.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from cai_jax.errors import InputError

# What each number must be at least, and the words that each name may be.
LOWEST = {
    **dict.fromkeys(("samples_per_prompt", "epochs", "minibatches", "kl_horizon"), 1),
    **dict.fromkeys(("kl_coefficient", "kl_target", "kl_stop", "missing_eos_penalty"), 0),
    **dict.fromkeys(("gamma", "gae_lambda", "clip_ratio", "value_clip", "value_coefficient"), 0),
    "score_clip": 0,
}
CHOICES = {
    "advantage": ("gae", "group", "leave_one_out"),
    "baseline": ("none", "leave_one_out"),
    "value_model": ("policy_trunk", "preference_model"),
    "truncation": ("penalty", "bootstrap"),
    "kl_estimate": ("k1", "k3"),
    "score_normalization": ("none", "first_mean", "running", "stored"),
}


def default_config() -> ConfigDict:
    """The parameters that the stage has beside its own."""
    config = ConfigDict()
    config.samples_per_prompt = 2  # responses to a prompt, in rows that follow one another
    config.temperature = 1.0  # of sampling, and of all log-probabilities
    # The reward.
    config.kl_coefficient = 0.05  # beta; with kl_target, what it begins as
    config.kl_estimate = "k1"  # or "k3", which holds the policy by far less: see `kl_estimate`
    config.kl_target = 0.0  # nats a response that beta is adapted to; 0: beta is fixed
    config.kl_horizon = 10_000  # responses over which it is adapted
    # Of scores: "first_mean" takes off their mean in the first iteration, "running" brings them to
    # mean 0 and deviation 1 as seen so far, "stored" as the preference model's own statistics (of
    # its held-out comparisons) say, "none" takes them as they are.
    config.score_normalization = "first_mean"
    config.score_clip = 0.0  # normalised scores are clipped to -+ this; 0: they are not
    config.missing_eos_penalty = 1.0  # taken off the score of a response without an end
    # The end of a response cut off at max_new_tokens: "penalty" scores it as it stands, less the
    # penalty; with "bootstrap" it is not over, and the value there is in the place of a score.
    config.truncation = "penalty"
    # Advantages: "gae" has a value model; "group" (GRPO) and "leave_one_out" (RLOO) compare the
    # responses to a prompt, and have none.
    config.advantage = "gae"
    config.baseline = (
        "leave_one_out"  # gae: off a score, the mean of the prompt's others; or "none"
    )
    # gae: a head on the policy's hidden states, or a model of its own that begins as the preference
    # model (then take score_normalization and baseline "none": that is what its values mean).
    config.value_model = "policy_trunk"
    config.gamma = 1.0
    config.gae_lambda = 0.95
    config.whiten_advantages = True  # over all tokens of an iteration
    # The update.
    config.epochs = 2  # passes over an iteration's responses
    config.minibatches = 2  # updates in a pass
    config.clip_ratio = 0.2
    config.value_clip = 0.2
    config.value_coefficient = 0.1
    config.kl_stop = 0.0  # nats a token from the sampling policy that end an update; 0: none do
    return config


def check(config: ConfigDict) -> None:
    """Refuses parameters that mean nothing, alone or together.

    Raises:
        InputError: naming the parameter.
    """
    for name, least in LOWEST.items():
        if config[name] < least:
            raise InputError(f"{name}: expected at least {least}, found {config[name]}")
    for name, known in CHOICES.items():
        if config[name] not in known:
            raise InputError(f"{name}: expected {' or '.join(known)}, found {config[name]!r}")
    if not config.temperature > 0:
        raise InputError(f"temperature: expected more than 0, found {config.temperature}")
    if config.kl_target and not config.kl_coefficient:
        raise InputError("kl_coefficient: expected more than 0 with kl_target, found 0")
    role = "baseline" if config.advantage == "gae" else "advantage"
    if config[role] != "none" and config.samples_per_prompt < 2:
        raise InputError(
            f"samples_per_prompt: expected at least 2 with {role} {config[role]}, found "
            f"{config.samples_per_prompt}; one response has no others: set advantage gae and "
            "baseline none"
        )
    for name, needed in (("value_model", "preference_model"), ("truncation", "bootstrap")):
        if config.advantage != "gae" and config[name] == needed:
            raise InputError(
                f"{name}: expected advantage gae with {needed}, found {config.advantage}, which "
                "has no values"
            )


def evaluated_by_update(config: ConfigDict) -> bool:
    """Whether the sampling policy's log-probabilities and values come from the update's first pass.

    With one minibatch that pass sees all responses before anything has changed.
    """
    return config.minibatches == 1
