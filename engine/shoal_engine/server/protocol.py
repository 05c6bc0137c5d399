"""The bodies clients send, as OpenAI and vLLM define them. Shapes only: sampling.py and admission.py judge
the values.

Unknown fields are ignored, as OpenAI's own servers and vLLM do: clients send what other providers understand.
A field that we know and do not support yet is refused by name (UNSUPPORTED), because ignoring it would change
the answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

# Lists stop at their first wrong element: a million of them would make a million error objects.
Texts = Annotated[list[str], Field(fail_fast=True)]
Anything = Annotated[list[Any], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True, max_length=2_000_000)]


def _prompt_kind(value: Any) -> str:
    """Decides by the first element, so that a million wrong ones are not tried as four types each."""
    if not isinstance(value, list):
        return "as_text"
    first = value[0] if value else 0
    return (
        "as_texts" if isinstance(first, str) else "as_token_lists" if isinstance(first, list) else "as_tokens"
    )


Prompt = Annotated[
    Annotated[str, Tag("as_text")]
    | Annotated[Texts, Tag("as_texts")]
    | Annotated[TokenIds, Tag("as_tokens")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("as_token_lists")],
    Discriminator(_prompt_kind),
]


class Part(BaseModel):
    """One piece of a message. Only text is supported; the type is kept to say what was refused."""

    model_config = ConfigDict(strict=True)
    type: str
    text: str | None = None


def _content_kind(value: Any) -> str:
    return "as_parts" if isinstance(value, list) else "as_text"


Content = Annotated[
    Annotated[str, Tag("as_text")] | Annotated[list[Part], Field(fail_fast=True), Tag("as_parts")],
    Discriminator(_content_kind),
]


class Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Anything | None = None


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True)
    type: str


class Generate(BaseModel):
    """What chat and text completions share."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    model: str | None = Field(None, description="The served model; left out, the only one there is.")
    max_tokens: int | None = None
    n: int | None = Field(None, description="Completions per prompt.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | Texts | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None

    top_k: int | None = Field(None, description="0 or -1 keeps every token.")
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    allowed_token_ids: TokenIds | None = None
    prompt_logprobs: int | None = Field(
        None, description="Log probabilities of the prompt's own tokens, k each."
    )
    truncate_prompt_tokens: int | None = Field(
        None, description="Keep only the last k tokens; -1: what fits."
    )
    cache_salt: str | None = Field(
        None, description="Only requests with the same salt share cached prefixes."
    )
    priority: int | None = Field(None, description="Lower runs sooner.")
    request_id: str | None = Field(
        None, description="Becomes part of the reply's id; else X-Request-Id, else random."
    )
    return_token_ids: bool | None = None

    response_format: ResponseFormat | None = None
    bad_words: Texts | None = None
    use_beam_search: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    logits_processors: Anything | None = None
    return_tokens_as_token_ids: bool | None = None


class CompletionBody(Generate):
    """POST /v1/completions"""

    prompt: Prompt
    logprobs: int | None = Field(
        None, description="Log probabilities of the k most likely tokens and the chosen one."
    )
    echo: bool | None = None
    add_special_tokens: bool | None = Field(
        None, description="Begin a text prompt with the model's own first token."
    )
    suffix: str | None = None
    best_of: int | None = None


class ChatBody(Generate):
    """POST /v1/chat/completions"""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Switches of the model's template, true or false."
    )

    echo: bool | None = None
    tools: Anything | None = None
    tool_choice: Any = None
    functions: Anything | None = None
    function_call: Any = None
    modalities: Texts | None = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    documents: Anything | None = None
    chat_template: str | None = None
    reasoning_effort: str | None = None


class TokenizeBody(BaseModel):
    """POST /tokenize: a text or a conversation."""

    model_config = ConfigDict(strict=True, protected_namespaces=())
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(BaseModel):
    """POST /detokenize"""

    model_config = ConfigDict(strict=True, protected_namespaces=())
    model: str | None = None
    tokens: TokenIds
