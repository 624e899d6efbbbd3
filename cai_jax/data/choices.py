"""Reads multiple-choice evaluations in the format of the paper's own files (paper appendix B).

A line is {"prompt", "corrects", "incorrects"}: the prompt lists options as "\\n (A) ...", and ends
in "The answer is:"; `corrects` and `incorrects` share the options out, " (A)" and so on. Lines that
compare two responses add "text_correct" and "text_incorrect": the dialogue with either of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
import typing
from collections.abc import Sequence
from pathlib import Path

from cai_jax.data.schema import Choice, json_lines, parse
from cai_jax.errors import InputError

if typing.TYPE_CHECKING:
    import numpy as np

THE_ANSWER = "The answer is:"
RESPONSE = "\n\nAssistant:"
HUMAN = "\n\nHuman:"


@dataclasses.dataclass(frozen=True)
class ChoiceQuestion:
    """A question with its options; `correct` is the index of the right one.

    `context` is what is asked about, without the options: questions that share it are not
    independent. `texts` has for each option the dialogue with that response, where there are two
    responses to compare.
    """

    id: str
    prompt: str
    options: tuple[str, ...]
    correct: int
    context: str
    texts: tuple[str, ...] = ()

    def wording(self, option: int) -> str:
        """What stands behind the letter of an option: its one line in the prompt."""
        return self.prompt.rpartition(f"\n{self.options[option]} ")[2].partition("\n")[0]


@dataclasses.dataclass(frozen=True)
class _Line:
    prompt: str
    corrects: tuple[str, ...]
    incorrects: tuple[str, ...]
    text_correct: str | None = None
    text_incorrect: str | None = None


def read_choices(path: Path, limit: int = 0) -> list[ChoiceQuestion]:
    """Reads the questions of a .jsonl or .jsonl.gz file; ids are "<file>-<line>" from 0.

    Args:
        path: the file.
        limit: at most so many, from the top; 0: all.

    Raises:
        InputError: naming file, line and field, and what was expected.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    lines = itertools.islice(json_lines(path), limit or None)
    questions = [
        _question(parse(_Line, value, where), where, f"{name}-{number}")
        for number, (where, value) in enumerate(lines)
    ]
    if not questions:
        raise InputError(f"{path}: expected at least one question, found none")
    return questions


def _question(line: _Line, where: str, id: str) -> ChoiceQuestion:
    if len(line.corrects) != 1:
        raise InputError(f"{where}: corrects: expected one option, found {list(line.corrects)}")
    options = tuple(sorted((*line.corrects, *line.incorrects)))
    letters = tuple(f" ({letter})" for letter in string.ascii_uppercase[: len(options)])
    if options != letters or len(options) < 2:
        raise InputError(
            f"{where}: corrects, incorrects: expected at least two options ' (A)', ' (B)', ... "
            f"without a gap, found {list(options)}"
        )
    if not line.prompt.endswith(THE_ANSWER):
        raise InputError(
            f"{where}: prompt: expected a text that ends in {THE_ANSWER!r}, "
            f"found {line.prompt[-40:]!r}"
        )
    for option in options:
        if f"\n{option} " not in line.prompt:
            raise InputError(f"{where}: prompt: expected a line for the option{option}, found none")
    context = line.prompt.partition("\n (A) ")[0]
    correct = options.index(line.corrects[0])
    texts = _texts(line, len(options), where)
    return ChoiceQuestion(
        id, line.prompt, options, correct, context, texts[:: -1 if correct else 1]
    )


def _texts(line: _Line, num_options: int, where: str) -> tuple[str, ...]:
    """The dialogues with the right and the wrong response; () where there are none."""
    texts = {"text_correct": line.text_correct, "text_incorrect": line.text_incorrect}
    missing = [name for name, text in texts.items() if text is None]
    if len(missing) == 2:
        return ()
    if missing:
        raise InputError(f"{where}: field {missing[0]!r} is missing, the other text is there")
    if num_options != 2:
        raise InputError(f"{where}: text_correct: expected two options with it, found more")
    right, wrong = (text or "" for text in texts.values())
    for name, text in (("text_correct", right), ("text_incorrect", wrong)):
        if not (text.startswith(HUMAN) and RESPONSE in text):
            raise InputError(
                f"{where}: {name}: expected a dialogue from {HUMAN!r} to a response after "
                f"{RESPONSE!r}, found {text[:40]!r}"
            )
    if right.rpartition(RESPONSE)[0] != wrong.rpartition(RESPONSE)[0]:
        raise InputError(
            f"{where}: text_incorrect: expected the dialogue of text_correct with another "
            f"response, found {wrong[:40]!r}"
        )
    for name, text, (option,) in zip(texts, (right, wrong), (line.corrects, line.incorrects)):
        response = text.rpartition(RESPONSE)[2].removeprefix(" ")
        if f"{option} [[[{response}]]]" not in line.prompt:
            raise InputError(
                f"{where}: {name}: expected the response that the prompt has at{option}, "
                f"found {response[:40]!r}"
            )
    return right, wrong


def choice_of(
    questions: Sequence[ChoiceQuestion],
    index: int,
    evaluation: str,
    mode: str,
    logps: np.ndarray,
    reasonings: Sequence[str] = (),
    *,
    scored: bool = False,
) -> Choice:
    """The record of a question's answers.

    Args:
        questions: all of the file, for who shares a context.
        index: of the question.
        evaluation, mode: where the question is from, and how it was asked.
        logps: log-probabilities (nats) [samples, options], whose probabilities are averaged; of a
            preference model [1, options] its scores.
        reasonings: of the samples, if there were any.
        scored: whether they are scores.
    """
    import numpy as np  # not before there are answers: checking inputs is to be quick

    question = questions[index]
    total = np.logaddexp.reduce(logps, axis=1, keepdims=True)
    probabilities = np.exp(logps - total).mean(0)
    return Choice(
        id=question.id,
        evaluation=evaluation,
        mode=mode,
        context=next(q.id for q in questions if q.context == question.context),
        options=question.options,
        correct=question.correct,
        chosen=int(probabilities.argmax()),
        probabilities=tuple(probabilities.tolist()),
        mass=None if scored else float(np.exp(total).mean()),
        scores=tuple(logps[0].tolist()) if scored else (),
        reasonings=tuple(reasonings),
    )


def answer_names(questions: Sequence[ChoiceQuestion]) -> list[str]:
    """What to call the options: their wording where all questions share it, else their letters."""
    most = max(questions, key=lambda question: len(question.options))
    wordings = {tuple(map(q.wording, range(len(q.options)))) for q in questions}
    if len(wordings) == 1:
        return list(next(iter(wordings)))
    return [option.strip() for option in most.options]
