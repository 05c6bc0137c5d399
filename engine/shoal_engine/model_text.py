"""What a caller of the engine needs of a model's files: tokenizer, chat template, recommended sampling. No weights,
no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from shoal_api.options import ModelOptions
from shoal_engine.chat_template import ChatTemplate
from shoal_engine.config import read_config
from shoal_engine.errors import ModelLoadError
from shoal_engine.model_path import local_path
from shoal_engine.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class ModelText:
    """`longest_token_bytes` bounds from below how many tokens a text has. `defaults`: sampling parameters by
    name.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    longest_token_bytes: int
    defaults: Mapping[str, float]


def load_model_text(options: ModelOptions) -> ModelText:
    """Takes a second for a large vocabulary. Raises ModelLoadError."""

    path = local_path(options.model)
    config = read_config(path)
    tokenizer = load_tokenizer(path, config)
    source = template_source(options) or tokenizer.chat_template
    longest = max(len(tokenizer.token_bytes(token_id)) for token_id in range(tokenizer.vocab_size))
    recommended = asdict(config.generation) if options.generation_config == "auto" else {}
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    return ModelText(
        tokenizer,
        ChatTemplate(source, tokenizer),
        max(longest, 1),
        {name: recommended[name] for name in names if recommended.get(name) is not None},
    )


def template_source(options: ModelOptions) -> str | None:
    """The template that the options name, read if they give a path. Raises ModelLoadError."""
    given = options.chat_template
    if (
        given is None or "{" in given
    ):  # a template without a brace would print the same for every conversation
        return given
    try:
        return Path(given).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelLoadError(f"--chat-template {given}: {error}") from None
