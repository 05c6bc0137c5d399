"""The link to an engine that pushes its state: exact index, fresh load, and what happens when something is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_api import engine_state_pb2 as pb
from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, EndpointSet
from shoal_router.engine_link import EngineLinks
from shoal_router.engine_updates import Place, Reading, reading
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.standing import HEALTHY, Outcome
from tests.router.conftest import Run
from tests.router.engine_state import EngineTwin, pushing
from tests.router.scripted import Replica, chat, post, rig, until


class Follower:
    """The parts of a router that a link changes."""

    def __init__(self, port: int) -> None:
        self.index = PrefixIndex()
        self.endpoints = EndpointSet(lambda address: Pool(address, 1.0))
        self.outcomes: list[Outcome] = []
        self.costs: list[pb.StepCost] = []
        self.links = EngineLinks(
            self.endpoints,
            self.index,
            watcher="test",
            now=asyncio.get_running_loop().time,
            observe=lambda endpoint, outcome: self.outcomes.append(outcome),
            learn=lambda endpoint, cost: self.costs.append(cost),
        )
        self.endpoints.on_add.append(lambda endpoint: self.index.add(endpoint.slot, 100))
        self.endpoints.on_remove.append(lambda endpoint: self.index.remove(endpoint.slot))
        self.endpoints.reconcile([Address("a", "127.0.0.1", 1)])
        self.endpoint.standing = HEALTHY
        self.say_port(port)

    @property
    def endpoint(self) -> Endpoint:
        return next(iter(self.endpoints))

    def say_port(self, port: int) -> None:
        self.endpoint.report = replace(self.endpoint.report, grpc_port=port)
        self.endpoints.changed()

    def stored(self) -> set[int] | None:
        reported = self.index.reported(0)
        return None if reported is None else set(reported.stored)

    async def agrees(self, twin: EngineTwin) -> None:
        await until(lambda: self.endpoint.linked and self.stored() == twin.cache)


@asynccontextmanager
async def following(twin: EngineTwin) -> AsyncIterator[Follower]:
    async with pushing(twin) as port:
        follower = Follower(port)
        await follower.agrees(twin)
        yield follower
        await follower.links.stop()


def test_snapshot_and_changes_make_the_index_what_the_cache_is(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        twin.cache = {1, 2, 3}
        async with following(twin) as f:
            twin.change(stored={4, 5}, evicted={2})
            await f.agrees(twin)
            twin.change(stored={2}, evicted={2, 5})
            await f.agrees(twin)
            assert f.index.match([1, 3, 4]) == {0: 3}
            assert f.endpoint.tally.snapshots == 1

    run(scenario())


def test_lost_update_is_noticed_and_healed_by_a_snapshot(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        async with following(twin) as f:
            twin.change(stored={1, 2})
            await f.agrees(twin)
            twin.lose(stored={3}, evicted={1})
            twin.change(stored={4})
            await f.agrees(twin)
            tally = f.endpoint.tally
            assert (tally.gaps, tally.snapshots) == (1, 2)

    run(scenario())


def test_another_epoch_means_an_empty_cache(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        twin.cache = {1, 2}
        async with following(twin) as f:
            twin.epoch, twin.cache = 2, {7}
            twin.end()
            await f.agrees(twin)
            assert f.index.holders(1) == 0

    run(scenario())


def test_while_the_link_is_down_its_last_word_is_believed_and_then_corrected(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        twin.cache = {1, 2}
        twin.load.running = 5
        async with pushing(twin) as port:
            f = Follower(port)
            await f.agrees(twin)
            assert f.endpoint.elsewhere == 5
        await until(lambda: not f.endpoint.linked)
        assert f.stored() is None
        assert f.index.match([1, 2]) == {0: 2}
        f.index.use(0, [8, 9])
        twin.cache = {1, 3}
        async with pushing(twin, port):
            await f.agrees(twin)
            assert f.index.holders(8) == 0
            await f.links.stop()

    run(scenario())


def test_load_of_others_is_known_and_own_requests_are_not_counted_twice(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        async with following(twin) as f:
            f.endpoint.charge(300.0, 1)
            f.endpoint.charge(200.0, 2)
            twin.load = pb.Load(
                running=3, waiting=4, queued_prefill_tokens=1700, kv_usage=0.5, kv_capacity_tokens=4096,
                max_num_seqs=8, max_requests=7, ready=True,
            )  # fmt: skip
            twin.change()
            await until(lambda: f.endpoint.elsewhere == 5)
            assert f.endpoint.queued_elsewhere == 1200
            assert (f.endpoint.seats, f.endpoint.ceiling) == (8, 7)
            assert not f.endpoint.takes_more(0.5)
            assert f.endpoint.report.kv_tokens == 4096
            assert f.outcomes == []

    run(scenario())


def test_step_cost_and_an_engine_that_takes_no_more_are_told(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        async with following(twin) as f:
            twin.step_cost = pb.StepCost(base_s=0.008, prefill_token_s=5e-5, sequence_s=5e-5)
            twin.load.ready = False
            twin.change()
            await until(lambda: bool(f.costs))
            assert f.costs[0].base_s == 0.008
            assert f.outcomes == [Outcome.NOT_READY]

    run(scenario())


def test_engine_that_moves_to_another_port_is_followed_there(run: Run) -> None:
    async def scenario() -> None:
        here, there = EngineTwin(1), EngineTwin(2)
        here.cache, there.cache = {1}, {2}
        async with following(here) as f, pushing(there) as port:
            f.say_port(port)
            await f.agrees(there)
            f.say_port(0)
            await until(lambda: not f.endpoint.linked)

    run(scenario())


def test_replica_that_leaves_takes_its_blocks_and_its_stream_along(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        twin.cache = {1}
        async with following(twin) as f:
            f.endpoints.reconcile([Address("b", "127.0.0.1", 1)])
            assert len(f.index) == 0
            f.index.use(0, [5])
            await asyncio.sleep(0.05)
            assert f.index.match([5]) == {0: 1}, "the slot is the new replica's"

    run(scenario())


def test_requests_carry_their_chain_to_an_engine_that_pushes_and_only_there(run: Run) -> None:
    async def scenario() -> None:
        twin = EngineTwin()
        async with pushing(twin) as port:
            pushes = Replica(metrics=b"shoal:grpc_port %d\n" % port)
            async with rig(pushes, Replica()) as r:
                await until(lambda: [e.linked for e in r.router.endpoints] == [True, False])
                for number in range(12):
                    assert (await r.ask(post(body=chat(f"{number} " * 400)))).status == 200
            linked, other = (replica.requests for replica in r.replicas)
            assert linked
            assert other
            assert all("x-shoal-chain" in each.headers for each in linked)
            assert not any("x-shoal-chain" in each.headers for each in other)

    run(scenario())


UPDATES = st.builds(
    pb.Update,
    epoch=st.integers(1, 3),
    sequence=st.integers(1, 6),
    snapshot=st.booleans(),
)


@given(UPDATES, st.none() | st.builds(Place, st.integers(1, 3), st.integers(0, 6)))
@settings(max_examples=200, deadline=None)
def test_changes_are_read_only_when_nothing_can_be_missing(update: pb.Update, last: Place | None) -> None:
    follows = last is not None and (update.epoch, update.sequence) == (last.epoch, last.sequence + 1)
    expected = Reading.ALL if update.snapshot else Reading.CHANGES if follows else Reading.GAP
    assert reading(last, update) is expected


@pytest.mark.parametrize("seed", range(2))
def test_index_is_exact_after_any_history_of_changes_losses_restarts_and_reconnects(seed: int) -> None:
    """Through the link's own reading, without sockets: a stream is what the engine's twin says now."""

    async def scenario() -> None:
        rng, twin = random.Random(seed), EngineTwin()

        async def stream(target: str, watcher: str) -> AsyncGenerator[pb.Update, None]:
            async for update in twin.Watch(pb.WatchRequest(), None):
                yield update

        f = Follower(0)
        f.links.open_stream = stream
        f.say_port(1)
        await f.agrees(twin)
        for number in range(120):
            await until(lambda: bool(twin.watchers))
            kind = rng.choices(("change", "restart", "cut"), (90, 3, 3))[0] if number % 20 else "lose"
            if kind == "restart":
                twin.epoch, twin.cache = twin.epoch + 1, set()
            if kind in ("restart", "cut"):
                twin.end()
            else:
                stored, evicted = ({rng.randrange(40) for _ in range(rng.randrange(6))} for _ in "12")
                getattr(twin, kind)(stored=stored, evicted=evicted)
            if rng.random() < 0.3:
                await asyncio.sleep(0.001)
        twin.change()
        await f.agrees(twin)
        assert f.endpoint.tally.gaps > 0
        await f.links.stop()

    asyncio.run(asyncio.wait_for(scenario(), 30))
