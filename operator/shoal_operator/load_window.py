"""The highest and the lowest wish of a sliding window, as frozen values. Reads no clock, decides nothing.

Only samples that can still become an extreme are kept: of two, the later one wins when it is at least as extreme.
So a window holds at most one sample per distinct wish, however long it is and however often it is fed.
"""

from __future__ import annotations

from dataclasses import dataclass

Samples = tuple[tuple[float, int], ...]  # (seconds, wish), oldest first


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """What was wished lately. `peaks` fall and `valleys` rise from the oldest to the newest sample."""

    peaks: Samples = ()
    valleys: Samples = ()

    def after(self, now_s: float, wish: int, peak_span_s: float, valley_span_s: float) -> LoadWindow:
        """The window with one more sample, without those as old as their span. The newest always stays."""
        peaks = tuple(s for s in self.peaks if now_s - s[0] < peak_span_s and s[1] > wish)
        valleys = tuple(s for s in self.valleys if now_s - s[0] < valley_span_s and s[1] < wish)
        return LoadWindow((*peaks, (now_s, wish)), (*valleys, (now_s, wish)))

    @property
    def highest(self) -> int:
        """The highest wish. Raises IndexError before the first sample."""
        return self.peaks[0][1]

    @property
    def lowest(self) -> int:
        """The lowest wish. Raises IndexError before the first sample."""
        return self.valleys[0][1]
