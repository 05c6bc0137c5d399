"""What it costs that requests wait in the router and not in the engines, in simulated time: next to nothing."""

from __future__ import annotations

import random

import pytest

from shoal_router.discovery import Address
from shoal_router.endpoints import LEAST_AHEAD, SURE_OF_A_PART, Endpoint
from shoal_router.pool import Pool
from shoal_router.routing import Routing
from tests.router.simulated_engines import MAX_RUNNING, Engine, Job, World
from tests.router.simulation import RouterUnderTest

REQUESTS = 1500


def longest_wait_and_throughput(look_ahead: float, answer_tokens: int) -> tuple[int, float]:
    """Of two engines that are given far more at once than they can do: most that wait in one, requests per second."""
    world, rng, ends = World(), random.Random(5), []
    engines = [Engine(world, cache_blocks=2048) for _ in range(2)]
    router = RouterUnderTest(world, engines, 0, Routing(look_ahead=look_ahead), pushed=True)
    for endpoint in router.endpoints:
        endpoint.seats = MAX_RUNNING
    most = 0

    def done(job: Job) -> None:
        nonlocal most
        ends.append(world.now_s)
        most = max(most, *(endpoint.in_flight - MAX_RUNNING for endpoint in router.endpoints))

    for _ in range(REQUESTS):
        content = rng.randbytes(rng.randint(64, 512)).hex().encode()
        router.send(content, rng.randint(1, 2 * answer_tokens), done)
    world.run()
    assert len(ends) == REQUESTS
    steady = ends[int(0.9 * REQUESTS)]  # in the end there is too little left for all seats
    return most, 0.9 * REQUESTS / steady


@pytest.mark.parametrize("answer_tokens", [16, 64])
def test_few_requests_wait_in_an_engine_and_it_does_as_much_as_with_all_of_them(answer_tokens: int) -> None:
    default = Routing().look_ahead
    most, few = longest_wait_and_throughput(default, answer_tokens)
    crowd, all_of_them = longest_wait_and_throughput(1e9, answer_tokens)
    assert most < MAX_RUNNING / 2, (
        "a few more than the look-ahead, for the sake of a cache while another has room"
    )
    assert crowd > REQUESTS / 4
    assert few > 0.98 * all_of_them


@pytest.mark.parametrize(
    ("seats", "ceiling", "look_ahead", "most"),
    [
        (32, float("inf"), 0.12, 36),
        (32, float("inf"), 0.0, 34),
        (4, float("inf"), 0.12, 6),
        (32, 33, 0.12, 33),
        (32, 20, 0.12, 20),
        (float("inf"), 7, 0.0, 7),
    ],
)
def test_replica_takes_its_seats_and_a_share_more_and_never_more_than_it_said(
    seats: float, ceiling: float, look_ahead: float, most: int
) -> None:
    address = Address("a", "127.0.0.1", 1)
    endpoint = Endpoint(address, 0, Pool(address, 1.0), seats=seats, ceiling=ceiling)
    while endpoint.takes_more(look_ahead):
        endpoint.in_flight += 1
    assert endpoint.in_flight == most
    endpoint.in_flight, endpoint.elsewhere = most - 5, 5
    assert not endpoint.takes_more(look_ahead), "requests of other routers count"


@pytest.mark.parametrize("routers", [2, 3, 4])
@pytest.mark.parametrize("seats", [2, 8, 32])
def test_router_that_comes_when_all_seats_are_taken_gets_its_part_of_them(seats: int, routers: int) -> None:
    address = Address("a", "127.0.0.1", 1)
    own = [Endpoint(address, 0, Pool(address, 1.0), seats=seats) for _ in range(routers)]
    rng = random.Random(7)

    def told() -> None:  # as engines tell it ten times a second
        for each in own:
            each.elsewhere = sum(other.in_flight for other in own) - each.in_flight

    def fill(each: Endpoint) -> None:
        while each.takes_more(0.12):
            each.in_flight += 1

    for each in own:  # the first one takes all before the others come
        fill(each)
        told()
    places = seats + max(LEAST_AHEAD, 0.12 * seats)
    for _ in range(400 * seats):
        served = [each for each in own for _ in range(each.in_flight)]
        ended = rng.choice(served)
        ended.in_flight -= 1
        fill(ended)  # it is told by its own request's end, the others later
        told()
        for each in own:
            fill(each)
        told()
    assert min(each.in_flight for each in own) >= places // SURE_OF_A_PART
    assert sum(each.in_flight for each in own) <= places + 1


def test_replica_of_unknown_size_takes_all() -> None:
    address = Address("a", "127.0.0.1", 1)
    endpoint = Endpoint(address, 0, Pool(address, 1.0), in_flight=10**6)
    assert endpoint.takes_more(0.0)
