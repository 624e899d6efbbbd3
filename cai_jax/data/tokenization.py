"""Text to token ids and back, by the tokenizer of a Hugging Face folder."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cai_jax.data.chat_template import ChatTemplate
from cai_jax.errors import InputError


class TextTokenizer:
    """A fast Hugging Face tokenizer, without its conveniences.

    Nothing is added, stripped or cleaned: a text is tokenized as it stands, special tokens come
    from the caller, and decoding shows every token. "</s>" in a text is four characters and ends
    nothing. `encode_prompt` alone adds the beginning-of-sequence token, once, for the families that
    are trained with it.
    """

    def __init__(self, tokenizer: Any, where: str):
        """Wraps a `transformers` fast tokenizer; `where` is its folder, for messages."""
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{where}: the tokenizer names no eos_token, which ends every response; "
                "set it in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # as the text they are written with
        self._chat = ChatTemplate(tokenizer)
        self.stops: tuple[str, ...] = ()  # what ends a response besides `eos_id`
        self.vocab_size = len(tokenizer)
        self.eos_id: int = tokenizer.eos_token_id
        # Padding is masked everywhere, so that any id will do where there is none.
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.bos_id: int | None = tokenizer.bos_token_id
        first = self._backend.encode("a").ids[:1]
        self.adds_bos = self.bos_id is not None and first == [self.bos_id]

    def encode(self, text: str) -> list[int]:
        """The ids of `text` alone."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Iterable[Any]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: Any) -> list[int]:
        """The ids of a text at the beginning of a sequence."""
        return self.encode_prompts([text])[0]

    def encode_prompts(self, texts: Iterable[Any]) -> list[list[int]]:
        """`encode_prompt` of many texts, on all cores."""
        return [self.prompt_start + ids for ids in self.encode_batch(texts)]

    @property
    def prompt_start(self) -> list[int]:
        """What stands before the first token of a sequence: the BOS token, or nothing."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[int]]:
        """Messages and the beginning of an answer by the folder's chat template: text and ids.

        The template's control tokens are tokens; those that a message spells out are text.

        Raises:
            InputError: no template, or one that refuses the messages or changes their text.
        """
        return self._chat.encode(messages)

    def chat_end(self) -> str | None:
        """The control token that ends an answer in the chat template, as text; None: none does."""
        end = self._chat.end_id()
        return None if end is None else self.decode([end])

    def in_format(self, name: str) -> "TextTokenizer":
        """The tokenizer of a dialogue format: this one for "plain", else its `ChatTokenizer`.

        Raises:
            InputError: as `ChatTokenizer`.
        """
        return ChatTokenizer(self) if name == "chat" else self

    def answer(self, text: str) -> str:
        """What is encoded after a prompt for a response of this text."""
        return f" {text}"

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into an existing folder."""
        self._tokenizer.save_pretrained(str(folder))


class ChatTokenizer(TextTokenizer):
    """A tokenizer that encodes chat prompts (`text/formats.py`) besides text.

    Its `eos_id` is what ends an answer in the chat template, and its `prompt_start` what begins the
    template.
    """

    def __init__(self, tokenizer: TextTokenizer):
        """Takes the tokenizer of a folder.

        Raises:
            InputError: there is no chat template, or it ends an answer with no control token.
        """
        self.__dict__.update(tokenizer.__dict__)
        end = self._chat.end_id()
        if end is None:
            raise InputError(
                "the chat template ends an answer with no control token, so that a model cannot "
                "learn to stop; use the plain dialogue format"
            )
        self.eos_id = end
        self.stops = (tokenizer.decode([tokenizer.eos_id]), *self._chat.used_tokens())
        begins = self._chat.encode([{"role": "user", "content": "a"}]).ids[:1]
        self.adds_bos = begins == [self.bos_id]

    def encode_batch(self, texts: Iterable[Any]) -> list[list[int]]:
        """The ids of chat prompts and of texts, without `prompt_start`.

        Raises:
            InputError: the chat template refuses a prompt, or changes its text.
        """
        texts = list(texts)
        plain = iter(super().encode_batch(text for text in texts if isinstance(text, str)))
        return [next(plain) if isinstance(text, str) else self._prompt(text) for text in texts]

    def answer(self, text: str) -> str:
        """The text itself: the template has what stands before it."""
        return text

    def _prompt(self, prompt: Any) -> list[int]:
        roles = {"human": "user", "assistant": "assistant"}
        messages = [{"role": roles[turn.role], "content": turn.text} for turn in prompt.turns]
        try:
            ids = self._chat.encode(messages).ids
        except InputError as error:
            raise InputError(f"dialogue {prompt.turns[-1].text[:40]!r}: {error}") from None
        return ids[len(self.prompt_start) :] + self.encode(prompt.begun)


def check_ids(ids: Iterable[int], vocab_size: int) -> None:
    """Refuses ids of tokens that a model of `vocab_size` tokens does not have.

    Raises:
        InputError: with the largest of them.
    """
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise InputError(
            f"model: its tokenizer gives id {largest}, but its vocabulary has only {vocab_size} "
            "entries; the folder's files do not belong together"
        )


def load_tokenizer(folder: Path) -> TextTokenizer:
    """Loads the tokenizer of a model folder. No code from the folder is run.

    Raises:
        InputError: no tokenizer there, or none that `tokenizers` can run.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: expected a folder with a tokenizer, found none")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), use_fast=True, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many types; all mean the same here
        raise InputError(
            f"{folder}: expected tokenizer files: {str(error).splitlines()[0]}"
        ) from None
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{folder}: expected a fast tokenizer (tokenizer.json), found a slow one")
    return TextTokenizer(tokenizer, str(folder))
