"""What the rows of a step ask for when all of them want a plain draw: greedy, or by temperature, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The names and types of the fields, for who makes room for them.
FIELDS: dict[str, type[np.generic]] = {"temperature": np.float32, "keys": np.int64, "drawn": np.int64}


@dataclass(frozen=True, slots=True)
class PlainDraws:
    """temperature [R] float32, 0 = greedy; keys [R] int64, the bits of `noise.key_of`; drawn [R] int64: output tokens."""

    temperature: NDArray[np.float32]
    keys: NDArray[np.int64]
    drawn: NDArray[np.int64]

    def write(self, arrays: dict[str, NDArray[Any]], rows: int) -> None:
        """Into `arrays`, by name. Rows behind these, up to `rows`, are padding: greedy, and read by nobody."""
        own = len(self.temperature)
        for name in FIELDS:
            arrays[name][:own] = getattr(self, name)
        arrays["temperature"][own:rows] = 0.0
