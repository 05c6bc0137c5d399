"""Hand a model its weights: right names, right shapes, right dtype, and the run layout each product is fastest in.

Where the bytes come from (`safetensors`, GGUF, random) is the checkpoint's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from shoal_engine.errors import ModelLoadError
from shoal_engine.layers.invariant_product import invariant_product
from shoal_engine.layers.linear import Linear
from shoal_engine.layers.products import Matrix, QuantisedBlocks, StoredMatrix, matrix_product
from shoal_engine.quantization import fp8
from shoal_engine.quantization.fp8 import Fp8Weight

Quantise = Literal["fp8"]


class TensorSource(Protocol):
    """A checkpoint under Hugging Face names."""

    def names(self) -> Sequence[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def stored_bytes(self, name: str) -> int: ...

    def quantised(self, name: str) -> tuple[str, Tensor] | Fp8Weight | None: ...

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor: ...


class ModelWeights(ABC):
    """What a model is built from: tensors by name, and products.

    keep_dense: whether a quantised matrix may be kept dense as well, for prompts; costs what an unquantised model does.
    quantise: round the layers' matrices to float8 as they are read, where the checkpoint does not hold them quantised. Each
    is read, rounded and let go by itself, so that the device never holds the model twice.
    deterministic: products whose result for a row does not depend on the other rows.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        *,
        keep_dense: bool = True,
        quantise: Quantise | None = None,
        deterministic: bool = False,
    ) -> None:
        self._dtype = dtype
        self._device = device
        self._keep_dense = keep_dense
        self._quantise = quantise
        self._deterministic = deterministic

    @abstractmethod
    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor in the model's dtype, on its device. Raises ModelLoadError when it is absent or of another shape."""

    def linear(
        self, names: Sequence[str], in_features: int, out_sizes: Sequence[int], *, bias: bool = False
    ) -> Linear:
        """One product for several matrices that read the same input, stacked along the output."""
        shapes = {f"{name}.weight": (out, in_features) for name, out in zip(names, out_sizes, strict=True)}
        biases = [self.take(f"{name}.bias", out) for name, out in zip(names, out_sizes, strict=True) if bias]
        stored = self._stored(shapes)
        dense = partial(self._dense, shapes)
        if self._quantise is not None and not isinstance(stored, Fp8Weight) and _in_layers(shapes):
            stored = rounded = self._rounded(shapes)
            dense = partial(rounded.dequantise, self._dtype)
        matrix = Matrix(sum(out_sizes), in_features, self._dtype, self._device, dense, stored)
        bias_vector = _concatenated(biases) if biases else None
        if self._deterministic:
            return Linear(invariant_product(matrix, bias_vector))
        return Linear(matrix_product(matrix, bias_vector, keep_dense=self._keep_dense))

    def _dense(self, shapes: dict[str, tuple[int, int]]) -> Tensor:
        return _concatenated([self.take(name, *shape) for name, shape in shapes.items()])

    def _stored(self, shapes: dict[str, tuple[int, int]]) -> StoredMatrix | None:
        """The stacked matrix as the checkpoint holds it, when that is quantised and of one kind."""
        return None

    def _rounded(self, shapes: dict[str, tuple[int, int]]) -> Fp8Weight:
        return fp8.concatenate(
            [fp8.quantise_channels(self.take(name, *shape)) for name, shape in shapes.items()]
        )


class Weights(ModelWeights):
    """Tensors of a checkpoint by name, checked. `progress(done_bytes)` is called as they are handed out."""

    def __init__(
        self,
        source: TensorSource,
        dtype: torch.dtype,
        device: torch.device,
        progress: Callable[[int], None] | None = None,
        keep_dense: bool = True,
        quantise: Quantise | None = None,
        deterministic: bool = False,
    ) -> None:
        super().__init__(dtype, device, keep_dense=keep_dense, quantise=quantise, deterministic=deterministic)
        self._source = source
        self._names = frozenset(source.names())
        self._progress = progress
        self._taken: set[str] = set()
        self._done_bytes = 0

    def take(self, name: str, *shape: int) -> Tensor:
        self._check(name, shape)
        tensor = self._source.tensor(name, self._dtype).to(self._device)
        self._count(name)
        return tensor

    def _stored(self, shapes: dict[str, tuple[int, int]]) -> StoredMatrix | None:
        for name, shape in shapes.items():
            self._check(name, shape)
        parts = [self._source.quantised(name) for name in shapes]
        stored: StoredMatrix | None = _stacked_blocks(
            [part for part in parts if isinstance(part, tuple)], len(parts)
        )
        if stored is None:
            fp8_parts = [part.to(self._device) for part in parts if isinstance(part, Fp8Weight)]
            stored = _stacked_fp8(fp8_parts, len(parts))
        if stored is not None:
            for name in shapes:
                self._count(name)
        return stored

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._names:
            raise ModelLoadError(
                f"the checkpoint has no tensor {name!r}; is it complete, and of this architecture?"
            )
        found = self._source.shape(name)
        if found != shape:
            raise ModelLoadError(
                f"tensor {name!r} has shape {list(found)}, but the config asks for {list(shape)}; "
                "config and weights do not belong together"
            )

    def _count(self, name: str) -> None:
        """A tied matrix is taken twice and read once."""
        if name in self._taken:
            return
        self._taken.add(name)
        self._done_bytes += self._source.stored_bytes(name)
        if self._progress is not None:
            self._progress(self._done_bytes)


class RandomWeights(ModelWeights):
    """`--load-format dummy`: any name exists, with values as before training, the same for the same seed."""

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
        quantise: Quantise | None = None,
        deterministic: bool = False,
    ) -> None:
        super().__init__(dtype, device, quantise=quantise, deterministic=deterministic)
        self._generator = None if device.type == "meta" else torch.Generator(device).manual_seed(seed)

    def take(self, name: str, *shape: int) -> Tensor:
        if self._generator is None:  # a meta device has no values
            return torch.empty(shape, dtype=self._dtype, device=self._device)
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        values = torch.randn(shape, generator=self._generator, device=self._device, dtype=torch.float32)
        return (values * 0.02).to(self._dtype)


def _in_layers(names: Iterable[str]) -> bool:
    """What is quantised at load: not embedding and output matrix, whose errors reach every token."""
    return all(name.startswith("model.layers.") for name in names)


def _stacked_blocks(parts: Sequence[tuple[str, Tensor]], count: int) -> QuantisedBlocks | None:
    if len(parts) < count or len({block_type for block_type, _ in parts}) > 1:
        return None
    return QuantisedBlocks(parts[0][0], _concatenated([rows for _, rows in parts]))


def _stacked_fp8(parts: Sequence[Fp8Weight], count: int) -> Fp8Weight | None:
    return fp8.stack(parts) if len(parts) == count else None


def _concatenated(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
