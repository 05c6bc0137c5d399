"""Hand a model its weights: right names, right shapes, right dtype, and the run layout each product is fastest in.

Where the bytes come from (`safetensors`, GGUF, random) is the checkpoint's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.layers.linear import Linear, dense_product


class TensorSource(Protocol):
    """A checkpoint under Hugging Face names."""

    def names(self) -> Sequence[str]: ...

    def stored_bytes(self, name: str) -> int: ...

    def tensor(self, name: str) -> Tensor: ...


class Weights:
    """Tensors of a checkpoint by name, checked. `progress(done_bytes)` is called as they are handed out."""

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._source = source
        self._names = frozenset(source.names())
        self._dtype = dtype
        self._device = device
        self._progress = progress
        self._done_bytes = 0

    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor in the model's dtype. Raises ModelLoadError when it is absent or of another shape."""
        if name not in self._names:
            raise ModelLoadError(
                f"the checkpoint has no tensor {name!r}; is it complete, and of this architecture?"
            )
        tensor = self._source.tensor(name)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but the config asks for {list(shape)}; "
                "config and weights do not belong together"
            )
        self._done_bytes += self._source.stored_bytes(name)
        if self._progress is not None:
            self._progress(self._done_bytes)
        return tensor.to(device=self._device, dtype=self._dtype)

    def linear(
        self, names: Sequence[str], in_features: int, out_sizes: Sequence[int], *, bias: bool = False
    ) -> Linear:
        """One product for several matrices that read the same input, stacked along the output."""
        weight = _stack(
            [
                self.take(f"{name}.weight", out, in_features)
                for name, out in zip(names, out_sizes, strict=True)
            ]
        )
        stacked_bias = None
        if bias:
            stacked_bias = _stack(
                [self.take(f"{name}.bias", out) for name, out in zip(names, out_sizes, strict=True)]
            )
        return Linear(dense_product(weight, stacked_bias))


class RandomWeights(Weights):
    """`--load-format dummy`: any name exists, with values as before training, the same for the same seed."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype = dtype
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def take(self, name: str, *shape: int) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        values = torch.randn(shape, generator=self._generator, device=self._device, dtype=torch.float32)
        return (values * 0.02).to(self._dtype)


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
