"""Hand a model its weights: right names, right shapes, right dtype, and the run layout each product is fastest in.

Where the bytes come from (`safetensors`, GGUF, random) is the checkpoint's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.products import QuantisedBlocks, matrix_product


class TensorSource(Protocol):
    """A checkpoint under Hugging Face names."""

    def names(self) -> Sequence[str]: ...

    def stored_bytes(self, name: str) -> int: ...

    def quantised(self, name: str) -> tuple[str, Tensor] | None: ...

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...


class Weights:
    """Tensors of a checkpoint by name, checked. `progress(done_bytes)` is called as they are handed out.

    keep_dense: whether a quantised matrix may be kept dense as well, for prompts; costs what an unquantised model does.
    """

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[int], None] | None = None,
        keep_dense: bool = True,
    ) -> None:
        self._source = source
        self._names = frozenset(source.names())
        self._dtype = dtype
        self._device = device
        self._progress = progress
        self._keep_dense = keep_dense
        self._taken: set[str] = set()
        self._done_bytes = 0

    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor in the model's dtype. Raises ModelLoadError when it is absent or of another shape."""
        if name not in self._names:
            raise ModelLoadError(
                f"the checkpoint has no tensor {name!r}; is it complete, and of this architecture?"
            )
        tensor = self._source.tensor(name, self._dtype)
        if tuple(tensor.shape) != shape:
            raise ModelLoadError(
                f"tensor {name!r} has shape {list(tensor.shape)}, but the config asks for {list(shape)}; "
                "config and weights do not belong together"
            )
        self._count(name)
        return tensor.to(self._device)

    def linear(
        self, names: Sequence[str], in_features: int, out_sizes: Sequence[int], *, bias: bool = False
    ) -> Linear:
        """One product for several matrices that read the same input, stacked along the output."""
        weights = [
            self.take(f"{name}.weight", out, in_features) for name, out in zip(names, out_sizes, strict=True)
        ]
        biases = [self.take(f"{name}.bias", out) for name, out in zip(names, out_sizes, strict=True) if bias]
        blocks = self._blocks([f"{name}.weight" for name in names])
        bias_vector = _stack(biases) if biases else None
        return Linear(matrix_product(_stack(weights), bias_vector, blocks, keep_dense=self._keep_dense))

    def _count(self, name: str) -> None:
        """A tied matrix is taken twice and read once."""
        if name in self._taken:
            return
        self._taken.add(name)
        self._done_bytes += self._source.stored_bytes(name)
        if self._progress is not None:
            self._progress(self._done_bytes)

    def _blocks(self, names: Sequence[str]) -> QuantisedBlocks | None:
        """The stacked matrix as the checkpoint stores it, when that is in blocks of one type."""
        stored = [self._source.quantised(name) for name in names]
        parts = [part for part in stored if part is not None]
        if len(parts) < len(names) or len({block_type for block_type, _ in parts}) > 1:
            return None
        return QuantisedBlocks(parts[0][0], _stack([rows for _, rows in parts]))


class RandomWeights(Weights):
    """`--load-format dummy`: any name exists, with values as before training, the same for the same seed."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self._dtype = dtype
        self._device = device
        self._keep_dense = True
        self._generator = torch.Generator(device).manual_seed(seed)

    def _blocks(self, names: Sequence[str]) -> QuantisedBlocks | None:
        return None

    def take(self, name: str, *shape: int) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        values = torch.randn(shape, generator=self._generator, device=self._device, dtype=torch.float32)
        return (values * 0.02).to(self._dtype)


def _stack(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
