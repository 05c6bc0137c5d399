"""What a layer adds to the residual stream: numbers, or numbers whose factors are left to whoever adds them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Factors = tuple[Tensor, Tensor]  # of rows [M, 1] and of columns [N], float32


@dataclass(frozen=True, slots=True)
class Unscaled:
    """values [M, N], in the model's dtype, that still want their factors: a float8 product as cuBLASLt leaves it."""

    values: Tensor
    factors: Factors


Addend = Tensor | Unscaled


def numbers_of(addend: Addend) -> Tensor:
    """With its factors applied, in place: once."""
    if isinstance(addend, Tensor):
        return addend
    from shoal_engine.kernels.triton_quantise import rescale  # a CPU does without Triton

    return rescale(addend.values, *addend.factors)


def with_factors(addend: Addend) -> tuple[Tensor, Factors | None]:
    """The numbers as they are, and the factors that they still want."""
    return (addend, None) if isinstance(addend, Tensor) else (addend.values, addend.factors)
