"""Write a model as a Hugging Face folder: python -m cai_jax.export --checkpoint=STEP --out=DIR.

The folder has config.json, safetensors and the tokenizer's files. `transformers` reads it with
AutoModelForCausalLM, or with AutoModelForSequenceClassification if it is a preference model: one
label, whose logit at the last token is the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cai_jax import command_line
from cai_jax.errors import exits_on_input_error


def parser() -> command_line.Parser:
    """The flags."""
    flags = command_line.Parser(prog="python -m cai_jax.export", description=__doc__)
    flags.add_argument(
        "--checkpoint", required=True, help="a finished step of a workdir, as WORKDIR/<step>"
    )
    flags.add_argument("--out", type=Path, required=True, help="a folder that is new or empty")
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    args = parser().parse_args(arguments)
    command_line.check_output_folder(args.out)

    from cai_jax import checkpoints

    with command_line.whole_folder(args.out) as folder:
        checkpoints.export(args.checkpoint, folder)
    print(args.out)


if __name__ == "__main__":
    main()
