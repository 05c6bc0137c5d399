"""Wait until both halves of a model are there, the text's in this process and the weights' in the engine process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from shoal_api.exit_codes import ExitCode
from shoal_engine.errors import ModelLoadError
from shoal_engine.messages import Failed
from shoal_engine.model_text import ModelText
from shoal_engine.server.engine_client import EngineClient
from shoal_engine.server.loading_display import LoadingDisplay

log = logging.getLogger(__name__)
LOOK_S = 1.0


async def started(
    client: EngineClient, load_text: Callable[[], ModelText], display: LoadingDisplay, most_silence_s: float
) -> ModelText | Failed:
    """The text half once the engine is ready as well, or why there will be none.

    Loading that makes no progress for `most_silence_s` has failed: whoever started this process does better to
    start it again than to wait.
    """
    text = asyncio.create_task(_in_daemon_thread(load_text))
    try:
        while client.ready is None and not client.ended.done():
            display.show(client.loading)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.changed.wait(), LOOK_S)
            client.changed.clear()
            if text.done() and text.exception() is not None:
                break
            if time.monotonic() - client.loading_at_s > most_silence_s:
                return _silent(client.loading.phase, most_silence_s)
        if client.ended.done():
            return client.ended.result()
        return await text
    except ModelLoadError as error:
        return Failed(error.message, ExitCode.MODEL)
    except Exception as error:
        log.exception("the tokenizer could not be loaded")
        return Failed(
            f"The tokenizer could not be loaded: {type(error).__name__}: {error}", ExitCode.UNEXPECTED
        )
    finally:
        text.cancel()
        display.close()


def _silent(phase: str, seconds: float) -> Failed:
    return Failed(
        f"Loading stopped in phase {phase!r} and made no progress for {seconds:.0f} s.", ExitCode.STALLED
    )


async def _in_daemon_thread(work: Callable[[], ModelText]) -> ModelText:
    """In a thread that does not keep the process alive: a signal during loading ends it at once."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[ModelText] = loop.create_future()

    def tell(result: ModelText | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        elif result is not None:
            done.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as failure:
            error = failure
        with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
            loop.call_soon_threadsafe(tell, result, error)

    threading.Thread(target=run, name="load-text", daemon=True).start()
    return await done
