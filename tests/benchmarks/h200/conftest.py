"""The scripts of benchmarks/h200 import their neighbours by bare name, as a script run by its path does."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "benchmarks" / "h200"))
