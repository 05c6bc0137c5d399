"""The runner on a GPU: replays a recorded step where there is one, launches it otherwise. Nothing here waits for the GPU.

All of a step's input goes up in one copy. It may be enqueued while the step before still runs: what that one samples
reaches this one on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shoal_engine.batch import HostBatch
from shoal_engine.fused_choice import most_rows
from shoal_engine.fused_decode import FusedDecode
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.kernels.triton_sampling import SamplingSpace
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.plain_draws import PlainDraws
from shoal_engine.runner import Computed, Runner, arrays_of
from shoal_engine.step_graphs import StepGraphs, shares_prefixes
from shoal_engine.step_shapes import Shape
from shoal_engine.upload import Upload


class CudaRunner(Runner):
    def __init__(
        self,
        model: Llama,
        kernels: CudaKernels,
        cache: Tensor,
        layout: CacheLayout,
        max_num_seqs: int,
        max_model_len: int,
        space: SamplingSpace,
        *,
        fuse: bool = True,
    ) -> None:
        """space: where the sampler leaves what it has chosen, of at least `decode_rows(max_num_seqs)` rows.

        fuse: whether small batches of decodes may run in fewer kernels, where the model's weights allow it.
        """
        super().__init__(model, cache, layout, max_num_seqs, max_model_len)
        self._upload = Upload(cache.device)
        fused_rows = most_rows(model) if fuse else 0
        fused = FusedDecode(model, fused_rows) if fused_rows else None
        self._space = space
        self._sampled = space.token_ids
        self._graphs = StepGraphs(model, kernels, cache, layout, space, max_model_len, fused)

    def record_graphs(self, max_rows: int) -> None:
        """Record some common steps, of up to so many decodes. Others follow by `prepare`, or once they were needed often."""
        self._graphs.record_first(max_rows)

    def prepare(self) -> bool:
        return self._graphs.record_next()

    def walk(self, shapes: Sequence[Shape]) -> None:
        """See `StepGraphs.walk`."""
        self._graphs.walk(shapes)

    def give_back_memory(self) -> None:
        torch.cuda.empty_cache()

    def keep(self, request_ids: Sequence[str], token_ids: Tensor) -> None:
        """They lie where the next step reads them already."""
        self._remember(request_ids)

    def _compute(self, host: HostBatch, asked: PlainDraws | None) -> Computed:
        shape = self._graphs.shape_for(host, asked is not None)
        if shape is None:
            return self._forward(host, self._upload.send(arrays_of(host)), shares_prefixes(host))
        hidden = self._graphs.replay(host, shape, asked)
        if shape.draws:
            rows = host.num_decodes
            return Computed(hidden, None, (self._space.token_ids[:rows], self._space.ok[:rows]))
        if host.only_decodes:
            return Computed(hidden, None)
        return Computed(hidden, self._upload.send([host.sample_rows])[0])
