"""Everything the engine reports to a caller. Each error knows its HTTP status and OpenAI code; server/app.py maps it once.

EngineError
├── InvalidRequest        400  the request can never succeed as written; `param` names the field
│   └── ContextTooLong    400  prompt and max_tokens do not fit the model's context
├── ModelNotFound         404  no such served model or adapter
├── QueueFull             429  come back after `retry_after_s`
├── KVCacheExhausted      500  the request alone is larger than the whole KV cache
├── EngineUnavailable     503  loading, draining or dead; another replica may answer
├── RequestTimeout        504  the time that its sender had given it is over
├── BadNumbers            exit  the model computes NaN for everybody; a new process may find better memory
└── ModelLoadError        exit  the checkpoint cannot be served; the text says which file and what to do
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of what the engine reports; `status`, `type` and `code` are what an OpenAI client sees."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(EngineError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ContextTooLong(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(EngineError):
    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class QueueFull(EngineError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class KVCacheExhausted(EngineError):
    code = "kv_cache_exhausted"


class EngineUnavailable(EngineError):
    status = 503
    type = "server_error"
    code = "engine_unavailable"


class RequestTimeout(EngineError):
    status = 504
    code = "request_timeout"


class BadNumbers(EngineError):
    """Raised by a step when nothing but NaN came out for many requests in a row: the process exits with it."""

    code = "logits_not_finite"


class ModelLoadError(EngineError):
    """Raised while loading only: no request ever sees it; the process exits with it as its last line."""

    code = "model_load_failed"


def is_device_error(error: BaseException) -> bool:
    """Whether the accelerator reported it: then it stays broken for this process. By name: this module knows no torch."""
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
