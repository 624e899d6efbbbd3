"""Text to token ids and back, by the tokenizer of a Hugging Face folder."""

import copy
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

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text at the beginning of a sequence."""
        return self.prompt_start + self.encode(text)

    def encode_prompts(self, texts: Iterable[str]) -> list[list[int]]:
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

    def for_chat(self) -> "TextTokenizer":
        """The same tokenizer with the end of an answer in the chat template as its `eos_id`.

        Raises:
            InputError: there is no chat template, or it ends an answer with no control token.
        """
        end = self._chat.end_id()
        if end is None:
            raise InputError(
                "the chat template ends an answer with no control token, so that a model cannot "
                "learn to stop; use the plain dialogue format"
            )
        changed = copy.copy(self)
        changed.eos_id = end
        return changed

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """How the control tokens are written."""
        return self._chat.control_tokens

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def save(self, folder: Path) -> None:
        """Writes the tokenizer's files into an existing folder."""
        self._tokenizer.save_pretrained(str(folder))


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
