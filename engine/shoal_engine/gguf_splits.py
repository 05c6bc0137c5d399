"""How byte-level BPE cuts text before merging, by the name that a GGUF file gives (tokenizer.ggml.pre).

The file holds only the name. Names and patterns are those of the models' own tokenizer.json files and of llama.cpp;
a wrong cut would give other tokens than the model was trained on, so an unknown name is refused by who looks it up.
"""

from __future__ import annotations

from dataclasses import dataclass

# What the splits since GPT-4 share: contractions; words, with one character of another kind before them;
# punctuation with the line ends after it; line ends with the space before them; space.
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_PATH_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITAL_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"


@dataclass(frozen=True, slots=True)
class Split:
    """Patterns applied one after another to what is left whole; what none matches stays a piece of its own."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token as a whole is taken as that
    adds_bos: bool = False  # unless the file says otherwise
    composes: bool = False  # Unicode NFC first


_LLAMA3 = Split((f"{_CONTRACTION}|{_WORD}|\\p{{N}}{{1,3}}|{_PUNCTUATION}|{_SPACES}",), True, True)
_QWEN2 = Split((f"{_CONTRACTION}|{_WORD}|\\p{{N}}|{_PUNCTUATION}|{_SPACES}",))
_DIGITS_GPT2 = Split((r"\p{N}", _GPT2))
_GPT4O_WORDS = "|".join(f"{word}{_CONTRACTION}?" for word in _CAPITAL_WORDS)
_GPT4O = Split((f"{_GPT4O_WORDS}|\\p{{N}}{{1,3}}|{_PATH_PUNCTUATION}|{_SPACES}",))
_TEKKEN = Split((f"{'|'.join(_CAPITAL_WORDS)}|\\p{{N}}|{_PATH_PUNCTUATION}|{_SPACES}",), True, True)
SPLITS = {
    "default": Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": Split((_GPT2,)),
    "phi-2": Split((_GPT2,)),
    "olmo": Split((_GPT2,)),
    "mpt": Split((_GPT2,)),
    "trillion": Split((_GPT2,)),
    "exaone4": Split((_GPT2,)),
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "refact": _DIGITS_GPT2,
    "command-r": _DIGITS_GPT2,
    "codeshell": _DIGITS_GPT2,
    "exaone": _DIGITS_GPT2,
    "minerva-7b": _DIGITS_GPT2,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "midm-2.0": _LLAMA3,
    "smaug-bpe": Split(_LLAMA3.patterns),
    "dbrx": Split(_LLAMA3.patterns),
    "qwen2": Split(_QWEN2.patterns, composes=True),
    "deepseek-r1-qwen": _QWEN2,
    "megrez": _QWEN2,
    "stablelm2": _QWEN2,
    "kormo": _QWEN2,
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "deepseek-coder": Split(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")
    ),
}
