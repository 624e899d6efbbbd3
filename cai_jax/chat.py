"""Talk to a model: python -m cai_jax.chat --model=DIR_OR_STEP [--temperature=T] [--seed=I].

Each line of the input is a turn of the human's; the model answers with all earlier turns before it,
in the paper's dialogue format or, with --dialogue_format=chat, in that of its own chat template.
/reset forgets them; the end of the input ends the chat.
"""

from __future__ import annotations

import contextlib
import sys
import typing
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai_jax import command_line
from cai_jax.errors import InputError, exits_on_input_error
from cai_jax.text import dialogue
from cai_jax.text.formats import FORMATS, dialogue_format

if typing.TYPE_CHECKING:
    import jax

    from cai_jax.generation.settings import SamplingSettings
    from cai_jax.models.language_model import LanguageModel
    from cai_jax.text.formats import DialogueFormat

RESET = "/reset"


class Turn(NamedTuple):
    """One turn of the chat."""

    role: str  # "human" or "assistant"
    text: str


def parser() -> command_line.Parser:
    """The flags."""
    flags = command_line.Parser(prog="python -m cai_jax.chat", description=__doc__)
    flags.add_argument(
        "--model", required=True, help="a Hugging Face folder or id, or a finished step"
    )
    flags.add_argument("--temperature", type=float, default=1.0, help="0: the most probable token")
    flags.add_argument("--max_new_tokens", type=int, default=128, help="of one answer")
    flags.add_argument("--dialogue_format", choices=FORMATS, default="plain")
    flags.add_argument(
        "--seed", type=command_line.seed, default=0, help="other seeds, other answers"
    )
    return flags


@exits_on_input_error
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the job."""
    args = parser().parse_args(arguments)
    command_line.keep_compiled()

    from cai_jax.generation.settings import SamplingSettings

    settings = SamplingSettings(args.max_new_tokens, args.temperature, stop=dialogue.STOPS)

    from cai_jax.checkpoints import in_format, load_model
    from cai_jax.core.keys import base_key

    model = in_format(load_model(args.model), args.dialogue_format)
    key = base_key(args.seed, "chat")
    with contextlib.suppress(KeyboardInterrupt):
        converse(model, dialogue_format(args.dialogue_format), settings, key)


def converse(
    model: LanguageModel, asked_as: DialogueFormat, settings: SamplingSettings, key: jax.Array
) -> None:
    """Answers each line of stdin on stdout, to its end."""
    turns: list[Turn] = []
    # Answers are counted through /reset, so that a question asked again is answered anew.
    answers = 0
    for line in human_lines():
        if line == RESET:
            turns = []
            continue
        asked = [*turns, Turn("human", line)]
        try:
            kept, text = answer(model, asked_as, asked, settings, key, answers)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        if len(kept) < len(asked):
            print(f"({len(asked) - len(kept)} turns forgotten: no room)", file=sys.stderr)
        turns = [*kept, Turn("assistant", text)]
        answers += 1
        print(f"Assistant: {text}", flush=True)


def human_lines() -> Iterator[str]:
    """Lines of stdin that are not blank, stripped; asks for each when somebody types them."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("\nHuman: ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def answer(
    model: LanguageModel,
    asked_as: DialogueFormat,
    turns: Sequence[Turn],
    settings: SamplingSettings,
    key: jax.Array,
    number: int,
) -> tuple[list[Turn], str]:
    """The turns that the model has room for, and its answer to the last of them.

    Whole exchanges are left out, the oldest first, until the rest fits with the answer.

    Args:
        model: a language model, with the tokenizer of the format.
        asked_as: the dialogue format.
        turns: human and assistant in turn, the last one a human's.
        settings: of the sampling; its stops end the answer.
        key: base key of the chat.
        number: of the answer in the chat; another number draws another answer.

    Raises:
        InputError: not even the last turn fits.
    """
    from cai_jax.generation.generate import generate

    kept = list(turns)
    prompt = model.tokenizer.encode_prompt(asked_as.dialogue(kept))
    while len(kept) > 1 and len(prompt) + settings.max_new_tokens > model.config.max_positions:
        kept = kept[2:]
        prompt = model.tokenizer.encode_prompt(asked_as.dialogue(kept))
    [completion] = generate(model, [prompt], settings, (key, [number]), names=["this turn"])
    return kept, dialogue.cut_at_stop(completion.text)


if __name__ == "__main__":
    main()
