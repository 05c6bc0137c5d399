from __future__ import annotations

import pytest

from shoal_engine.errors import EngineError, EngineUnavailable, QueueFull
from shoal_engine.messages import Output, Outputs, Stats, Submit
from shoal_engine.sampling_params import SamplingParams
from shoal_engine.server.generation import Generation
from shoal_engine.server.open_requests import Open, OpenRequests


class Ears:
    """A listener that remembers, and that can be made to fail for one prompt length."""

    def __init__(self, fails_at: int = 0) -> None:
        self.finished: list[str] = []
        self.tokens = 0
        self._fails_at = fails_at

    def on_outputs(self, outputs: Outputs, now_s: float) -> None: ...

    def on_tokens(self, request: Open, count: int, now_s: float) -> None:
        if request.prompt_tokens == self._fails_at:
            raise ZeroDivisionError
        self.tokens += count

    def on_finish(self, request: Open, reason: str, now_s: float) -> None:
        self.finished.append(reason)


def generation(table: OpenRequests, *prompts: list[int]) -> Generation:
    made = Generation(0.0)
    table.add(made, [Submit("", prompt, SamplingParams()) for prompt in prompts])
    return made


def step(*outputs: Output) -> Outputs:
    return Outputs(list(outputs), Stats())


async def test_each_gets_what_is_its_own() -> None:
    table = OpenRequests(Ears())
    one, two = generation(table, [1], [2]), generation(table, [3])
    ids = [each.id for each in (*one.submits, *two.submits)]
    assert len(set(ids)) == 3
    table.deliver(
        step(*(Output(request_id, [int(request_id)]) for request_id in ids), Output("unknown", [9])), 1.0
    )
    assert {choice: output.token_ids for choice, output in (await one.take()).items()} == {
        0: [int(ids[0])],
        1: [int(ids[1])],
    }
    assert (await two.take())[0].token_ids == [int(ids[2])]


async def test_what_goes_wrong_with_one_is_its_own_error() -> None:
    table = OpenRequests(Ears(fails_at=2))
    bad, good = generation(table, [5, 5]), generation(table, [5])
    table.deliver(step(*(Output(each.submits[0].id, [7]) for each in (bad, good))), 1.0)
    with pytest.raises(EngineError):
        await bad.take()
    assert (await good.take())[0].token_ids == [7]


@pytest.mark.parametrize(
    ("output", "kind", "status"),
    [
        ({"error_status": 429, "error_code": "queue_full", "retry_after_s": 9}, QueueFull, 429),
        ({"error_status": 503, "error_code": "draining"}, EngineUnavailable, 503),
        ({"error_status": 500, "error_code": "kv_cache_exhausted"}, EngineError, 500),
    ],
)
async def test_an_engines_error_keeps_its_status_and_code(
    output: dict[str, object], kind: type[EngineError], status: int
) -> None:
    table = OpenRequests(Ears())
    made = generation(table, [1])
    table.deliver(step(Output(made.submits[0].id, finish_reason="error", **output)), 1.0)  # type: ignore[arg-type]
    with pytest.raises(kind) as caught:
        await made.take()
    assert (caught.value.status, caught.value.code) == (status, output["error_code"])
    assert len(table) == 0


def test_there_is_work_since_the_first_of_those_that_are_open() -> None:
    table = OpenRequests(Ears())
    assert table.since_ns is None
    first, second = generation(table, [1]), generation(table, [2])
    since = table.since_ns
    assert since is not None
    table.end([first.submits[0].id], "abort")
    assert table.since_ns == since
    assert table.end([first.submits[0].id, second.submits[0].id], "abort") == [second.submits[0].id]
    assert table.since_ns is None


async def test_when_the_engine_is_gone_everybody_learns_of_it() -> None:
    ears = Ears()
    table = OpenRequests(ears)
    made = [generation(table, [1], [2]), generation(table, [3])]
    table.fail_all(EngineUnavailable("gone"))
    for each in made:
        with pytest.raises(EngineUnavailable):
            await each.take()
    assert (len(table), ears.finished) == (0, ["abort"] * 3)
