"""The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json and the chat templates beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from shoal_engine.config import ModelConfig
from shoal_engine.errors import ModelLoadError
from shoal_engine.fields import Fields, read_json
from shoal_engine.tokenizer import Tokenizer

_NAMED_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_SWITCHES = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load_hf_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """Raises ModelLoadError naming the file and what to do."""
    inner = _read_tokenizer(folder / "tokenizer.json")
    path = folder / "tokenizer_config.json"
    fields = Fields(path, read_json(path) if path.is_file() else {})
    specials = dict(_special_tokens(fields)) if path.is_file() else _special_tokens_of_config(inner, config)
    _add_declared(inner, fields, specials)
    ids = {name: inner.token_to_id(text) for name, text in specials.items()}
    eos = [*config.eos_token_ids, ids.get("eos_token")]
    return Tokenizer(
        inner,
        bos_token_id=ids.get("bos_token"),
        eos_token_ids=tuple(dict.fromkeys(token_id for token_id in eos if token_id is not None)),
        special_tokens=specials,
        chat_templates=_chat_templates(folder, fields),
    )


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelLoadError(
            f"{path} is missing; download it, or write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelLoadError(f"{path} is not a usable tokenizer ({error}); download it again") from error


def _special_tokens(fields: Fields) -> Iterator[tuple[str, str]]:
    for name in _NAMED_SPECIALS:
        text = _token_text(fields, name)
        if text is not None:
            yield name, text


def _token_text(fields: Fields, name: str) -> str | None:
    """A token is written as its text, or as an object with a `content`."""
    if isinstance(fields.any(name), Mapping):
        return fields.inside(name).text("content", None)
    return fields.text(name, None)


def _special_tokens_of_config(inner: tokenizers.Tokenizer, config: ModelConfig) -> dict[str, str]:
    ids = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    texts = {name: inner.id_to_token(token_id) for name, token_id in ids.items() if token_id is not None}
    return {name: text for name, text in texts.items() if text is not None}


def _add_declared(inner: tokenizers.Tokenizer, fields: Fields, specials: Mapping[str, str]) -> None:
    """Tokens that tokenizer_config.json declares and tokenizer.json lacks, or knows with other switches.

    Only tokens of the vocabulary: one that the model has no embedding for must not be made.
    """
    known = inner.get_added_tokens_decoder()
    declared = fields.inside("added_tokens_decoder")
    for number in declared.names():
        token = _added_token(declared.inside(number))
        token_id = inner.token_to_id(token.content)
        if token_id is not None and not _same(known.get(token_id), token):
            add = inner.add_special_tokens if token.special else inner.add_tokens
            add([token])
    special = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
    for text in specials.values():
        if text not in special and inner.token_to_id(text) is not None:
            inner.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _added_token(fields: Fields) -> AddedToken:
    special = fields.boolean("special", False)
    return AddedToken(
        fields.text("content"),
        single_word=fields.boolean("single_word", False),
        lstrip=fields.boolean("lstrip", False),
        rstrip=fields.boolean("rstrip", False),
        normalized=fields.boolean("normalized", not special),
        special=special,
    )


def _same(one: AddedToken | None, other: AddedToken) -> bool:
    return one is not None and all(getattr(one, name) == getattr(other, name) for name in _TOKEN_SWITCHES)


def _chat_templates(folder: Path, fields: Fields) -> dict[str, str]:
    """Files of their own win over the entry in tokenizer_config.json, as in transformers."""
    templates = _templates_of_config(fields)
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, path in files.items():
        if path.is_file():
            templates[name] = _read_text(path)
    return templates


def _templates_of_config(fields: Fields) -> dict[str, str]:
    declared = fields.any("chat_template")
    if declared is None:
        return {}
    if isinstance(declared, str):
        return {"default": declared}
    if not isinstance(declared, list) or not all(isinstance(entry, Mapping) for entry in declared):
        raise fields.refuse("chat_template", declared, "a template or a list of named ones")
    entries = [Fields(f"{fields.source}: chat_template", entry) for entry in declared]
    return {entry.text("name"): entry.text("template") for entry in entries}


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"{path} cannot be read as text ({error}); download it again") from error
