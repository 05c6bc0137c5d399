"""The tokenizer in a GGUF file's metadata: byte-level BPE ("gpt2") or SentencePiece BPE ("llama")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from shoal_engine.config import ModelConfig
from shoal_engine.errors import ModelLoadError
from shoal_engine.fields import Fields
from shoal_engine.gguf import open_gguf
from shoal_engine.gguf_config import CONTROL_TOKEN, special_token_id
from shoal_engine.gguf_splits import SPLITS
from shoal_engine.tokenizer import Tokenizer

_UNKNOWN_TOKEN, _USER_DEFINED_TOKEN = 2, 4  # in tokenizer.ggml.token_type, beside CONTROL_TOKEN
_SPACE_MARK = "▁"
_MAX_PIECE_CHARS = 512  # each can be cut in two at every place, and all these ways are tried
_SPECIAL_NAMES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclass(frozen=True, slots=True)
class _Built:
    """A tokenizer without its special tokens, and whether texts start with BOS unless the file says otherwise."""

    inner: tokenizers.Tokenizer
    adds_bos: bool


def load_gguf_tokenizer(path: Path, config: ModelConfig) -> Tokenizer:
    """Raises ModelLoadError naming the file, the field and what to do."""
    metadata = open_gguf(path).metadata
    fields = Fields(path, metadata, prefix="tokenizer.ggml.")
    tokens = _tokens(fields, config)
    kind = fields.choose("model", fields.text("model"), _BUILDERS)
    try:
        built = _BUILDERS[kind](fields, tokens)
        _add_special_tokens(built.inner, fields, tokens)
    except ModelLoadError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(
            f"{path}: the tokenizer is not usable ({error}); download the file again"
        ) from error
    _add_ends(built, fields, tokens)
    every = Fields(path, metadata)
    ids = {name: special_token_id(every, key, len(tokens)) for name, key in _SPECIAL_NAMES.items()}
    return Tokenizer(
        built.inner,
        bos_token_id=config.bos_token_id,
        eos_token_ids=config.eos_token_ids,
        special_tokens={name: tokens[number] for name, number in ids.items() if number is not None},
        chat_templates=_chat_templates(Fields(path, metadata, prefix="tokenizer.")),
    )


def _tokens(fields: Fields, config: ModelConfig) -> tuple[str, ...]:
    tokens = fields.texts("tokens")
    if not tokens:
        raise ModelLoadError(f"{fields.source} has no vocabulary; serve a GGUF file that holds its tokenizer")
    if len(tokens) > config.vocab_size:
        raise ModelLoadError(
            f"{fields.source} has {len(tokens)} tokens but embeddings for {config.vocab_size}; download it again"
        )
    return tokens


def _token(fields: Fields, tokens: Sequence[str], number: int) -> str:
    if not 0 <= number < len(tokens):
        raise ModelLoadError(
            f"{fields.source}: special token {number} is outside the vocabulary; download it again"
        )
    return tokens[number]


def _byte_level(fields: Fields, tokens: Sequence[str]) -> _Built:
    split = SPLITS[fields.choose("pre", fields.text("pre", "default"), SPLITS)]
    merges = [_merge(fields, text) for text in fields.texts("merges")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.ignore_merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spell])
    inner.decoder = decoders.ByteLevel()
    if split.composes:
        inner.normalizer = normalizers.NFC()
    return _Built(inner, split.adds_bos)


def _merge(fields: Fields, text: str) -> tuple[str, str]:
    left, space, right = text.partition(" ")
    if not (left and space and right):
        raise fields.refuse("merges", text, "two tokens with a space between")
    return left, right


def _sentencepiece(fields: Fields, tokens: Sequence[str]) -> _Built:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    longest = max(tokens, key=len)
    if len(longest) > _MAX_PIECE_CHARS:
        raise fields.refuse("tokens", longest, f"pieces of up to {_MAX_PIECE_CHARS} characters")
    scores = _numbers(fields, "scores", len(tokens))
    unknown = _token(fields, tokens, fields.integer("unknown_token_id", 0))
    inner = tokenizers.Tokenizer(
        models.BPE(
            vocabulary,
            _merges_by_score(vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    mark_spaces = normalizers.Replace(" ", _SPACE_MARK)
    to_text = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    if fields.boolean("add_space_prefix", True):
        inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE_MARK), mark_spaces])
        inner.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)])
    else:
        inner.normalizer = mark_spaces
        inner.decoder = decoders.Sequence(to_text)
    return _Built(inner, adds_bos=True)


def _merges_by_score(vocabulary: dict[str, int], scores: NDArray[np.float32]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose whole scores best: every way to cut a token in two, best whole first."""
    ranked = []
    for token, number in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                ranked.append((-scores[number], vocabulary[left], vocabulary[right], left, right))
    ranked.sort(key=lambda entry: entry[:3])
    return [(left, right) for _, _, _, left, right in ranked]


def _numbers(fields: Fields, name: str, count: int) -> NDArray[np.float32]:
    values = fields.any(name)
    if not isinstance(values, np.ndarray) or len(values) != count:
        raise fields.refuse(name, type(values).__name__, f"{count} numbers, one per token")
    return values


def _add_special_tokens(inner: tokenizers.Tokenizer, fields: Fields, tokens: Sequence[str]) -> None:
    """Control tokens are special; user-defined ones are taken whole out of a text but stay visible."""
    if not fields.mentions("token_type"):
        return
    kinds = _numbers(fields, "token_type", len(tokens)).tolist()
    typed = list(zip(tokens, kinds, strict=True))
    special = [token for token, kind in typed if kind in (CONTROL_TOKEN, _UNKNOWN_TOKEN) and token]
    visible = [token for token, kind in typed if kind == _USER_DEFINED_TOKEN and token]
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    inner.add_tokens([AddedToken(token, special=False, normalized=False) for token in visible])


def _add_ends(built: _Built, fields: Fields, tokens: Sequence[str]) -> None:
    pieces, ends = ["$A"], []
    if fields.boolean("add_bos_token", built.adds_bos):
        ends.append(("BOS", fields.integer("bos_token_id", 1)))
        pieces.insert(0, "BOS")
    if fields.boolean("add_eos_token", False):
        ends.append(("EOS", fields.integer("eos_token_id", 2)))
        pieces.append("EOS")
    if ends:
        special = [
            {"id": name, "ids": [number], "tokens": [_token(fields, tokens, number)]} for name, number in ends
        ]
        built.inner.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=special)


def _chat_templates(fields: Fields) -> dict[str, str]:
    """The default one, and those named in tokenizer.chat_templates ("tool_use", ...)."""
    keys = {"default": "chat_template"}
    keys |= {name: f"chat_template.{name}" for name in fields.texts("chat_templates")}
    templates = {name: fields.text(key, None) for name, key in keys.items()}
    return {name: template for name, template in templates.items() if template is not None}


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece}
