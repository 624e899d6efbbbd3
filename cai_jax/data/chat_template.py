"""A checkpoint's chat template, in which only the template's own control tokens are tokens.

The template is rendered twice: with the messages, and with a mark in place of each one's text. The
marks show which characters are the template's and which are somebody's text; a control token that
is spelled out in the latter is encoded as text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cai_jax.errors import InputError

MARK = "\ue000{number}\ue001"  # private characters, which no template has or asks for
# Some templates write today's date; a prompt must be the same tomorrow. This is Llama 3.1's own.
DATE = "26 Jul 2024"


class Prompt(NamedTuple):
    """Messages and the beginning of the assistant's answer."""

    text: str
    ids: list[int]


class _Layout(NamedTuple):
    frames: list[str]  # the template's text before, between and after the messages' texts
    texts: list[str]  # the messages' texts as the template shows them: it may strip them


class ChatTemplate:
    """The chat template of a `transformers` fast tokenizer."""

    def __init__(self, tokenizer: Any):
        """Takes the tokenizer; there may be no template, which shows when it is used."""
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        self.control_ids = frozenset(number for number, token in added.items() if token.special)
        self.control_tokens = tuple(added[number].content for number in sorted(self.control_ids))

    def encode(self, messages: Sequence[Mapping[str, str]]) -> Prompt:
        """The messages, {"role", "content"} each, up to where the assistant's answer begins.

        Raises:
            InputError: no template, one that refuses the messages or changes their text, or a role
                with a control token in it.
        """
        frames, texts = self._lay_out(messages, answer_begins=True)
        text = "".join(_alternate(frames, texts))
        owned = [self._control(frame) for frame in frames]
        joined = self._encode(text, as_text=False)
        found = [span for span in self._spans(joined)]
        if found == _shifted(owned, frames, texts):
            return Prompt(text, joined.ids)
        # A text spells a control token. What stands between the template's own is encoded by
        # itself, which tokenizers that mark the beginning of their input can tell from the whole.
        return Prompt(text, self._by_segments(frames, owned, texts))

    def end_id(self) -> int | None:
        """The control token with which the template ends an answer; None: it ends with no such."""
        frame = self._example()[-1]
        control = self._control(frame)
        if control and not frame[: control[0][0]].strip():
            return control[0][2]
        return None

    def used_tokens(self) -> tuple[str, ...]:
        """The control tokens that the template writes, as text."""
        frames = self._example()
        spelled = [f[start:stop].strip() for f in frames for start, stop, _ in self._control(f)]
        return tuple(dict.fromkeys(spelled))

    def _example(self) -> list[str]:
        example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return self._lay_out(example, answer_begins=False).frames

    def _lay_out(self, messages: Sequence[Mapping[str, str]], answer_begins: bool) -> _Layout:
        self._check_fields(messages)
        marks = [MARK.format(number=number) for number in range(len(messages))]
        marked = [{**m, "content": mark} for m, mark in zip(messages, marks)]
        rest, frames = self._render(marked, answer_begins), []
        for number, mark in enumerate(marks):
            if rest.count(mark) != 1:
                raise InputError(
                    f"[{number}]: the chat template shows its text {rest.count(mark)} times or in "
                    "another order; expected once and in order"
                )
            frame, _, rest = rest.partition(mark)
            frames.append(frame)
        frames.append(rest)
        rendered = self._render(messages, answer_begins)
        texts, position = [], len(frames[0])
        for number, (message, after) in enumerate(zip(messages, frames[1:])):
            content = message["content"]
            # Templates may strip a text, and leave out the reasoning before an earlier answer.
            answer = content.rpartition("</think>")[2].lstrip("\n")
            for shown in (content, content.strip(), answer, answer.strip()):
                if rendered.startswith(shown + after, position):
                    break
            else:
                raise InputError(
                    f"[{number}] content: the chat template changes the text "
                    f"{content[:40]!r}; such text is not supported with this template"
                )
            texts.append(shown)
            position += len(shown) + len(after)
        if "".join(_alternate(frames, texts)) != rendered:
            raise InputError("the chat template depends on the messages' text; use plain prompts")
        return _Layout(frames, texts)

    def _check_fields(self, messages: Sequence[Mapping[str, str]]) -> None:
        if not self._tokenizer.chat_template:
            raise InputError("the model's tokenizer has no chat template; give a prompt instead")
        for number, message in enumerate(messages):
            for name, value in message.items():
                for token in self.control_tokens if name != "content" else ():
                    if token in str(value):
                        raise InputError(f"[{number}] {name}: contains the control token {token!r}")

    def _render(self, messages: Sequence[Mapping[str, str]], answer_begins: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=answer_begins,
                date_string=DATE,
            )
        except Exception as error:  # whatever the template raises
            reason = " ".join(str(error).split())
            raise InputError(f"the chat template refuses them: {reason}") from None

    def _encode(self, text: str, as_text: bool) -> Any:
        before = self._backend.encode_special_tokens
        self._backend.encode_special_tokens = as_text
        try:
            return self._backend.encode(text, add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = before

    def _spans(self, encoding: Any) -> list[tuple[int, int, int]]:
        """(start, stop, id) of each control token, in characters."""
        return [
            (start, stop, number)
            for number, (start, stop) in zip(encoding.ids, encoding.offsets)
            if number in self.control_ids
        ]

    def _control(self, frame: str) -> list[tuple[int, int, int]]:
        return self._spans(self._encode(frame, as_text=False))

    def _by_segments(
        self, frames: list[str], owned: list[list[tuple[int, int, int]]], texts: list[str]
    ) -> list[int]:
        ids: list[int] = []
        segment = ""
        for frame, spans, text in zip(frames, owned, [*texts, ""]):
            position = 0
            for start, stop, number in spans:
                ids += self._encode(segment + frame[position:start], as_text=True).ids
                ids.append(number)
                segment, position = "", stop
            segment += frame[position:] + text
        return ids + self._encode(segment, as_text=True).ids


def _alternate(frames: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [piece for pair in zip(frames, [*texts, ""]) for piece in pair]


def _shifted(
    owned: list[list[tuple[int, int, int]]], frames: list[str], texts: list[str]
) -> list[tuple[int, int, int]]:
    """The template's control tokens in the whole text."""
    spans, begin = [], 0
    for frame, found, text in zip(frames, owned, [*texts, ""]):
        spans += [(begin + start, begin + stop, number) for start, stop, number in found]
        begin += len(frame) + len(text)
    return spans
