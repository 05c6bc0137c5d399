"""The pushed state over real gRPC: a scripted engine caches whole prompts and forgets the oldest of three."""

from __future__ import annotations

import base64
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import hypothesis.strategies as st
from hypothesis import given

from shoal_api import engine_state_pb2 as pb
from shoal_api import engine_state_pb2_grpc as rpc
from shoal_api.exit_codes import ExitCode
from shoal_engine.messages import TagChanges
from shoal_engine.server.held_tags import HeldTags
from tests.engine.server.running import Running, serving, until
from tests.engine.server.scripted_engine import Script
from tests.engine.server.serve_command import free_port


@dataclass(slots=True)
class Watcher:
    """Applies updates as the protocol says, and checks that none is missing."""

    updates: Iterator[pb.Update]
    held: set[int] = field(default_factory=set)
    sequence: int = 0
    epochs: set[int] = field(default_factory=set)
    last: pb.Update = field(default_factory=pb.Update)

    def read(self) -> pb.Update:
        update = self.last = next(self.updates)
        assert update.sequence == self.sequence + 1
        assert update.snapshot == (not self.sequence)
        if update.snapshot:
            self.held.clear()
        self.sequence = update.sequence
        self.epochs.add(update.epoch)
        self.held.difference_update(update.evicted)
        self.held.update(update.stored)
        return update

    def read_until(self, held: set[int]) -> None:
        for _ in range(100):
            if self.read() and self.held == held:
                return
        raise AssertionError(f"held {self.held}, not {held}")


@contextmanager
def watching(port: int) -> Iterator[Watcher]:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = rpc.EngineStateStub(channel).Watch(pb.WatchRequest(watcher="test"), timeout=60)
        try:
            yield Watcher(call)
        finally:
            call.cancel()


def ask(server: Running, prompt: list[int], *chain: int, max_tokens: int = 1) -> None:
    data = base64.urlsafe_b64encode(struct.pack(f">{len(chain)}Q", *chain)).rstrip(b"=").decode()
    headers = {"x-shoal-chain": f"{256 * len(chain)};{data}"} if chain else {}
    reply = server.http.post(
        "/v1/completions", json={"prompt": prompt, "max_tokens": max_tokens}, headers=headers
    )
    assert reply.status_code == 200


def test_watchers_know_what_the_cache_holds() -> None:
    port = free_port()
    with serving(Script(max_cached=3, max_requests=9), grpc_port=port) as server, watching(port) as early:
        assert early.read().snapshot
        assert early.held == set()
        ask(server, [40, 41], 1, 2)
        early.read_until({1, 2})
        ask(server, [50, 51], 2**64 - 1)
        ask(server, [60, 61])
        early.read_until({1, 2, 2**64 - 1})
        with watching(port) as late:
            assert late.read().snapshot
            assert late.held == {1, 2, 2**64 - 1}
            ask(server, [70, 71], 7)  # the oldest prompt leaves
            for each in (early, late):
                each.read_until({2**64 - 1, 7})
            assert early.epochs == late.epochs
            assert len(early.epochs - {0}) == 1
        assert server.metric("shoal:grpc_port") == port
        assert server.metric("shoal:prefix_tags") == 2


def test_a_reply_that_has_ended_is_in_the_next_update_but_one() -> None:
    port = free_port()
    with serving(grpc_port=port) as server, watching(port) as watcher:
        for tag in (1, 2):
            ask(server, [40, tag], tag)
            watcher.read()  # may have been built before the end
            watcher.read()
            assert tag in watcher.held


def test_load_is_told_and_an_idle_engine_speaks_every_second() -> None:
    port = free_port()
    script = Script(step_s=0.01, max_requests=9, max_running=1)
    with serving(script, wait=False, grpc_port=port) as server, watching(port) as watcher:
        while not watcher.read().load.ready:
            assert server.thread.is_alive()
        load = watcher.last.load
        assert (load.kv_capacity_tokens, load.max_requests) == (127 * 16, 9)
        watcher.read()  # nothing has changed
        assert not watcher.last.HasField("step_cost")
        body = {"prompt": [40], "max_tokens": 2000, "n": 3, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as reply:
            lines = reply.iter_lines()
            next(lines)
            while (watcher.last.load.running, watcher.last.load.waiting) != (1, 2):
                watcher.read()
        while (watcher.last.load.running, watcher.last.load.waiting) != (0, 0):
            watcher.read()
        server.stop()


def test_a_server_that_drains_says_so() -> None:
    port = free_port()
    with serving(Script(step_s=0.01), grpc_port=port) as server, watching(port) as watcher:
        assert watcher.read().load.ready
        with server.http.stream(
            "POST", "/v1/completions", json={"prompt": [40], "max_tokens": 2000, "stream": True}
        ) as reply:
            lines = reply.iter_lines()
            next(lines)
            server.stop()
            while watcher.read().load.ready:
                pass
            assert watcher.last.load.running == 1


def test_a_watcher_that_reads_nothing_for_long_begins_anew() -> None:
    port = free_port()
    with serving(Script(max_cached=3), grpc_port=port) as server, watching(port) as watcher:
        watcher.read()
        server.api.client.tags._changes.clear()
        server.api.client.tags.end += 5  # changes that came and were forgotten while it read nothing
        until(lambda: next(watcher.updates).snapshot)


def test_a_port_that_is_taken_meanwhile_ends_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(wait=False, grpc_port=port) as server:
            assert server.exit_code() == ExitCode.ADDRESS


def test_a_port_that_nobody_asked_for_and_is_taken_meanwhile_is_replaced() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving(grpc_port=port, any_grpc_port=True) as server:
            assert server.metric("shoal:grpc_port") not in (0, port)


def test_without_a_port_nothing_listens(server: Running) -> None:
    assert server.metric("shoal:grpc_port") == 0
    assert "shoal:grpc_port" in server.http.get("/metrics").text


events = st.lists(st.tuples(st.sets(st.integers(0, 6)), st.sets(st.integers(0, 6)), st.booleans()))


@given(events, st.integers(1, 20))
def test_a_reader_at_any_pace_knows_what_is_held(
    script: list[tuple[set[int], set[int], bool]], most_changes: int
) -> None:
    tags, known, place = HeldTags(most_changes), set[int](), 0
    held = set[int]()
    for stored, evicted, reads in [*script, (set[int](), set[int](), True)]:
        stored -= evicted
        tags.apply(TagChanges(sorted(stored), sorted(evicted)))
        held = held - evicted | stored
        assert tags.held == held
        if reads:
            changes = tags.since(place)
            if changes is None:
                assert tags.end - place > most_changes
                known = set(tags.held)
            else:
                assert not set(changes.stored) & set(changes.evicted)
                known = known - set(changes.evicted) | set(changes.stored)
            place = tags.end
            assert known == held
