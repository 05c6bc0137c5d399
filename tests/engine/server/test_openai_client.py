"""SmolLM2 behind a real `shoal serve`, driven by the client our users have."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import signal
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from shoal_api.exit_codes import ExitCode
from tests.builders import smollm2
from tests.engine.server.running import model_text, until
from tests.engine.server.serve_command import KEY, Served, serve

MODEL = "smol"
QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
STORY = "Once upon a time there was a little"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    # float32: only there are a prompt's tokens the same in every batch. One thread: several would wait for one another
    # on a machine that is busy with other tests.
    options = (f"--served-model-name={MODEL}", "--max-model-len=1024", "--dtype=float32", "--num-threads=1")
    with serve(str(smollm2()), *options) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(timeout=60) == ExitCode.STOPPED
        assert [entry for entry in running.log() if entry["level"] == "error"] == []


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_chat_answers_and_the_second_time_from_the_cache(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "You are a terse assistant. " * 6}
    first = client.chat.completions.create(model=MODEL, messages=[system, *QUESTION], **GREEDY)  # type: ignore[list-item]
    again = client.chat.completions.create(model=MODEL, messages=[system, *QUESTION], **GREEDY)  # type: ignore[list-item]
    assert "Paris" in (first.choices[0].message.content or "")
    assert again.choices == first.choices
    for reply in (first, again):
        assert reply.usage is not None
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
        assert reply.usage.prompt_tokens_details is not None
    cached = again.usage.prompt_tokens_details.cached_tokens  # type: ignore[union-attr]
    assert cached == (again.usage.prompt_tokens - 1) // 16 * 16 > 0  # type: ignore[union-attr]


def test_a_salt_keeps_the_cache_apart(client: openai.OpenAI) -> None:
    def cached(salt: str) -> int | None:
        body = {"cache_salt": salt}
        reply = client.completions.create(model=MODEL, prompt=STORY * 5, max_tokens=1, extra_body=body)
        assert reply.usage is not None
        assert reply.usage.prompt_tokens_details is not None
        return reply.usage.prompt_tokens_details.cached_tokens

    assert cached("a") == 0
    assert (cached("a") or 0) > 16
    assert cached("b") == 0


def test_a_stream_says_exactly_what_the_whole_says(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, logprobs=True, top_logprobs=3, **GREEDY
    )
    stream = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        stream=True,
        stream_options={"include_usage": True},
        logprobs=True,
        top_logprobs=3,
        **GREEDY,
    )
    chunks = list(stream)
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == [
        whole.choices[0].finish_reason
    ]
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    streamed = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content or []]
    told = whole.choices[0].logprobs.content or []  # type: ignore[union-attr]
    assert [entry.token for entry in streamed] == [entry.token for entry in told]
    for entry, other in zip(streamed, told, strict=True):
        assert entry.logprob == pytest.approx(
            other.logprob, abs=0.05
        )  # a cached prefix may round differently
        assert entry.token == entry.top_logprobs[0].token  # greedy takes the likeliest
        assert len(entry.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1.001
        assert bytes(entry.bytes or []).decode("utf-8", "replace") == entry.token


def test_many_async_streams_at_once_say_what_each_says_alone(served: Served, client: openai.OpenAI) -> None:
    prompts = [f"{STORY} {word}" for word in ("girl", "boy", "dragon", "house", "star", "fish")]
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, **GREEDY).choices[0].text for prompt in prompts
    ]

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:

            async def one(prompt: str, delay_s: float) -> str:
                await asyncio.sleep(delay_s)  # they join and leave one another's batches
                stream = await made.completions.create(model=MODEL, prompt=prompt, stream=True, **GREEDY)
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(prompt, 0.03 * i) for i, prompt in enumerate(prompts)))

    assert asyncio.run(ask()) == alone


def test_choices_are_seeded_apart_and_come_again(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        reply = client.completions.create(
            model=MODEL, prompt=STORY, n=3, seed=seed, temperature=1.0, max_tokens=12
        )
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        return [choice.text for choice in reply.choices]

    first = texts(7)
    assert texts(7) == first
    assert len(set(first)) == 3
    assert texts(8) != first


def test_prompts_in_one_request_are_answered_in_order(client: openai.OpenAI) -> None:
    prompts = ["The capital of Italy is", "Two plus two is", "The sky is"]
    together = client.completions.create(model=MODEL, prompt=prompts, **GREEDY)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    for prompt, choice in zip(prompts, together.choices, strict=True):
        assert client.completions.create(model=MODEL, prompt=prompt, **GREEDY).choices[0].text == choice.text


def test_stops_end_the_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=STORY, **GREEDY).choices[0].text
    word = whole.split()[5]
    cut = client.completions.create(model=MODEL, prompt=STORY, stop=word, **GREEDY).choices[0]
    assert (cut.text, cut.finish_reason) == (whole[: whole.index(word)], "stop")
    kept = client.completions.create(
        model=MODEL,
        prompt=STORY,
        stop=[word, "nowhere"],
        extra_body={"include_stop_str_in_output": True},
        **GREEDY,
    ).choices[0]
    assert kept.text == whole[: whole.index(word) + len(word)]
    token = model_text().tokenizer.encode(whole, add_special_tokens=False)[4]
    by_token = client.completions.create(
        model=MODEL, prompt=STORY, extra_body={"stop_token_ids": [token]}, **GREEDY
    ).choices[0]
    assert by_token.finish_reason == "stop"
    assert whole.startswith(by_token.text)
    assert by_token.stop_reason == token  # type: ignore[attr-defined]


def test_each_parameter_reaches_the_sampler(client: openai.OpenAI) -> None:
    encode = model_text().tokenizer.encode
    banana = encode(" banana", add_special_tokens=False)[0]
    forced = client.completions.create(
        model=MODEL, prompt=STORY, logit_bias={str(banana): 100}, temperature=0.0, max_tokens=3
    )
    text = model_text().tokenizer.decode([banana])
    assert forced.choices[0].text == text * 3
    allowed = client.completions.create(
        model=MODEL, prompt=STORY, temperature=1.0, max_tokens=8, extra_body={"allowed_token_ids": [banana]}
    )
    assert allowed.choices[0].text == text * 8
    for extra in ({"top_k": 1}, {"min_p": 1.0}):
        greedy = client.completions.create(
            model=MODEL, prompt=STORY, temperature=1.0, max_tokens=8, extra_body=extra
        )
        assert (
            greedy.choices[0].text
            == client.completions.create(model=MODEL, prompt=STORY, temperature=0.0, max_tokens=8)
            .choices[0]
            .text
        )
    plain = client.completions.create(model=MODEL, prompt="la la la la la", **GREEDY).choices[0].text
    for change in (
        {"frequency_penalty": 2.0},
        {"presence_penalty": 2.0},
        {"extra_body": {"repetition_penalty": 2.0}},
    ):
        other = client.completions.create(model=MODEL, prompt="la la la la la", **GREEDY, **change)  # type: ignore[arg-type]
        assert other.choices[0].text != plain


def test_an_end_can_be_forbidden(client: openai.OpenAI) -> None:
    ended = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0.0, max_tokens=30)
    assert ended.choices[0].finish_reason == "stop"
    for extra in ({"ignore_eos": True}, {"min_tokens": 30}):
        endless = client.chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0.0, max_tokens=30, extra_body=extra
        )
        assert (endless.choices[0].finish_reason, endless.usage.completion_tokens) == ("length", 30)  # type: ignore[union-attr]


def test_echo_gives_the_likelihood_of_a_text(client: openai.OpenAI) -> None:
    def likelihood(text: str) -> float:
        reply = client.completions.create(
            model=MODEL, prompt=text, echo=True, logprobs=1, max_tokens=1, temperature=0.0
        )
        logprobs = reply.choices[0].logprobs
        assert logprobs is not None
        assert reply.choices[0].text.startswith(text)
        values = logprobs.token_logprobs or []
        assert values[0] is None
        return sum(values[1:-1])

    assert likelihood("The capital of France is Paris") > likelihood("The capital of France is Banana")


def test_the_most_likely_token_of_each_place_of_a_prompt_can_be_had(client: openai.OpenAI) -> None:
    reply = client.completions.create(
        model=MODEL, prompt="The capital of France is Paris", max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    first, *others = reply.choices[0].prompt_logprobs  # type: ignore[attr-defined]
    assert first is None
    assert all(2 <= len(candidates) <= 3 for candidates in others)
    assert any(each["decoded_token"] == " Paris" for each in others[-1].values())


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    (card,) = client.models.list().data
    assert (card.id, card.max_model_len) == (MODEL, 1024)  # type: ignore[attr-defined]
    assert client.models.retrieve(MODEL) == card
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_errors_are_the_clients_own_exceptions_with_codes(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=MODEL, prompt="word " * 5000)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model=MODEL, messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (tools.value.param, tools.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as hot:
        client.completions.create(model=MODEL, prompt="a", temperature=-1)
    assert hot.value.param == "temperature"
    stranger = openai.OpenAI(base_url=f"{served.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
            extra = {"ignore_eos": True}
            stream = await made.completions.create(
                model=MODEL, prompt=STORY, max_tokens=900, stream=True, extra_body=extra
            )
            await anext(aiter(stream))
            await stream.close()
            whole = asyncio.create_task(
                made.completions.create(model=MODEL, prompt=STORY, max_tokens=900, n=3, extra_body=extra)
            )
            await asyncio.sleep(0.3)
            whole.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await whole  # only then has it closed its connection

    asyncio.run(leave())
    until(lambda: served.metric("vllm:num_requests_running") == 0)
    assert served.metric("shoal:disconnect_aborts_total") == 2
    assert served.metric("vllm:kv_cache_usage_perc") == 0


def test_malformed_bodies_leave_a_real_neighbours_tokens_alone(served: Served, client: openai.OpenAI) -> None:
    from tests.engine.server.test_malformed import broken

    asked: dict[str, Any] = {"model": MODEL, "prompt": STORY, "temperature": 0.0, "max_tokens": 60}
    extra = {"ignore_eos": True, "return_token_ids": True}
    alone = client.completions.create(**asked, extra_body=extra).choices[0].token_ids  # type: ignore[attr-defined]
    chance = random.Random(7)
    bodies = [broken(chance) for _ in range(100)]

    async def together() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as made:
            neighbour = asyncio.create_task(made.completions.create(**asked, extra_body=extra))
            headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
            for path, content in bodies:
                response = await asyncio.to_thread(served.http.post, path, content=content, headers=headers)
                assert response.status_code < 500
            return (await neighbour).choices[0].token_ids  # type: ignore[attr-defined]

    assert asyncio.run(together()) == alone


def test_what_was_served_shows_in_the_metrics(served: Served) -> None:
    assert served.metric("vllm:prompt_tokens_total") > 100
    assert served.metric("vllm:generation_tokens_total") > 100
    assert served.metric("vllm:prefix_cache_hits_total") > 0
    assert served.metric("vllm:inter_token_latency_seconds_count") > 100
    assert served.metric("vllm:request_queue_time_seconds_count") > 10
    assert served.metric("shoal:step_duration_seconds_count") > 100
