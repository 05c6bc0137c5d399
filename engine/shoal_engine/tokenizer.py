"""Text to token ids and back. One class for every model; `hf_tokenizer.py` and `gguf_tokenizer.py` build it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from shoal_engine.config import ModelConfig
from shoal_engine.errors import InvalidRequest
from shoal_engine.token_bytes import TokenBytes


class Tokenizer:
    """Thread-safe once built. Ids are the model's; an id that is no token decodes to nothing.

    special_tokens: names as chat templates know them ("bos_token", ...) and their texts.
    chat_templates: Jinja sources by name; "default" is the one for every purpose.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: Sequence[int],
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
    ) -> None:
        inner.no_truncation()  # saved files carry the settings of their last training run
        inner.no_padding()
        self._inner = inner
        self._bytes = TokenBytes(inner)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        self.special_tokens = dict(special_tokens)
        self.chat_templates = dict(chat_templates)
        self.special_ids = frozenset(
            token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special
        )
        self.vocab_size = inner.get_vocab_size(with_added_tokens=True)

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")

    @property
    def strips_space(self) -> bool:
        """Whether a text loses one space at its very start, which encoding has put there."""
        return self._bytes.strips_space

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Special tokens spelt out in `text` become those tokens. Raises InvalidRequest for text that is no Unicode."""
        try:
            # Unlike encode(), this gives up the interpreter lock: a long prompt must not stop the server's loop.
            encodings = self._inner.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except (UnicodeEncodeError, TypeError) as error:
            place = _half_character(text)
            if place is None:
                raise
            raise InvalidRequest(
                f"the text has half a surrogate pair at character {place}; send complete Unicode characters"
            ) from error
        ids: list[int] = encodings[0].ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Bytes that are no UTF-8 become U+FFFD. Spaces stay as they are: nothing is tidied up."""
        text = b"".join([self.visible_bytes(token_id, skip_special_tokens) for token_id in ids])
        return text[self.strips_space and text[:1] == b" " :].decode("utf-8", "replace")

    def visible_bytes(self, token_id: int, skip_special_tokens: bool) -> bytes:
        """What a token adds to a text: nothing where it is special and these are skipped."""
        return b"" if skip_special_tokens and token_id in self.special_ids else self._bytes[token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """As in the `bytes` of OpenAI's logprobs: may be part of a character."""
        return self._bytes[token_id]

    def token_text(self, token_id: int) -> str:
        """As in the `token` of OpenAI's logprobs; incomplete characters show as U+FFFD."""
        return self._bytes[token_id].decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a token by its spelling in the vocabulary."""
        token_id: int | None = self._inner.token_to_id(token)
        return token_id


def _half_character(text: str) -> int | None:
    """Where a surrogate stands alone in `text`, which then is no Unicode text; None if nowhere."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def load_tokenizer(path: Path | str, config: ModelConfig) -> Tokenizer:
    """Of a Hugging Face folder or a .gguf file. Raises ModelLoadError naming the file and what to do."""
    path = Path(path)
    if path.is_dir():
        from shoal_engine.hf_tokenizer import load_hf_tokenizer

        return load_hf_tokenizer(path, config)
    from shoal_engine.gguf_tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(path, config)
