"""CUDA graphs of steps, from token ids to the last hidden states: decodes by batch size, short prompts by token count.

A step then costs the host one copy and one launch, however many kernels the model has. Long prompts keep the GPU busy for
longer than their launches take and have none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.batch import HostBatch
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.graph_input import GraphInput
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.triton_sampling import SamplingSpace
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.plain_draws import PlainDraws
from shoal_engine.shared_prefixes import neighbours_share
from shoal_engine.step_shapes import (
    PROMPT_REQUESTS,
    Shape,
    StandIns,
    common_shapes,
    decode_rows,
    first_shapes,
    prompt_sizes,
)
from shoal_engine.step_tail import StepTail

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    hidden: Tensor


def shares_prefixes(host: HostBatch) -> bool:
    """Whether it pays to look on the GPU for what neighbouring decodes have in common."""
    if host.num_decodes < 2:
        return False
    return neighbours_share(host.tables, host.context_lens, host.num_decodes, host.block_tokens)


class StepGraphs:
    """Graphs share one memory pool and one input: steps run one after another on one stream."""

    def __init__(
        self,
        model: Llama,
        kernels: CudaKernels,
        cache: Tensor,
        layout: CacheLayout,
        space: SamplingSpace,
        max_model_len: int,
        fused: FusedDecode | None,
    ) -> None:
        """space: of `decode_rows` of the most requests; what the step before has sampled is there.

        fused: what computes batches of up to its max_rows decodes in place of the model.
        """
        self._model = model
        self._kernels = kernels
        self._cache = cache
        self._prompt_sizes = prompt_sizes(model.config)
        self._most_rows = rows = len(space.token_ids)
        self._input = GraphInput(
            max([rows, *self._prompt_sizes]),
            max(rows, PROMPT_REQUESTS),
            layout.blocks_for(max_model_len),
            layout.block_tokens,
            space.token_ids,
        )
        self._space = space
        self._tail = StepTail(model.logits, self._input.asked, space)
        self._fused = fused
        self._graphs: dict[Shape, _Graph] = {}
        self._later: list[Shape] = []
        self._stand_ins = StandIns()
        self._pool = torch.cuda.graph_pool_handle()

    def shape_for(self, host: HostBatch, draws: bool) -> Shape | None:
        """The recorded step that serves this one; None for steps that are launched. draws: it may choose tokens."""
        requests = len(host.context_lens)
        if host.only_decodes:
            rows = decode_rows(requests)
            return Shape(rows, rows, rows, shares_prefixes(host), draws)
        if requests > PROMPT_REQUESTS:
            return None
        tokens = next((size for size in self._prompt_sizes if size >= host.num_tokens), None)
        return None if tokens is None else Shape(tokens, PROMPT_REQUESTS, 0)

    def record_first(self, max_rows: int) -> None:
        """A few of each kind of step of up to so many decodes; `record_next` adds those between them."""
        shapes = common_shapes(self._model.config, min(max_rows, self._most_rows))
        first = first_shapes(shapes)
        for shape in first:
            if shape not in self._graphs:
                self._record(shape)
        later = [shape for shape in shapes if shape not in first]
        self._later = sorted(later, key=lambda shape: shape.draws)  # those that draw next, from the end

    def record_next(self) -> bool:
        """One of the common steps that are still missing; False when there is none."""
        while self._later:
            shape = self._later.pop()
            if shape not in self._graphs:
                self._record(shape)
                return True
        return False

    def walk(self, shapes: Sequence[Shape]) -> None:
        """Every kernel launch of these steps and nothing else, for who watches them: on a meta device."""
        for shape in shapes:
            self._step(shape)

    def replay(self, host: HostBatch, shape: Shape, asked: PlainDraws | None = None) -> Tensor:
        """Hidden states [T, H]; they hold until the next replay. asked: what the rows of a shape that draws ask for."""
        shape = self._recorded(shape)
        self._input.send(host, shape.tokens, shape.requests, asked)
        one = self._graphs[shape]
        one.graph.replay()
        return one.hidden[: host.num_tokens]

    def _recorded(self, shape: Shape) -> Shape:
        """This one, recorded now where nothing else serves, or for its first steps one that serves too."""
        if shape in self._graphs:
            return shape
        other = self._stand_ins.next_for(shape, self._graphs)
        if other is not None:
            return other
        try:
            self._record(shape)
        except torch.OutOfMemoryError:
            other = self._stand_ins.next_for(shape, self._graphs)  # and tried again when these are used up
            if other is None:
                raise
            return other
        return shape

    def _record(self, shape: Shape) -> None:
        """Takes tens of milliseconds once kernels are compiled. What the step before has sampled stays."""
        sampled = self._space.results.clone()
        self._input.blank(shape.tokens, shape.requests)
        self._step(shape)  # compiles kernels and allocates their workspaces outside the graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self._step(shape)
        self._space.results.copy_(sampled)
        self._graphs[shape] = _Graph(graph, hidden)
        log.debug("recorded %s", shape)

    def _step(self, shape: Shape) -> Tensor:
        token_ids, batch = self._input.unpack(
            shape.tokens, shape.requests, shape.num_decodes, shape.shares_prefixes
        )
        self._kernels.begin_step(batch)
        fused = None if shape.shares_prefixes else self._fused
        step = fused if fused is not None and 0 < shape.num_decodes <= fused.max_rows else self._model
        hidden = step(token_ids, batch, self._cache)
        if shape.draws:
            self._tail(hidden)
        return hidden
