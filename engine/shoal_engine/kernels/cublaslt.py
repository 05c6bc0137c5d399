"""y = x W^T by one of the algorithms that cuBLASLt proposes for a shape, not always its first. A binding by ctypes.

torch offers the first proposal only; for a few hundred rows a later one is often faster. Which, says `gemm_table`. The
list is of one version of the library: with another an entry of the table may be slower, or missing, never wrong.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WORKSPACE_BYTES = 32 * 2**20
MOST_PROPOSALS = 32
_BFLOAT16, _FLOAT32, _COMPUTE_FLOAT32 = 14, 0, 68  # of cudaDataType_t and cublasComputeType_t
_TRANSPOSE_FIRST, _MAX_WORKSPACE, _TRANSPOSED = 3, 1, 1
_SUCCESS, _INVALID, _NOT_SUPPORTED = 0, 7, 15


class _Proposal(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace_bytes", ctypes.c_size_t),
        ("status", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclass(frozen=True)
class _Problem:
    """The descriptors of one shape, and what the library proposes for it. Never freed: there are few shapes."""

    operation: Any
    weight: Any
    x: Any
    y: Any
    proposals: tuple[_Proposal, ...]


class NoSuchAlgorithm(IndexError):
    """The library proposes fewer for this shape, or nothing that takes it. Use `functional.linear`."""


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether the operands are such as `product` takes."""
    return x.dtype == weight.dtype == torch.bfloat16 and weight.is_contiguous() and x.shape[1] % 8 == 0


def product(x: Tensor, weight: Tensor, place: int, listed_rows: int = 0) -> Tensor:
    """x [M, K] times weight [N, K], bfloat16 on a GPU, by proposal `place` -> y [M, N].

    The list is the one for listed_rows, or for M. NoSuchAlgorithm if it is shorter or the algorithm does not take M.
    Call it once with a shape before a CUDA graph records it.
    """
    x = x.contiguous()
    (m, k), n = x.shape, weight.shape[0]
    problem = _problem(m, n, k, x.device)
    proposals = _problem(listed_rows or m, n, k, x.device).proposals
    if place >= len(proposals):
        raise NoSuchAlgorithm(f"proposal {place} of {len(proposals)} for {listed_rows or m} x {n} x {k}")
    y = torch.empty((m, n), dtype=x.dtype, device=x.device)
    one, nothing = ctypes.c_float(1.0), ctypes.c_float(0.0)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    status = _library().cublasLtMatmul(
        _handle(x.device), problem.operation, ctypes.byref(one), _address(weight), problem.weight,
        _address(x), problem.x, ctypes.byref(nothing), _address(y), problem.y, _address(y), problem.y,
        ctypes.byref(proposals[place].algorithm), _address(_workspace(x.device)),
        ctypes.c_size_t(WORKSPACE_BYTES), ctypes.c_void_p(stream),
    )  # fmt: skip
    if status in (_INVALID, _NOT_SUPPORTED):
        raise NoSuchAlgorithm(f"proposal {place} for {listed_rows} rows does not take {m}")
    _demand(status)
    return y


@functools.cache
def _problem(m: int, n: int, k: int, device: torch.device) -> _Problem:
    """cuBLAS counts columns first: its y [N, M] is weight [K, N] transposed, times x [K, M]."""
    library = _library()
    operation, preference, returned = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    _demand(library.cublasLtMatmulDescCreate(ctypes.byref(operation), _COMPUTE_FLOAT32, _FLOAT32))
    transposed = ctypes.c_int32(_TRANSPOSED)
    _demand(
        library.cublasLtMatmulDescSetAttribute(
            operation, _TRANSPOSE_FIRST, ctypes.byref(transposed), ctypes.c_size_t(4)
        )
    )
    weight, x, y = _layout(k, n), _layout(k, m), _layout(n, m)
    _demand(library.cublasLtMatmulPreferenceCreate(ctypes.byref(preference)))
    most = ctypes.c_uint64(WORKSPACE_BYTES)
    _demand(
        library.cublasLtMatmulPreferenceSetAttribute(
            preference, _MAX_WORKSPACE, ctypes.byref(most), ctypes.c_size_t(8)
        )
    )
    proposals = (_Proposal * MOST_PROPOSALS)()
    status = library.cublasLtMatmulAlgoGetHeuristic(
        _handle(device), operation, weight, x, y, y, preference, MOST_PROPOSALS, proposals,
        ctypes.byref(returned),
    )  # fmt: skip
    if status != _NOT_SUPPORTED:
        _demand(status)
    good = tuple(one for one in proposals[: returned.value] if one.status == _SUCCESS)
    return _Problem(operation, weight, x, y, good)


def _layout(rows: int, columns: int) -> Any:
    layout = ctypes.c_void_p()
    _demand(
        _library().cublasLtMatrixLayoutCreate(
            ctypes.byref(layout), _BFLOAT16, ctypes.c_uint64(rows), ctypes.c_uint64(columns),
            ctypes.c_int64(rows),
        )
    )  # fmt: skip
    return layout


@functools.cache
def _library() -> Any:
    """The very library that torch loaded, which is the one its release was tested with."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    with open("/proc/self/maps") as maps:
        paths = sorted({line.split()[-1] for line in maps if "libcublasLt.so" in line})
    if not paths:
        raise RuntimeError("torch has not loaded cuBLASLt")
    return ctypes.CDLL(paths[0])


@functools.cache
def _handle(device: torch.device) -> Any:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _demand(_library().cublasLtCreate(ctypes.byref(handle)))
    return handle


@functools.cache
def _workspace(device: torch.device) -> Any:
    """One per device and never freed, because recorded graphs hold its address. Calls on two streams must not overlap."""
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("call product once with this shape before a CUDA graph records it")
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _demand(status: int) -> None:
    if status != _SUCCESS:
        raise RuntimeError(f"cuBLASLt answers {status}")
