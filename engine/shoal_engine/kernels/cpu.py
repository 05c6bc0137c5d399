"""The CPU's kernels: C functions called through ctypes. What they compute is `interface.py`'s; how is in `c/`."""

from __future__ import annotations

import ctypes
import warnings
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.kernels.cpu_build import BuildError, load_library
from shoal_engine.kernels.interface import AttentionBatch, AttentionScale, HeadLayout, Kernels
from shoal_engine.kernels.reference import ReferenceKernels

C_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
TILE_TOKENS = 16  # TILE of c/cache.h


def cpu_kernels() -> Kernels:
    """The compiled kernels; without a compiler the torch twins, which are several times slower, and one warning."""
    try:
        return CpuKernels(load_library())
    except BuildError as error:
        warnings.warn(
            f"the CPU kernels cannot be built, generation will be several times slower: {error}", stacklevel=2
        )
        return ReferenceKernels()


class _CBatch(ctypes.Structure):
    """`Batch` of c/batch.h."""

    _fields_ = (
        ("query_start", c_void_p),
        ("context_lens", c_void_p),
        ("tables", c_void_p),
        ("slots", c_void_p),
        ("positions", c_void_p),
        ("table_stride", c_int64),
        ("num_requests", c_int64),
        ("num_tokens", c_int64),
        ("max_query_len", c_int64),
        ("max_context_len", c_int64),
        ("block_tokens", c_int64),
        ("num_threads", c_int64),
    )


@dataclass(slots=True)
class _Step:
    """A batch as C reads it. All layers of a step share it, so that a call passes one address."""

    batch: AttentionBatch
    tensors: tuple[Tensor, ...]
    struct: _CBatch
    address: int
    workspace_for: tuple[HeadLayout, torch.dtype] | None = None
    workspace_address: int = 0


class CpuKernels(Kernels):
    """Implements `interface.Kernels` for float32 and bfloat16. Keeps its workspace between calls: one caller at a time."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, size = c_void_p, c_int64
        self._rms_norm = _function(library.shoal_rms_norm, *[pointer] * 4, size, size, c_float, c_int, c_int)
        self._silu_mul = _function(library.shoal_silu_mul, pointer, pointer, size, size, c_int)
        self._rotate_and_store = _function(
            library.shoal_rotate_and_store, *[pointer] * 7, size, size, size, c_float, c_int, c_int
        )
        self._attend = _function(library.shoal_attend, *[pointer] * 5, *[size] * 4, c_float, c_int)
        self._workspace_bytes = _function(
            library.shoal_attend_workspace_bytes, pointer, size, size, size, c_int
        )
        self._workspace_bytes.restype = c_int64
        self._workspace = torch.empty(0, dtype=torch.uint8)
        self._step: _Step | None = None

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return self._norm(x, None, weight, eps)

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not residual.is_contiguous() or residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError("the residual must be contiguous and of the shape and dtype of x")
        return self._norm(x, residual.data_ptr(), weight, eps)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty((rows, width))
        self._silu_mul(gate_up.data_ptr(), out.data_ptr(), rows, width, C_DTYPES[gate_up.dtype])
        return out

    def rotate_and_store(
        self,
        qkv: Tensor,
        layout: HeadLayout,
        rope_table: Tensor,
        batch: AttentionBatch,
        cache: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> Tensor:
        _check_cache(cache, qkv)
        qkv = qkv.contiguous()
        q = qkv.new_empty((qkv.shape[0], layout.num_heads, layout.head_dim))
        dtype = norm_dtype = C_DTYPES[qkv.dtype]
        q_norm_address = k_norm_address = None
        if q_norm is not None and k_norm is not None:
            q_norm, k_norm = q_norm.contiguous(), k_norm.contiguous()
            q_norm_address, k_norm_address, norm_dtype = (
                q_norm.data_ptr(),
                k_norm.data_ptr(),
                C_DTYPES[q_norm.dtype],
            )
        self._rotate_and_store(
            qkv.data_ptr(), rope_table.data_ptr(), self._step_of(batch).address, cache.data_ptr(), q.data_ptr(),
            q_norm_address, k_norm_address, layout.num_heads, layout.num_kv_heads, layout.head_dim, eps,
            dtype, norm_dtype,
        )  # fmt: skip
        return q

    def attend(
        self, q: Tensor, layout: HeadLayout, batch: AttentionBatch, cache: Tensor, scale: AttentionScale
    ) -> Tensor:
        _check_cache(cache, q)
        if scale.softcap is not None or scale.sinks is not None:
            raise ValueError("the CPU kernels know no softcap and no sinks")
        q = q.contiguous()
        out = q.new_empty((q.shape[0], layout.num_heads * layout.head_dim))
        step = self._step_of(batch)
        if step.workspace_for != (layout, q.dtype):
            self._grow_workspace(step, layout, q.dtype)
        self._attend(
            q.data_ptr(), out.data_ptr(), step.address, cache.data_ptr(), step.workspace_address,
            layout.num_heads, layout.num_kv_heads, layout.head_dim, scale.window or 0, scale.scale, C_DTYPES[q.dtype],
        )  # fmt: skip
        return out

    def _norm(self, x: Tensor, residual_address: int | None, weight: Tensor, eps: float) -> Tensor:
        x, weight = x.contiguous(), weight.contiguous()
        out = torch.empty_like(x)
        width = weight.shape[0]
        self._rms_norm(
            x.data_ptr(), residual_address, weight.data_ptr(), out.data_ptr(), x.numel() // width, width, eps,
            C_DTYPES[x.dtype], C_DTYPES[weight.dtype],
        )  # fmt: skip
        return out

    def _step_of(self, batch: AttentionBatch) -> _Step:
        step = self._step
        if step is None or step.batch is not batch:
            self._step = step = _pack(batch)
        return step

    def _grow_workspace(self, step: _Step, layout: HeadLayout, dtype: torch.dtype) -> None:
        needed = self._workspace_bytes(
            step.address, layout.num_heads, layout.num_kv_heads, layout.head_dim, C_DTYPES[dtype]
        )
        if self._workspace.numel() < needed:
            self._workspace = torch.empty(needed, dtype=torch.uint8)
        step.workspace_for, step.workspace_address = (layout, dtype), self._workspace.data_ptr()


def _pack(batch: AttentionBatch) -> _Step:
    _check_block_tokens(batch.block_tokens)
    tensors = tuple(
        tensor.contiguous()
        for tensor in (batch.query_start, batch.context_lens, batch.tables, batch.slots, batch.positions)
    )
    dtypes = [torch.int32] * 3 + [torch.int64] * 2
    if [tensor.dtype for tensor in tensors] != dtypes:
        raise ValueError(f"query_start, context_lens, tables, slots, positions must be {dtypes}")
    struct = _CBatch(
        *(tensor.data_ptr() for tensor in tensors),
        tensors[2].stride(0),
        batch.num_requests,
        tensors[3].shape[0],
        batch.max_query_len,
        batch.max_context_len,
        batch.block_tokens,
        torch.get_num_threads(),
    )
    return _Step(batch, tensors, struct, ctypes.addressof(struct))


def _function(function: ctypes._NamedFuncPointer, *argument_types: type) -> ctypes._NamedFuncPointer:
    function.argtypes, function.restype = list(argument_types), None
    return function


def _check_cache(cache: Tensor, x: Tensor) -> None:
    if cache.dtype != x.dtype or not cache.is_contiguous():
        raise ValueError(f"the cache must be contiguous and of the dtype of its keys, {x.dtype}")
    if cache.shape[-1] % 2 != 0:
        raise ValueError("rotary heads have an even size")


def _check_block_tokens(block_tokens: int) -> None:
    if block_tokens not in (1, 2, 4, 8) and block_tokens % TILE_TOKENS != 0:
        raise ValueError(
            f"a block holds 1, 2, 4, 8 or a multiple of {TILE_TOKENS} tokens, not {block_tokens}"
        )
