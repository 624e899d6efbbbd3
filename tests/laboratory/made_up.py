"""Evaluations of runs that never were, in which every claim of the paper holds."""

SIZES = {"xs": 0, "s": 1, "m": 2}
FIXED = {"pretrained": (-500.0, -300.0), "sl_cai": (0.0, 0.0), "helpful_only": (-550.0, 150.0)}
ENDS = {
    "helpful_rlhf": (-540.0, 160.0),
    "hh_rlhf": (100.0, -90.0),
    "rl_cai": (350.0, -80.0),
    "rl_cai_cot": (390.0, -120.0),
}
VARIANTS = {
    "sl_cai": 0.0,
    "rl_cai": 350.0,
    "rl_cai_hard": 250.0,
    "rl_cai_cot": 390.0,
    "rl_cai_cot_20_80": 340.0,
    "rl_cai_cot_free": 280.0,
    "rl_cai_single": 50.0,
    "rl_cai_overtrained": 360.0,
    "hh_rlhf": 100.0,
    "hh_from_sl_cai": 200.0,
    "rl_cai_from_pretrained": 300.0,
}


def make_runs(seeds=3):
    """Step -> evaluation, for each seed; seeds differ by a little."""
    return [make_run(seed * 0.001) for seed in range(seeds)]


def make_run(noise):
    run = {
        "along_rl": {"models": along(noise)},
        "along_rl_greedy": {"models": along(noise)},
        "variants": {
            "models": {name: model(elo, 0.0, noise, name) for name, elo in VARIANTS.items()}
        },
        "by_size": {
            "models": {
                name + suffix: model(elo - less, helpful - less, noise, name)
                for suffix, less in (("", 0), ("_s", 100))
                for name, (elo, helpful) in {"sl_cai": (0, 0), **ENDS}.items()
            }
        },
        "revision_scores": {"chains": {}},
        "principle_scores": {"chains": {}, "distinct_2": {}},
        "direct_scores": {"chains": {}},
    }
    for size, skill in SIZES.items():
        suffix = "" if size == "m" else f"_{size}"
        run[f"hh_preference{suffix}"] = {"harmlessness_held_out_accuracy": 0.9 + noise}
        base = 0.6 + 0.15 * skill + noise
        accuracies = {"direct": base, "with_reasoning": base + 0.04, "ensemble": base + 0.05}
        run[f"judged_labels_{size}"] = {
            "feedback": {name: {"accuracy": value} for name, value in accuracies.items()},
            "calibration": {
                "direct": calibration(0.02 + noise, 0.0),
                "with_reasoning": calibration(0.1, 0.08 + noise),
                "ensemble": calibration(0.05, 0.04),
            },
        }
        judged = {"broken_rate": 0.02, "harmless_rate": 0.9}
        run[f"judged_direct_{size}"] = {"chains": {"revisions": [judged] * 5}}
        run[f"judged_chains_{size}"] = {
            "chains": {"revisions": [judged] * 5},
            "critiques": {"names_every_harm": base, "says_fine": base + 0.1},
        }
        run["revision_scores"]["chains"][size] = revisions(2.0 + skill, noise)
        run["direct_scores"]["chains"][size] = revisions(2.0 + skill, noise)
        run["direct_scores"]["chains"][f"direct_{size}"] = revisions(
            2.0 + skill - (0.0 if size == "m" else 1.0), noise
        )
    run["revision_scores"]["chains"]["general"] = revisions(4.4, noise)
    for i, count in enumerate((1, 2, 4, 8, 16)):
        run["principle_scores"]["chains"][str(count)] = revisions(4.0, noise)
        run["principle_scores"]["distinct_2"][str(count)] = [0.1 + 0.02 * i + noise] * 5
    return run


def along(noise):
    models = {name: model(*elos, noise, name) for name, elos in FIXED.items()}
    for name, (harmless, helpful) in ENDS.items():
        start = FIXED["pretrained" if name in ("helpful_rlhf", "hh_rlhf") else "sl_cai"]
        for step in (1, 2):
            at = [s + (e - s) * step / 2 for s, e in zip(start, (harmless, helpful))]
            models[f"{name}@{10 * step}"] = model(*at, noise, name)
    return models


def model(harmless_elo, helpful_elo, noise, name):
    shown = name in ("rl_cai_overtrained",)
    return {
        "harmlessness_elo": harmless_elo + 1000 * noise,
        "helpfulness_elo": helpful_elo - 1000 * noise,
        "harmless_rate": 0.5,
        "helpful_rate": 0.9,
        "mean_harms": 0.8 - harmless_elo / 1000 + (0.3 if name == "helpful_rlhf" else 0.0),
        "evasive_rate": 0.5 if name == "hh_rlhf" else 0.01,
        "explained_rate": 0.5,
        "broken_rate": 0.02,
        "boilerplate_rate": 0.6,
        "explained_boilerplate_rate": 0.25 if shown else 0.07 + noise,
    }


def revisions(gain, noise):
    """A PM of harmlessness, of helpfulness, and of both; the first revision brings 0.7."""
    shares = (0.0, 0.7, 0.85, 0.95, 1.0)
    return [
        {
            "harmless": gain * s + noise * i,
            "helpful": -s - noise * i,
            "hh": gain * s / 2 + noise * i,
        }
        for i, s in enumerate(shares)
    ]


def calibration(error, overconfidence):
    curve = [
        {"probability": 0.15, "frequency": 0.1, "n": 20},
        {"probability": 0.95, "frequency": 0.9, "n": 60},
    ]
    return {
        "n": 80,
        "calibration_error": error,
        "overconfidence": overconfidence,
        "curve": curve,
    }
