"""From one choice's tokens to its text: detokenise, watch for stop strings, count. One choice, no HTTP, no
engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal_engine.detokenizer import Detokenizer, StopStrings
from shoal_engine.messages import Output, TokenLogprobs
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.tokenizer import Tokenizer


@dataclass(slots=True)
class Delta:
    """What one piece of news adds to a choice. `finish_reason` set: the last one."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None  # once
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class ChoiceText:
    """Text held back (half a character, the beginning of a stop string) comes out with a later delta.

    A `silent` one says and counts nothing: its token was computed for the sake of the prompt's log
    probabilities.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        silent: bool = False,
    ) -> None:
        self.num_tokens = 0
        self.finished = False
        self.stopped_by_text = False  # the engine does not know yet that it is over
        self._params = params
        self._silent = silent
        self._detokenizer = Detokenizer(tokenizer, prompt_token_ids, params.skip_special_tokens)
        self._stops = StopStrings(params.stop, params.include_stop_str_in_output)

    def advance(self, output: Output) -> Delta:
        """Tokens beyond a stop string are dropped and not counted, however many came at once."""
        delta = Delta(prompt_logprobs=output.prompt_logprobs)
        if self.finished:
            return delta
        hit = None if self._silent else self._read(output, delta)
        if hit is not None:
            delta.finish_reason, delta.stop_reason = "stop", hit
            self.stopped_by_text = output.finish_reason is None
        elif output.finish_reason is not None:
            delta.finish_reason, delta.stop_reason = output.finish_reason, output.stop_reason
            delta.text += self._stops.flush()
        used = len(delta.token_ids)
        self.num_tokens += used
        delta.logprobs = (output.logprobs or [])[:used]
        self.finished = delta.finish_reason is not None
        return delta

    def close(self, num_tokens: int) -> None:
        """It has ended elsewhere, with so many tokens."""
        self.num_tokens = num_tokens
        self.finished = True

    def _read(self, output: Output, delta: Delta) -> str | None:
        """Put text and tokens into `delta`, up to a stop string; returns that."""
        spoken = output.token_ids
        if output.finish_reason == "stop" and not self._params.include_stop_str_in_output:
            spoken = spoken[:-1]  # the token that stopped it is counted but says nothing
        for count, token_id in enumerate(spoken, start=1):
            hit = self._say(self._detokenizer.push([token_id]), self.num_tokens + count, delta)
            if hit is not None:
                delta.token_ids = spoken[:count]
                return hit
        delta.token_ids = output.token_ids
        if output.finish_reason is None:
            return None
        return self._say(self._detokenizer.flush(), self.num_tokens + len(spoken), delta)

    def _say(self, text: str, count: int, delta: Delta) -> str | None:
        """`text` came with the `count`th token; before min_tokens no stop string ends the choice."""
        if not self._params.stop or count < self._params.min_tokens:
            delta.text += text
            return None
        emitted, hit = self._stops.push(text)
        delta.text += emitted
        return hit
