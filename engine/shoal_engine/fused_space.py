"""The memory that the kernels of a fused decode step pass on to one another: allocated once, its addresses stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.config import ModelConfig
from shoal_engine.kernels.interface import HeadLayout
from shoal_engine.kernels.triton_decode import DecodeWorkspace
from shoal_engine.kernels.triton_fused_operands import PartialSums, Stream

_SUM_FLOATS = 8 * 2**20  # 32 MiB for the parts of products that share a tile
_TILES = 8192
_SMALLEST_TILE = 16  # weight rows of a product's tile: the most partial sums of squares a row can have


@dataclass(frozen=True, slots=True)
class FusedSpace:
    """Of up to R rows: stream; qkv [R, qkv_size]; attended [R, q_size]; activated [R, intermediate]; sums of split tiles.

    What is written for products, stream.scaled, attended and activated, is a sixteenth of it where it is float16.
    """

    stream: Stream
    qkv: Tensor
    attended: Tensor
    activated: Tensor
    sums: PartialSums

    @classmethod
    def allocate(
        cls, config: ModelConfig, layout: HeadLayout, max_rows: int, dtype: torch.dtype, operands: torch.dtype,
        attended: torch.dtype, device: torch.device,
    ) -> FusedSpace:  # fmt: skip
        """operands: dtype of what products write for products; attended: of what attention does."""

        def empty(width: int, of: torch.dtype = dtype) -> Tensor:
            return torch.empty((max_rows, width), dtype=of, device=device)

        squares = empty(-(-config.hidden_size // _SMALLEST_TILE), torch.float32)
        return cls(
            stream=Stream(empty(config.hidden_size), empty(config.hidden_size, operands), squares.view(-1)),
            qkv=empty(layout.qkv_size),
            attended=empty(layout.q_size, attended),
            activated=empty(config.intermediate_size, operands),
            sums=PartialSums(
                torch.empty((_SUM_FLOATS,), dtype=torch.float32, device=device),
                torch.zeros((_TILES,), dtype=torch.int32, device=device),
            ),
        )

    @property
    def max_rows(self) -> int:
        return int(self.qkv.shape[0])

    def first(self, rows: int) -> FusedSpace:
        """The same memory, for a step of `rows`."""
        stream = Stream(self.stream.hidden[:rows], self.stream.scaled[:rows], self.stream.squares)
        return FusedSpace(stream, self.qkv[:rows], self.attended[:rows], self.activated[:rows], self.sums)


class AttentionSpaces:
    """Workspaces of attention by number of workers, which the tuning of a step decides; kept once made."""

    def __init__(self, layout: HeadLayout, device: torch.device) -> None:
        self._layout = layout
        self._device = device
        self._spaces: dict[int, DecodeWorkspace] = {}

    def of(self, workers: int) -> DecodeWorkspace:
        """Call it once before a CUDA graph is recorded: a graph must not own the counters, which have to begin at zero."""
        if workers not in self._spaces:
            self._spaces[workers] = DecodeWorkspace.allocate(workers, self._layout, self._device)
        return self._spaces[workers]
