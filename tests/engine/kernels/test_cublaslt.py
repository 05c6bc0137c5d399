"""The binding to cuBLASLt against a library that counts columns first, as the real one does, and proposes two algorithms."""

# ruff: noqa: N802 (the names are those of cuBLASLt)
from __future__ import annotations

import ctypes
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shoal_engine.kernels import cublaslt, gemm_table, triton_linear
from shoal_engine.kernels.gemm_table import Method

CACHES = (cublaslt._problem, cublaslt._library, cublaslt._handle, cublaslt._workspace)


class FakeLibrary:
    """Keeps descriptors by number and multiplies bfloat16 in the memory that it is given."""

    def __init__(self) -> None:
        self.layouts: list[tuple[int, int, int]] = []
        self.transposes: dict[int, int] = {}
        self.algorithms: list[int] = []

    def cublasLtCreate(self, handle: Any) -> int:
        return 0

    def cublasLtMatmulDescCreate(self, operation: Any, compute: int, scale: int) -> int:
        assert (compute, scale) == (68, 0)
        return 0

    def cublasLtMatmulDescSetAttribute(self, operation: Any, attribute: int, value: Any, size: Any) -> int:
        self.transposes[attribute] = value._obj.value
        return 0

    def cublasLtMatrixLayoutCreate(
        self, layout: Any, dtype: int, rows: Any, columns: Any, stride: Any
    ) -> int:
        assert dtype == 14
        self.layouts.append((rows.value, columns.value, stride.value))
        layout._obj.value = len(self.layouts)
        return 0

    def cublasLtMatmulPreferenceCreate(self, preference: Any) -> int:
        return 0

    def cublasLtMatmulPreferenceSetAttribute(self, preference: Any, what: int, value: Any, size: Any) -> int:
        assert (what, value._obj.value) == (1, cublaslt.WORKSPACE_BYTES)
        return 0

    def cublasLtMatmulAlgoGetHeuristic(self, *call: Any) -> int:
        for place in range(2):
            call[8][place].algorithm[0] = 7 + place
        call[9]._obj.value = 2
        return 0

    def cublasLtMatmul(self, *call: Any) -> int:
        _, _, alpha, a, a_layout, b, b_layout, beta, _, _, d, d_layout, algorithm, _, size, _ = call
        assert self.transposes == {3: 1}
        assert size.value == cublaslt.WORKSPACE_BYTES
        self.algorithms.append(algorithm._obj[0])
        first, second = self._matrix(a, a_layout), self._matrix(b, b_layout)
        assert beta._obj.value == 0.0
        total = alpha._obj.value * first.T @ second
        columns_first = torch.from_numpy(np.ascontiguousarray(total.T)).bfloat16()
        ctypes.memmove(d, columns_first.data_ptr(), columns_first.numel() * 2)
        assert self.layouts[d_layout.value - 1][::-1][1:] == tuple(columns_first.shape)
        return 0

    def _matrix(self, address: Any, layout: Any) -> Any:
        rows, columns, stride = self.layouts[layout.value - 1]
        bits = np.ctypeslib.as_array((ctypes.c_uint16 * (stride * columns)).from_address(address.value))
        values = (bits.astype(np.uint32) << 16).view(np.float32).reshape(columns, stride)
        return values[:, :rows].T


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLibrary]:
    fake = FakeLibrary()
    for cache in CACHES:
        cache.cache_clear()
    monkeypatch.setattr(cublaslt, "_library", lambda: fake)
    monkeypatch.setattr(cublaslt, "_handle", lambda device: ctypes.c_void_p())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    yield fake
    for cache in CACHES:
        cache.cache_clear()


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize(("m", "n", "k"), [(3, 16, 8), (33, 24, 40)])
def test_the_product_by_a_proposal(library: FakeLibrary, m: int, n: int, k: int, place: int) -> None:
    x, weight = operands(m, n, k)
    y = cublaslt.product(x, weight, place)
    torch.testing.assert_close(y, (x.float() @ weight.float().T).bfloat16(), rtol=2**-7, atol=2**-7)
    assert library.algorithms == [7 + place]


def test_a_shorter_list_is_said_to_be_so(library: FakeLibrary) -> None:
    with pytest.raises(cublaslt.NoSuchAlgorithm, match="proposal 2 of 2"):
        cublaslt.product(*operands(5, 16, 8), 2)


def test_a_list_for_other_rows(library: FakeLibrary) -> None:
    x, weight = operands(5, 16, 8)
    y = cublaslt.product(x, weight, 1, 64)
    torch.testing.assert_close(y, (x.float() @ weight.float().T).bfloat16(), rtol=2**-7, atol=2**-7)
    assert (8, 64, 8) in library.layouts


@pytest.mark.parametrize("status", [7, 15])
def test_an_algorithm_that_does_not_take_the_rows_is_none(
    library: FakeLibrary, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(library, "cublasLtMatmul", lambda *call: status)
    with pytest.raises(cublaslt.NoSuchAlgorithm, match="does not take 5"):
        cublaslt.product(*operands(5, 16, 8), 0, 64)


def test_a_refusal_of_the_library_is_an_error(library: FakeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "cublasLtMatmul", lambda *call: 13)
    with pytest.raises(RuntimeError, match="answers 13"):
        cublaslt.product(*operands(5, 16, 8), 0)


def test_without_a_gpu_torch_does_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = operands(20, 64, 128)
    row = ((Method.PROPOSAL, 0, 0, 1, 4, 1, 0, 0),) * len(gemm_table.ROW_BUCKETS)
    monkeypatch.setattr(gemm_table, "_TABLE", {(64, 128): row})
    gemm_table.choose.cache_clear()
    try:
        assert torch.equal(triton_linear.linear(x, weight), torch.nn.functional.linear(x, weight))
    finally:
        gemm_table.choose.cache_clear()
    assert not cublaslt.serves(x.float(), weight.float())
    assert not cublaslt.serves(x, weight[:, ::2])
