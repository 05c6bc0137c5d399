"""Choices among very many replicas: as good as if all were scored, at a cost that does not grow with them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal_router.discovery import Address
from shoal_router.endpoints import Endpoint, Report
from shoal_router.models import ModelTable
from shoal_router.placer import Placer
from shoal_router.pool import Pool
from shoal_router.prefix_index import PrefixIndex
from shoal_router.prices import LearnedPrices
from shoal_router.prompt import Prompt, Work
from shoal_router.shortlist import DRAWN, HOLDERS, HOMES, MOST_SCORED
from shoal_router.standing import HEALTHY
from shoal_router.usage import BytesPerToken

REPLICAS = 4 * MOST_SCORED


class BigFleet:
    def __init__(self, seed: int = 0, replicas: int = REPLICAS) -> None:
        self.index = PrefixIndex()
        self.endpoints = []
        for slot in range(replicas):
            address = Address(f"replica-{slot}", "127.0.0.1", 1)
            report = Report((("m", b"{}"),))
            self.endpoints.append(
                Endpoint(address, slot, Pool(address, 1.0), standing=HEALTHY, report=report)
            )
            self.index.add(slot, 1000)
            self.index.report(slot)
        models, pick = ModelTable(self.endpoints), random.Random(seed).randrange
        self.placer = Placer(models, self.index, BytesPerToken(), LearnedPrices(), pick)

    def place(self, chain: list[int], *tried: Endpoint) -> Endpoint:
        placement = self.placer.place(Prompt("m", True, Work.GENERATE, 256 * len(chain), chain), tried)
        placement.end()
        return placement.endpoint


def chain_of(seed: int, blocks: int = 16) -> list[int]:
    rng = random.Random(seed)
    return [rng.getrandbits(64) for _ in range(blocks)]


MASKS = st.lists(st.integers(0, 2**12 - 1), max_size=6)


@given(MASKS, st.integers(0, 2**12 - 1), st.integers(1, 14), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_holders_of_the_longest_parts_are_found_whichever_are_drawn(
    masks: list[int], slots: int, most: int, seed: int
) -> None:
    index, chain = PrefixIndex(), list(range(1, len(masks) + 1))
    for slot in range(12):
        index.add(slot, 100)
        index.report(slot).store(
            [block for block, mask in zip(chain, masks, strict=True) if mask >> slot & 1]
        )
    everyone = {slot: depth for slot, depth in index.match(chain).items() if slots >> slot & 1}
    found = index.deepest(chain, slots, most, random.Random(seed).randrange)
    assert len(found) == min(most, len(everyone))
    assert found.items() <= everyone.items()
    assert sorted(found.values()) == sorted(everyone.values())[len(everyone) - len(found) :]


def test_number_of_scored_replicas_does_not_grow_with_the_fleet() -> None:
    fleet, chain = BigFleet(), chain_of(1)
    for slot in range(REPLICAS):
        fleet.index.report(slot).store(chain)
    for _ in range(20):
        fleet.place(chain)
        assert len(fleet.placer.decisions[-1].candidates) <= HOLDERS + HOMES + DRAWN


def test_the_one_replica_that_holds_a_prompt_gets_it() -> None:
    fleet = BigFleet()
    for number in range(50):
        chain, slot = chain_of(number), number * 5 % REPLICAS
        fleet.index.report(slot).store(chain)
        assert fleet.place(chain).slot == slot


def test_holder_that_has_too_much_to_do_is_passed_over_for_an_idle_replica() -> None:
    fleet, chain = BigFleet(), chain_of(1)
    fleet.index.report(7).store(chain)
    fleet.endpoints[7].elsewhere = 200
    chosen = fleet.place(chain)
    assert chosen.slot != 7
    assert chosen.in_flight == 0


def test_routers_agree_on_the_home_of_a_cold_prompt_and_homes_are_spread() -> None:
    one, other = BigFleet(1), BigFleet(2)
    homes: Counter[int] = Counter()
    agreed = 0
    for number in range(1000):
        chain = chain_of(number)
        here, there = one.place(chain).slot, other.place(chain).slot
        agreed += here == there
        homes[here] += 1
        for fleet in (one, other):
            for _ in range(2):
                for slot in (here, there):
                    fleet.index.report(slot).updated()
    assert agreed > 350, "a drawn replica may be its better home, though not for many"
    assert len(homes) > 0.9 * REPLICAS
    assert max(homes.values()) < 20


@pytest.mark.parametrize("tried", [40, REPLICAS - 1])
def test_replica_that_was_not_tried_is_found_however_many_were(tried: int) -> None:
    fleet, chain = BigFleet(), chain_of(3)
    excluded = fleet.endpoints[:tried]
    assert fleet.place(chain, *excluded) not in excluded
