"""What a router would reckon from the pushed tags, and what a real engine then serves from its cache."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc
from shoal_api.request_prefix import BLOCK_BYTES, hash_request, request_chain_start
from tests.builders import smollm2
from tests.engine.server.running import until
from tests.engine.server.serve_command import Served, free_port, serve

BLOCK_TOKENS = 16
SENTENCE = "the engine keeps what it has computed and a router asks for a replica that holds a long prompt"


class Fleet:
    """One engine, and what a router knows of it."""

    def __init__(self, served: Served, port: int) -> None:
        self.served = served
        self.held: set[int] = set()
        self.last: set[int] = set()  # the chain of the last request, which its engine must hold
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self._updates: Iterator[pb.Update] = rpc.EngineStateStub(self._channel).Watch(pb.WatchRequest())

    def close(self) -> None:
        self._channel.close()

    def read(self) -> pb.Update:
        update = next(self._updates)
        self.held = (
            set(update.stored) if update.snapshot else self.held - set(update.evicted) | set(update.stored)
        )
        return update

    def complete(self, prompt: str, salt: str = "", **body: Any) -> tuple[float, int, int]:
        """What a router expects to be cached, what was, and how many tokens the prompt has."""
        content = prompt.encode()
        chain = hash_request(content, request_chain_start("m", salt=salt))
        while not self.last <= self.held or len(self.held) != self.served.metric("shoal:prefix_tags"):
            self.read()
        known = next((i for i, tag in enumerate(chain) if tag not in self.held), len(chain))
        data = base64.urlsafe_b64encode(struct.pack(f">{len(chain)}Q", *chain)).rstrip(b"=").decode()
        headers = {"x-shoal-chain": f"{len(content)};{data}"} if chain else {}
        if salt:
            headers["x-shoal-cache-salt"] = salt
        reply = self.served.http.post(
            "/v1/completions", json={"prompt": prompt, "max_tokens": 1, **body}, headers=headers
        )
        assert reply.status_code == 200, reply.text
        self.last = set(chain)
        usage = reply.json()["usage"]
        tokens = usage["prompt_tokens"]
        return (
            known * BLOCK_BYTES / len(content) * tokens,
            usage["prompt_tokens_details"]["cached_tokens"],
            tokens,
        )


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    port = free_port()
    options = ["--max-model-len=512", "--num-threads=1", f"--grpc-port={port}", "--max-num-seqs=4"]
    with serve(str(smollm2()), *options, "--kv-cache-memory-bytes=30000000") as served:
        found = Fleet(served, port)
        yield found
        found.close()


def text(rng: random.Random, num_bytes: int) -> str:
    return " ".join(rng.choices(SENTENCE.split(), k=num_bytes))[:num_bytes]


@pytest.mark.parametrize("num_bytes", [200, 256, 300, 1024, 1500])
def test_a_repeated_request_finds_what_the_router_expects_of_it(fleet: Fleet, num_bytes: int) -> None:
    prompt = text(random.Random(num_bytes), num_bytes)
    expected, cached, tokens = fleet.complete(prompt)
    assert (expected, cached) == (0, 0)
    expected, cached, tokens = fleet.complete(prompt)
    assert cached == (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    rest = num_bytes % BLOCK_BYTES * tokens / num_bytes  # bytes behind the last hash
    assert expected + rest == pytest.approx(cached, abs=BLOCK_TOKENS)


def test_a_longer_request_finds_what_it_shares(fleet: Fleet) -> None:
    rng = random.Random(5)
    shared = text(rng, 1000)
    fleet.complete(shared + text(rng, 300))
    expected, cached, tokens = fleet.complete(shared + "x" + text(rng, 400))
    assert cached > 100
    # Tokens are not spread evenly over the bytes: here within a tag of each other.
    assert expected == pytest.approx(cached, abs=BLOCK_TOKENS + BLOCK_BYTES * tokens / 1401)


def test_tenants_never_share_blocks(fleet: Fleet) -> None:
    prompt = text(random.Random(6), 600)
    _, _, tokens = fleet.complete(prompt, salt="one")
    whole = (tokens - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    found = [
        fleet.complete(prompt, salt=salt, **body)[1]
        for salt, body in (
            ("two", {}),
            ("", {}),
            ("one", {"cache_salt": "one"}),
            ("", {"cache_salt": "one"}),
            ("one", {}),
            ("one", {"cache_salt": "one"}),
        )
    ]
    assert found == [0, 0, 0, 0, whole, whole]


def test_what_a_small_cache_evicts_is_expected_no_more(fleet: Fleet) -> None:
    rng = random.Random(7)
    first = text(rng, 1000)
    fleet.complete(first)
    hits = []
    for after in (1, 5):
        for _ in range(after):
            assert fleet.complete(text(rng, 1500))[:2] == (0, 0)
        expected, cached, _ = fleet.complete(first)
        assert (expected > 0) == (cached > 0)
        hits.append(cached > 0)
    assert hits == [True, False]
    assert fleet.served.metric("shoal:prefix_tags") == len(fleet.held)


def test_step_costs_are_pushed_once_they_are_known(fleet: Fleet) -> None:
    for number in range(9):
        fleet.complete(f"{number} and so on", max_tokens=5, ignore_eos=True)
    until(lambda: fleet.read().HasField("step_cost"))
    cost = fleet.read().step_cost
    assert cost.prefill_token_s > 0
    assert fleet.served.metric("shoal:step_prefill_token_seconds") > 0
    assert (
        fleet.served.metric("shoal:step_base_seconds") + fleet.served.metric("shoal:step_sequence_seconds")
        > 0
    )
