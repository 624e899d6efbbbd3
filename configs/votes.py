"""Elo by what people chose of the pairs that configs/elo.py wrote.

    python -m cai_jax.run --config=configs/votes.py --workdir=runs/votes \\
        --config.run=runs/elo --config.votes=VOTES

VOTES is a file or a folder of files: blind.csv or blind.jsonl of either step of pairs, with "a",
"b" or "tie" in the column `choice`, as far as each person came. All rows of a file are by one
person, unless a column `annotator` names them.

Hardware: none to speak of.
Memory, time: seconds.
Expected: Elo with intervals; ties are left out, and how often people agree stands beside.
"""

from ml_collections import ConfigDict

from cai_jax.stages import step


def get_config() -> ConfigDict:
    """One step and its report."""
    config = ConfigDict(sort_keys=False)
    config.seed = 0
    config.run = ""  # given on the command line, as the votes are
    config.votes = ""
    pairs = [config.get_ref("run") + f"/{name}_pairs" for name in ("harmlessness", "helpfulness")]
    steps = config.steps = ConfigDict(sort_keys=False)
    steps.people = step("elo", {"pairs": pairs, "votes": config.get_ref("votes")})
    steps.report = step("report", {"steps": list(steps)})
    return config
