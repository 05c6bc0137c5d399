"""Matrix products of a few rows on the CPU: weights packed once, in the bits they are stored in. `c/linear.c` multiplies.

Knows how GGUF lays out Q4_0, Q4_1 and Q8_0 blocks; knows no files. Quantised weights are dequantised exactly: the whole
numbers of a group are summed with the activations as they are, then scaled in float32. Activations are never quantised.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from shoal_engine.kernels.cpu_build import load_library

MAX_M = 64  # rows up to which this is as fast as oneDNN; at 512 it takes 15 to 20 % longer
OUTPUTS = 16  # of c/weights.h
GROUP = 32
C_DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class WeightKind(IntEnum):
    """`WeightKind` of c/weights.h."""

    BF16 = 0
    Q4_0 = 1
    Q4_1 = 2
    Q8_0 = 3


@dataclass(frozen=True, slots=True)
class _Block:
    """One GGUF block of 32 weights: float16 scale, float16 minimum where there is one, then the numbers."""

    header_halves: int
    number_bytes: int

    @property
    def bytes(self) -> int:
        return 2 * self.header_halves + self.number_bytes


_BLOCKS = {WeightKind.Q4_0: _Block(1, 16), WeightKind.Q4_1: _Block(2, 16), WeightKind.Q8_0: _Block(1, 32)}


class _CWeights(ctypes.Structure):
    """`Weights` of c/linear.c."""

    _fields_ = (
        ("words", c_void_p),
        ("scales", c_void_p),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("kind", c_int64),
    )


class PackedLinear:
    """y = x W^T + bias for one packed W [out_features, in_features]."""

    def __init__(
        self,
        kind: WeightKind,
        words: Tensor,
        scales: Tensor | None,
        out_features: int,
        in_features: int,
        library: ctypes.CDLL | None = None,
    ) -> None:
        self.kind = kind
        self.out_features = out_features
        self.in_features = in_features
        self._tensors = (words, scales)
        scales_address = None if scales is None else scales.data_ptr()
        self._struct = _CWeights(words.data_ptr(), scales_address, in_features, out_features, kind)
        self._address = ctypes.addressof(self._struct)
        self._multiply = _linear_function(library or load_library())

    @property
    def nbytes(self) -> int:
        """Memory of the packed weights."""
        return sum(tensor.nbytes for tensor in self._tensors if tensor is not None)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [M, in_features] float32 or bfloat16, bias [out_features] -> [M, out_features] in the dtype of x.

        A row's result does not depend on the other rows, not even in its last bit.
        """
        rows, in_features = x.shape
        if in_features != self.in_features:
            raise ValueError(f"x has {in_features} features, the weight {self.in_features}")
        x = x.contiguous()
        out = x.new_empty((rows, self.out_features))
        dtype = bias_dtype = C_DTYPES[x.dtype]
        bias_address = None
        if bias is not None:
            bias = bias.contiguous()
            bias_address, bias_dtype = bias.data_ptr(), C_DTYPES[bias.dtype]
        failed = self._multiply(
            self._address, x.data_ptr(), bias_address, out.data_ptr(), rows, dtype, bias_dtype
        )
        if failed:
            raise MemoryError(f"no memory to rearrange {rows} rows of {in_features} numbers")
        return out


def pack_bf16(weight: Tensor, library: ctypes.CDLL | None = None) -> PackedLinear:
    """weight [N, K], K even: [panel][pair][output][2]. Float32 weights are rounded to bfloat16."""
    outputs, inputs = weight.shape
    if inputs % 2 != 0:
        raise ValueError(f"rows of {inputs} weights cannot be read in pairs")
    panels = (
        _pad_rows(weight.to(torch.bfloat16)).view(-1, OUTPUTS, inputs // 2, 2).transpose(1, 2).contiguous()
    )
    return PackedLinear(WeightKind.BF16, panels, None, outputs, inputs, library)


def pack_q4(
    blocks: Tensor, kind: WeightKind, out_features: int, in_features: int, library: ctypes.CDLL | None = None
) -> PackedLinear:
    """blocks uint8: the bytes of a GGUF tensor of Q4_0 or Q4_1 blocks, row by row."""
    if kind not in (WeightKind.Q4_0, WeightKind.Q4_1):
        raise ValueError(f"{kind.name} has no 4-bit blocks")
    scales, nibbles = _split_blocks(blocks, kind, out_features, in_features)
    # Byte i of a block holds weight i in its low half and weight i + 16 in its high half.
    numbers = torch.cat((nibbles & 15, nibbles >> 4), dim=-1).view(-1, in_features // 8, 4, 2)
    words = torch.zeros(numbers.shape[:2], dtype=torch.int32)
    for pair in range(4):
        for half in range(2):
            words |= numbers[:, :, pair, half].int() << (4 * pair + 16 * half)
    return PackedLinear(kind, _panels(words), scales, out_features, in_features, library)


def pack_q8_0(
    blocks: Tensor, out_features: int, in_features: int, library: ctypes.CDLL | None = None
) -> PackedLinear:
    """blocks uint8: the bytes of a GGUF tensor of Q8_0 blocks, row by row."""
    scales, numbers = _split_blocks(blocks, WeightKind.Q8_0, out_features, in_features)
    words = numbers.reshape(-1, in_features).view(torch.int32)
    return PackedLinear(WeightKind.Q8_0, _panels(words), scales, out_features, in_features, library)


def _split_blocks(
    blocks: Tensor, kind: WeightKind, out_features: int, in_features: int
) -> tuple[Tensor, Tensor]:
    """Scales [panel][group][scale, minimum][output] float16, and the numbers' bytes [padded N, groups, bytes]."""
    block, groups = _BLOCKS[kind], in_features // GROUP
    if (
        in_features % GROUP != 0
        or blocks.dtype != torch.uint8
        or blocks.numel() != out_features * groups * block.bytes
    ):
        raise ValueError(
            f"{blocks.numel()} bytes of {blocks.dtype} are not {out_features} rows of {in_features} {kind.name} weights"
        )
    rows = _pad_rows(blocks.reshape(out_features, groups * block.bytes)).view(-1, groups, block.bytes)
    header = rows[:, :, : 2 * block.header_halves].contiguous().view(torch.float16)
    scales = header.view(-1, OUTPUTS, groups, block.header_halves).permute(0, 2, 3, 1).contiguous()
    return scales, rows[:, :, 2 * block.header_halves :].contiguous()


def _panels(words: Tensor) -> Tensor:
    """[padded N, words] -> [panel][word][output]."""
    return words.view(-1, OUTPUTS, words.shape[1]).transpose(1, 2).contiguous()


def _pad_rows(rows: Tensor) -> Tensor:
    missing = -rows.shape[0] % OUTPUTS
    return torch.cat((rows, rows.new_zeros((missing, rows.shape[1])))) if missing else rows


def _linear_function(library: ctypes.CDLL) -> ctypes._NamedFuncPointer:
    function = library.shoal_linear
    function.argtypes = [c_void_p] * 4 + [c_int64, c_int, c_int]
    function.restype = c_int
    return function
