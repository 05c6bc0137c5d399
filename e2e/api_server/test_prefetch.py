"""A model fetched ahead of a rollout, against a real API server."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.api_server.played_cluster import connected, new_world
from shoal_api.names import LABEL_ROLE, ROLE_PREFETCH

CACHE = {"type": "HostPath", "path": "/var/lib/shoal/models", "prefetch": True}


async def test_no_pod_is_replaced_before_its_model_is_there(
    kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    async with connected() as api:
        world = await new_world(api)
        await world.apply(model={"uri": "hf://org/one"}, cache=CACHE)
        await world.settle()
        old = {pod["metadata"]["name"] for pod in await world.fleet.pods()}
        world.fleet.fetched = False
        await world.edit(model={"uri": "hf://org/two", "name": None})
        await world.settle()
        fetching = {
            pod["metadata"]["name"]
            for pod in await world.fleet.pods()
            if pod["metadata"]["labels"][LABEL_ROLE] == ROLE_PREFETCH
        }
        assert len(fetching) == 1
        assert {pod["metadata"]["name"] for pod in await world.fleet.pods()} == old | fetching
        world.fleet.fetched = True
        await world.settle()
        new = {pod["metadata"]["name"] for pod in await world.fleet.pods()}
        assert len(new) == 2
        assert not new & (old | fetching)
