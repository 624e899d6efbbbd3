"""The world's word-level tokenizer, an ordinary Hugging Face folder.

A token is a word with the space before it, a punctuation mark, or one of the templates' markers, so
that decoding is plain concatenation and every template of cai_jax/text is a handful of tokens.
"""

import json
import re
from pathlib import Path

from cai_jax.sandbox import language
from cai_jax.text import dialogue, prompts

PAD, UNKNOWN, END = "<pad>", "<unk>", "</s>"

PATTERN_WORDS = (
    "findings wrong fine clean first second then also or",
    "i will not help with because instead",
)

MARKERS = (
    prompts.CONSIDER_REASONING,
    prompts.CONSIDER,
    prompts.THE_ANSWER,
    prompts.STEP_BY_STEP.removeprefix(dialogue.ASSISTANT),
    prompts.SO_THE_ANSWER.removeprefix(dialogue.HUMAN),
    *dialogue.STOPS,
    "\n\nH:",
    "\n\nA:",
    "\n\n\n",
    " Options:",
    "\n (A) [[[",
    "\n (B) [[[",
    "]]]",
    *prompts.CHOICES,
)


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json for `transformers.AutoTokenizer`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    markers = sorted(MARKERS, key=len, reverse=True)
    pattern = "|".join([re.escape(m) for m in markers] + [r" ?[\w']+", r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, END])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "eos_token": END,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def vocabulary() -> dict[str, int]:
    """Token -> id: the three control tokens, the markers, and every word of the world."""
    spoken = set(_words(language.words()))
    spoken |= set(_words(list(language.principle_json("", "").values())))
    spoken |= set(_words(PATTERN_WORDS))
    starts = {_words(text)[0] for text in language.words()["openings"]}
    starts |= {_words(text)[0] for text in language.words()["refusals"] + ["i"]}
    starts.add(_words(language.principle_json("", "")["comparison"])[0])
    tokens = [PAD, UNKNOWN, END, *MARKERS, ".", ",", "?", ":"]
    tokens += sorted(starts) + [f" {word}" for word in sorted(spoken)]
    return {token: number for number, token in enumerate(tokens)}


def _words(value) -> list[str]:
    if isinstance(value, str):
        return re.findall(r"[\w']+", value)
    if isinstance(value, dict):
        return [word for key, item in value.items() for word in [*_words(key), *_words(item)]]
    return [word for item in value for word in _words(item)]
