"""A line on the terminal: steps done, loss, steps per second, time to go."""

import sys
import time

WIDTH = 24  # characters of the bar
PAUSE = 0.2  # seconds between two drawings


class Bar:
    """Drawn on standard error, or not at all."""

    def __init__(self, steps, shown):
        self.shown = sys.stderr.isatty() if shown is None else shown
        self._steps, self._first, self._begin, self._last = steps, None, 0.0, 0.0

    def update(self, step, loss, *, now=False):
        """Draw, unless it was drawn a moment ago."""
        time_now = time.perf_counter()
        if self._first is None:
            self._first, self._begin = step, time_now
        if not self.shown or (time_now - self._last < PAUSE and not now):
            return
        self._last = time_now
        rate = (step - self._first) / max(time_now - self._begin, 1e-9)
        left = f", {(self._steps - step) / rate:.0f} s to go" if rate > 0 and step < self._steps else ""
        full = "#" * (WIDTH * step // max(self._steps, 1))
        print(
            f"\r{step}/{self._steps} [{full:<{WIDTH}}] loss {loss:.4g}, {rate:.0f} steps/s{left}\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )

    def close(self, text):
        """End the line with how training ended."""
        if self.shown:
            print(f"\n{text}" if text else "", file=sys.stderr, flush=True)
