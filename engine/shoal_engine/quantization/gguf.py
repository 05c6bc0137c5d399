"""GGUF blocks to numbers, for whole tensors at once. Where the bytes come from is no business of this file.

Every quantised type is one formula over groups of a block, w = scale * q - offset, with small integers q;
what differs is where a type keeps their bits. `unpack` gives the three parts, for layouts that stay
quantised; `dequantize` the numbers. Products and differences are rounded to float32 one by one, as ggml's
reference does, so results agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_engine.quantization.block_types import BlockType

# Blocks are decoded in pieces of this many numbers: their intermediates stay in a core's cache.
CHUNK_ELEMENTS = 1 << 18

PLAIN_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True, slots=True)
class Groups:
    """B blocks of G groups of E numbers: q [B, G, E] int8 or uint8; scale and offset [B, G, 1] float32."""

    q: Tensor
    scale: Tensor
    offset: Tensor | None = None


def unpack(blocks: Tensor, block_type: BlockType) -> Groups:
    """blocks [B, block bytes] uint8 of a quantised type."""
    return _UNPACKERS[block_type.name](blocks)


def dequantize(data: Tensor, block_type: BlockType, dtype: torch.dtype | None = None) -> Tensor:
    """data [n] uint8, whole blocks -> [elements] in `dtype`; None = as stored, float32 for quantised types.

    Plain types in their own dtype come back as a view on `data`.
    """
    if block_type.name in PLAIN_DTYPES:
        values = data.view(PLAIN_DTYPES[block_type.name])
        return values if dtype is None else values.to(dtype)
    out = torch.empty(
        data.numel() // block_type.num_bytes * block_type.elements, dtype=dtype or torch.float32
    )
    blocks = data.view(-1, block_type.num_bytes)
    num_blocks = CHUNK_ELEMENTS // block_type.elements
    for first in range(0, len(blocks), num_blocks):
        groups = unpack(blocks[first : first + num_blocks], block_type)
        values = groups.q.to(torch.float32).mul_(groups.scale)
        if groups.offset is not None:
            values.sub_(groups.offset)
        start = first * block_type.elements
        out[start : start + values.numel()] = values.view(-1)
    return out


def _half(blocks: Tensor, at: int) -> Tensor:
    """The float16 at byte `at` of each block: [B, 1, 1] float32."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float().unsqueeze(-1)


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n] -> [..., 2, n]: the low halves of all bytes, then the high halves."""
    return torch.stack((packed & 15, packed >> 4), dim=-2)


def _bits(packed: Tensor, width: int) -> Tensor:
    """[..., n] -> [..., 8 / width, n]: the lowest `width` bits of all bytes, then the next, and so on."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8).unsqueeze(-1)
    return (packed.unsqueeze(-2) >> shifts) & ((1 << width) - 1)


def _bit_per_number(packed: Tensor) -> Tensor:
    """[B, n] -> [B, 8 n]: bit i of a byte belongs to the i-th number of its eight."""
    return ((packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 2:]).view(-1, 1, 32).view(torch.int8) - 8, _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Groups:
    return Groups(_nibbles(blocks[:, 4:]).view(-1, 1, 32), _half(blocks, 0), -_half(blocks, 2))


def _fifth_bits(blocks: Tensor, at: int) -> Tensor:
    """[B, 1, 32] values 0..31: 32 high bits from byte `at`, then 16 bytes of nibbles."""
    high = _bit_per_number(blocks[:, at : at + 4]) << 4
    return (_nibbles(blocks[:, at + 4 :]).view(-1, 32) | high).unsqueeze(1)


def _q5_0(blocks: Tensor) -> Groups:
    return Groups(_fifth_bits(blocks, 2).view(torch.int8) - 16, _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Groups:
    return Groups(_fifth_bits(blocks, 4), _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Groups:
    return Groups(blocks[:, 2:].view(torch.int8).unsqueeze(1), _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Groups:
    scales = blocks[:, :16].unsqueeze(-1)
    return Groups(
        _bits(blocks[:, 16:80].view(-1, 2, 32), 2).view(-1, 16, 16),
        _half(blocks, 80) * (scales & 15).float(),
        _half(blocks, 82) * (scales >> 4).float(),
    )


def _q3_k(blocks: Tensor) -> Groups:
    """The third bit is stored inverted: where it is 0, four is taken off."""
    low = _bits(blocks[:, 32:96].view(-1, 2, 32), 2).view(-1, 16, 16)
    high = _bits(blocks[:, :32], 1).view(-1, 16, 16)
    scales = _nibbles(blocks[:, 96:104]).view(-1, 16) | (_bits(blocks[:, 104:108], 2).view(-1, 16) << 4)
    scale = _half(blocks, 108) * (scales.view(torch.int8) - 32).float().unsqueeze(-1)
    return Groups((low | (high << 2)).view(torch.int8) - 4, scale)


def _six_bit_pairs(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> 8 scales and 8 minimums of six bits, [B, 8, 1] float32 each.

    The first four pairs lie in bytes 0..3 and 4..7; of the last four the low nibbles lie in bytes 8..11 and
    the two high bits on top of the first four.
    """
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = torch.cat((first & 63, (third & 15) | ((first >> 2) & 48)), dim=1)
    minimum = torch.cat((second & 63, (third >> 4) | ((second >> 2) & 48)), dim=1)
    return scale.float().unsqueeze(-1), minimum.float().unsqueeze(-1)


def _q4_k(blocks: Tensor) -> Groups:
    scale, minimum = _six_bit_pairs(blocks[:, 4:16])
    q = _nibbles(blocks[:, 16:].view(-1, 4, 32)).view(-1, 8, 32)
    return Groups(q, _half(blocks, 0) * scale, _half(blocks, 2) * minimum)


def _q5_k(blocks: Tensor) -> Groups:
    scale, minimum = _six_bit_pairs(blocks[:, 4:16])
    low = _nibbles(blocks[:, 48:].view(-1, 4, 32)).view(-1, 8, 32)
    high = _bits(blocks[:, 16:48], 1) << 4
    return Groups(low | high, _half(blocks, 0) * scale, _half(blocks, 2) * minimum)


def _q6_k(blocks: Tensor) -> Groups:
    low = _nibbles(blocks[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    high = _bits(blocks[:, 128:192].view(-1, 2, 32), 2).view(-1, 8, 32) << 4
    scale = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float().unsqueeze(-1)
    return Groups(((low | high).view(torch.int8) - 32).view(-1, 16, 16), scale)


# 16 steps spaced as weights are distributed, shared by the IQ4 types.
_IQ4_STEPS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# The FP4 numbers (sign, two bits of exponent, one of mantissa), doubled so that they are whole.
_FP4_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _looked_up(indices: Tensor, steps: tuple[int, ...]) -> Tensor:
    table = torch.tensor(steps, dtype=torch.int8)
    return table[indices.flatten().int()].view(indices.shape)


def _iq4_nl(blocks: Tensor) -> Groups:
    return Groups(_looked_up(_nibbles(blocks[:, 2:]).view(-1, 1, 32), _IQ4_STEPS), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Groups:
    """8 scales of six bits: low nibbles in bytes 4..7 in order, high pairs in bytes 2..3."""
    low = torch.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), dim=-1).view(-1, 8)
    high = _bits(blocks[:, 2:4], 2).transpose(1, 2).reshape(-1, 8)
    scale = _half(blocks, 0) * ((low | (high << 4)).view(torch.int8) - 32).float().unsqueeze(-1)
    q = _looked_up(_nibbles(blocks[:, 8:].view(-1, 8, 16)).view(-1, 8, 32), _IQ4_STEPS)
    return Groups(q, scale)


def _mxfp4(blocks: Tensor) -> Groups:
    """A power of two per block (bias 127; halved, for the steps are doubled), then nibbles."""
    exponent = blocks[:, :1].int()
    bits = torch.where(exponent < 2, 0x00200000 << exponent.clamp(max=1), (exponent - 1) << 23)
    q = _looked_up(_nibbles(blocks[:, 1:]).view(-1, 1, 32), _FP4_DOUBLED)
    return Groups(q, bits.view(torch.float32).unsqueeze(-1))


_UNPACKERS: dict[str, Callable[[Tensor], Groups]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
    "MXFP4": _mxfp4,
}
SUPPORTED = (*PLAIN_DTYPES, *_UNPACKERS)
