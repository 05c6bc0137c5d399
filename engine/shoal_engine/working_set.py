"""How many rows of logits to work on at a time. Bounds the temporaries of sampling and logprobs; allocates nothing."""

from __future__ import annotations

import torch

# Bytes of float32 logits. On a CPU temporaries of 4 MiB stay in its cache and below the size at which the allocator goes to
# the system for pages (at 64 MiB the same work takes twice as long); on a GPU few large launches win.
_BYTES = {"cpu": 2**22, "cuda": 2**28}


def rows_at_a_time(vocab_size: int, device: torch.device) -> int:
    return max(1, _BYTES[device.type] // (4 * vocab_size))
