"""What a layer adds to the residual stream: numbers, or numbers whose factors are left to whoever adds them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Unscaled:
    """values [M, N] times row_scale [M, 1] and column_scale [N], both float32: a float8 product as cuBLASLt leaves it."""

    values: Tensor
    row_scale: Tensor
    column_scale: Tensor

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        return self.row_scale, self.column_scale


Addend = Tensor | Unscaled


def numbers_of(addend: Addend) -> Tensor:
    """Its factors applied, in place."""
    if isinstance(addend, Tensor):
        return addend
    from shoal_engine.kernels.triton_quantise import rescale  # a CPU does without Triton

    return rescale(addend.values, *addend.factors)


def split(addend: Addend) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The numbers as they are, and the factors that they still want."""
    return (addend, None) if isinstance(addend, Tensor) else (addend.values, addend.factors)
