"""The runner on a GPU: a step of decodes alone replays a CUDA graph, any other is launched. Nothing here waits for the GPU.

All of a step's input goes up in one copy. It may be enqueued while the step before still runs: what that one samples
reaches this one on the device.
"""

from __future__ import annotations

from torch import Tensor

from shoal_engine.batch import HostBatch
from shoal_engine.decode_graphs import DecodeGraphs, bucket_of
from shoal_engine.kernels.cuda import CudaKernels
from shoal_engine.memory_layout import CacheLayout
from shoal_engine.models.llama import Llama
from shoal_engine.runner import Computed, Runner
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
    ) -> None:
        super().__init__(model, cache, layout, max_num_seqs, max_model_len)
        self._upload = Upload(cache.device)
        self._graphs = DecodeGraphs(
            model, kernels, cache, self._sampled, layout.blocks_for(max_model_len), layout.block_tokens
        )

    def record_graphs(self, max_rows: int) -> None:
        """Record the decode graphs of up to so many rows, the largest first: smaller ones then reuse its memory."""
        for rows in range(bucket_of(max_rows), 0, -1):
            if rows == bucket_of(rows):
                self._graphs.prepare(rows)

    def _compute(self, host: HostBatch) -> Computed:
        if host.only_decodes:
            return Computed(self._graphs.replay(host, self._upload), None)
        tensors = self._upload.send(
            (
                host.token_ids,
                host.sample_rows,
                host.query_start,
                host.context_lens,
                host.tables,
                host.slots,
                host.positions,
            )
        )
        return self._forward(host, tensors)
