"""Triton's kernels run in its interpreter here, whether or not there is a GPU. Before any test imports Triton."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
