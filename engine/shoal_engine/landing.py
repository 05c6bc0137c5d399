"""Where a GPU leaves what a step has chosen, in the host's memory: pinned buffers in turn, one copy for all of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels.triton_sampling import SamplingSpace
from shoal_engine.upload import NUM_BUFFERS, pinned


@dataclass(frozen=True, slots=True)
class Arrival:
    """token_ids [rows of the space] int64 and ok [rows] int8 on the host, valid once `arrived`, until some steps later."""

    buffer: Tensor
    token_ids: Tensor
    ok: Tensor
    arrived: torch.cuda.Event


class Landing:
    """Serves as many steps in flight as there are buffers."""

    def __init__(self, space: SamplingSpace) -> None:
        self._results = space.results
        self._turn = 0
        self._arrivals = []
        ids_bytes = space.token_ids.nbytes
        for _ in range(NUM_BUFFERS):
            buffer = pinned(space.results.numel(), space.results.device)
            ids, ok = buffer[:ids_bytes].view(torch.int64), buffer[ids_bytes:].view(torch.int8)
            self._arrivals.append(Arrival(buffer, ids, ok, torch.cuda.Event()))  # type: ignore[no-untyped-call]

    def begin(self) -> Arrival:
        """Copy the space's results; whoever has more to copy does so before he records `arrived`."""
        self._turn = (self._turn + 1) % NUM_BUFFERS
        arrival = self._arrivals[self._turn]
        arrival.buffer.copy_(self._results, non_blocking=True)
        return arrival
