"""Write a constitution as one file to read or edit: python -m cai_jax.constitution --out=FILE.

The source is a constitution file, or the folder with the paper's official prompt files, whose
irregularities are mended on the way (cai_jax/text/official.py lists them). A draw of some of its
principles is the one that a step with the same num_principles and seed makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from cai_jax import command_line
from cai_jax.errors import exits_on_input_error


def parser() -> command_line.Parser:
    """The flags."""
    flags = command_line.Parser(prog="python -m cai_jax.constitution", description=__doc__)
    flags.add_argument("--source", type=Path, required=True, help="a file, or the official folder")
    flags.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    flags.add_argument("--num_principles", type=int, default=0, help="to draw; 0: all")
    flags.add_argument("--seed", type=command_line.seed, default=0, help="of the draw")
    flags.add_argument("--overwrite", action="store_true", help="replace --out")
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    args = parser().parse_args(arguments)
    command_line.check_outputs([args.out], args.overwrite)

    from cai_jax.core import artifact
    from cai_jax.text.constitution import load_constitution

    constitution = load_constitution(args.source).drawn(args.num_principles, args.seed)
    artifact.write_json(args.out, dataclasses.asdict(constitution))
    few_shots = [
        f"{len(examples)} {kind}"
        for kind, examples in (
            ("critique", constitution.critique_few_shots),
            ("comparison", constitution.comparison_few_shots),
            ("reasoning", constitution.reasoning_few_shots),
        )
    ]
    print(
        f"{args.out}: {len(constitution.principles)} principles; {', '.join(few_shots)} few-shots"
    )


if __name__ == "__main__":
    main()
