"""What the API process makes of an engine's failures: of one request, and of the whole process. Pure."""

from __future__ import annotations

from shoal_api.exit_codes import ExitCode, of_returncode
from shoal_engine.errors import EngineError, EngineUnavailable, InvalidRequest, ModelNotFound, QueueFull
from shoal_engine.messages import Failed, Output


def cause_of_death(pid: int, returncode: int) -> Failed:
    """What to say of an engine process that left no last words."""
    if returncode < 0:
        hint = "; often the kernel's, for want of memory" if returncode == -9 else ""
        return Failed(
            f"The engine process {pid} was killed by signal {-returncode}{hint}.", of_returncode(returncode)
        )
    return Failed(
        f"The engine process {pid} ended by itself with code {returncode}.",
        returncode or ExitCode.ENGINE_DIED,
    )


def error_of(output: Output) -> EngineError:
    """The error that the engine reported for a request, as the class its status stands for."""
    message = output.error_message or "The engine ended this request."
    kinds: dict[int, type[EngineError]] = {400: InvalidRequest, 404: ModelNotFound, 503: EngineUnavailable}
    if output.error_status == 429:
        return QueueFull(message, retry_after_s=output.retry_after_s or 1)
    error = kinds.get(output.error_status, EngineError)(
        message, param=output.error_param, code=output.error_code
    )
    error.status = output.error_status
    return error
