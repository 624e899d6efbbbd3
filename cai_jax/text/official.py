"""Reads the paper's official prompt files into a Constitution, and mends their irregularities.

The files are the `prompts` folder of the repository anthropics/ConstitutionalHarmlessnessPaper; the
user brings a copy. `python -m cai_jax.constitution` writes what is read here to one file. Numbers
of entries count from 0. Mended, because it concerns the form of a prompt:

- Critique requests are lists of one text, revision requests are texts; both, and the comparison
  instructions, bring the markers around them. Comparison instructions have no ids.
- Critique few-shots 0, 1, 2 and 4 end in a stray "\\n\\nHuman:"; 3 does not.
- Comparison few-shots hold lists of one better and one worse response.
- Reasoning few-shot 3 begins with one line break, and 4 with none and another heading.
- Reasoning few-shot 0 has two spaces after the letters of its turns but the first.
- In reasoning few-shots "{}" stands for a whole instruction, with the line break in front of it.

Left as it is, because it is wording: misspellings, spaces missing or doubled between sentences,
options called "A" as well as "(A)", and the requests of critique few-shots, which are no
principle's (4), or one in another version.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai_jax.errors import InputError
from cai_jax.text.constitution import OPTIONS, Constitution, constitution_from_json
from cai_jax.text.dialogue import CRITIQUE, CRITIQUE_REQUEST, HUMAN, REVISION, REVISION_REQUEST
from cai_jax.text.prompts import CONSIDER_REASONING

INSTRUCTIONS = "CritiqueRevisionInstructions.json"
CRITIQUE_FEW_SHOTS = "CritiqueRevisionFewShotPrompts.json"
COMPARISONS = "RLMadisonInstructions.json"
COMPARISON_FEW_SHOTS = "RLMadisonFewShotPrompts.json"
REASONING_FEW_SHOTS = "RLMadisonPrecogFewShotPrompts.json"

_TURN = re.compile(r"(\n\n[HA]:) +")


def read_official(folder: Path) -> Constitution:
    """Reads the five official files of `folder`.

    The paper draws its 16 critique-revision instructions and its 16 comparison instructions
    separately, so how they are paired into principles (here: in file order) does not matter.

    Raises:
        InputError: naming the file that is missing, or the file and the field that is malformed.
    """
    folder = Path(folder)
    instructions = _Field(folder / INSTRUCTIONS)
    comparisons = _Field(folder / COMPARISONS)
    if len(instructions.items()) != len(comparisons.items()):
        raise InputError(
            f"{comparisons.where}: expected {len(instructions.items())} comparison instructions, "
            f"as many as {INSTRUCTIONS} has, found {len(comparisons.items())}"
        )
    principles = [
        {
            "id": id,
            "critique_request": entry["prompt"].only().between(CRITIQUE_REQUEST, CRITIQUE),
            "revision_request": entry["edit_request"].between(REVISION_REQUEST, REVISION),
            "comparison": comparison.between("\n", OPTIONS),
        }
        for (id, entry), (_, comparison) in zip(instructions.items(), comparisons.items())
    ]
    critiques = _Field(folder / CRITIQUE_FEW_SHOTS).items()
    examples = _Field(folder / COMPARISON_FEW_SHOTS).items()
    reasonings = _Field(folder / REASONING_FEW_SHOTS).items()
    return constitution_from_json(
        {
            "name": "official",
            "provenance": "Bai et al. 2022, arXiv 2212.08073; prompts of the repository "
            "anthropics/ConstitutionalHarmlessnessPaper",
            "principles": principles,
            "critique_few_shots": [text.text().removesuffix(HUMAN) for _, text in critiques],
            "comparison_few_shots": [
                {
                    "dialogue": example["prompt"].text(),
                    "better": example["corrects"].only().text(),
                    "worse": example["incorrects"].only().text(),
                }
                for _, example in examples
            ],
            "reasoning_few_shots": [_mended(example["prompt"]) for _, example in reasonings],
        },
        str(folder),
    )


def _mended(field: "_Field") -> str:
    """The few-shot with the common heading and spaces, and "{}" as everywhere here."""
    heading, turns, body = field.text().partition("\n\nH: ")
    if not turns or "Consider the following conversation" not in heading:
        raise InputError(f"{field.where}: expected a conversation that begins with 'H: '")
    dialogue, principle, options = body.partition("{}")
    conversation = _TURN.sub(r"\1 ", turns + dialogue)
    return f"{CONSIDER_REASONING}{conversation}\n{principle}{options}"


class _Field:
    """A JSON value that knows where it stands, so that any misfit is a one-line error."""

    def __init__(self, where: Path | str, value: Any = None):
        self.where = str(where)
        self.value = _read_json(where) if isinstance(where, Path) else value

    def __getitem__(self, key: str | int) -> "_Field":
        kind = dict if isinstance(key, str) else list
        try:
            if isinstance(self.value, kind):
                return _Field(f"{self.where}: {key}", self.value[key])  # type: ignore[index]
        except (KeyError, IndexError):
            pass
        raise InputError(f"{self.where}: {key!r} is missing; found {str(self.value)[:40]!r}")

    def items(self) -> Sequence[tuple[str, "_Field"]]:
        """The members of an object or a list, each under its key."""
        if isinstance(self.value, dict):
            return [(key, self[key]) for key in self.value]
        if isinstance(self.value, list):
            return [(str(i), self[i]) for i in range(len(self.value))]
        raise InputError(f"{self.where}: expected a list, found {str(self.value)[:40]!r}")

    def only(self) -> "_Field":
        """The one member of a list, which must have no other: none is left out unseen."""
        if not isinstance(self.value, list) or len(self.value) != 1:
            raise InputError(
                f"{self.where}: expected a list of one, found {str(self.value)[:40]!r}"
            )
        return self[0]

    def text(self) -> str:
        """The value, which must be a string."""
        if not isinstance(self.value, str):
            raise InputError(f"{self.where}: expected text, found {str(self.value)[:40]!r}")
        return self.value

    def between(self, start: str, end: str) -> str:
        """The text inside its two markers, stripped."""
        text = self.text()
        if not (text.startswith(start) and text.endswith(end)):
            raise InputError(
                f"{self.where}: expected text from {start!r} to {end!r}, found {text[:40]!r}"
            )
        return text[len(start) : -len(end)].strip()


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: expected one of the official prompt files, found none")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON: {error}") from None
