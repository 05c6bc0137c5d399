"""Operations on meta tensors by their shapes alone. Torch's own, written in Python, first import sympy and its compiler.

For walks through a step that look at something else than numbers. What is not here is left to torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ShapesOnly(TorchFunctionMode):
    """A context in which results of the operations below are empty, of the right shape and type."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        shortcut = _SHORTCUTS.get(func)
        if shortcut is not None:
            found = shortcut(*args, **given)
            if found is not NotImplemented:
                return found
        return func(*args, **given)


def _cat(parts: Sequence[Tensor], dim: int = 0) -> Any:
    first = parts[0]
    if not first.is_meta:
        return NotImplemented
    shape = list(first.shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return _empty(shape, first)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _empty((*x.shape[:-1], weight.shape[0]), x) if x.is_meta else NotImplemented


def _rows(x: Tensor, index: Any) -> Any:
    """x[index] for a tensor of row numbers."""
    if not x.is_meta or not isinstance(index, Tensor) or index.dtype != torch.int64:
        return NotImplemented
    return _empty((*index.shape, *x.shape[1:]), x)


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:
    return _empty(query.shape, query) if query.is_meta else NotImplemented


def _same(x: Tensor, *_: Any, **given: Any) -> Any:
    return x if x.is_meta else NotImplemented


def _empty(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, device=like.device)


def _largest(x: Tensor, dim: int) -> Any:
    return _empty([*x.shape[:dim], *x.shape[dim + 1 :]], x) if x.is_meta and dim >= 0 else NotImplemented


def _quotient(x: Tensor, by: Any) -> Any:
    """Of x by a number, or by a tensor of as many or fewer dimensions."""
    shape = by.shape if isinstance(by, Tensor) else ()
    if not x.is_meta or len(shape) > x.dim():
        return NotImplemented
    padded = (1,) * (x.dim() - len(shape)) + tuple(shape)
    return _empty([max(sizes) for sizes in zip(x.shape, padded, strict=True)], x)


def _scaled_product(x: Tensor, weight: Tensor, *_: Any, out_dtype: torch.dtype, **given: Any) -> Any:
    shape = (x.shape[0], weight.shape[1])
    return torch.empty(shape, dtype=out_dtype, device=x.device) if x.is_meta else NotImplemented


def _clamped(x: Tensor, *_: Any, **given: Any) -> Any:
    return _empty(x.shape, x) if x.is_meta else NotImplemented


def _like(x: Tensor, **given: Any) -> Any:
    return _empty(x.shape, x) if x.is_meta and not given else NotImplemented


_SHORTCUTS: dict[Any, Callable[..., Any]] = {
    torch.cat: _cat,
    functional.linear: _linear,
    functional.scaled_dot_product_attention: _attention,
    Tensor.__getitem__: _rows,
    torch.empty_like: _like,
    Tensor.clamp: _clamped,
    Tensor.abs: _like,
    Tensor.amax: _largest,
    Tensor.clamp_: _same,
    Tensor.div: _quotient,
    torch._scaled_mm: _scaled_product,
    Tensor.zero_: _same,
    Tensor.fill_: _same,
    Tensor.__setitem__: lambda x, *_: None if x.is_meta else NotImplemented,
}
