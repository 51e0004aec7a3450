"""What a watched run remembers: its losses and their spikes, how far each leaf moved and which one moved first."""

import collections
import math

import numpy as np

WINDOW = 32  # losses that say what is usual
FIRST = 5  # losses that say where it began
FEWEST = 16  # before which nothing is unusual
SPIKE = 8.0  # deviations that make a spike
FLOOR = 0.02  # of the loss itself: a deviation is never taken for less
EXCESS = 3.0  # times its usual movement: a leaf has moved
SAMPLES = 32  # movements that are kept


class Losses:
    """The losses, read once the device has them; a spike is a loss far above the ones before it."""

    def __init__(self):
        self._pending, self._window = collections.deque(), collections.deque(maxlen=WINDOW)
        self._first, self.unsaved, self.count, self.given = [], [], 0, False
        self.best, self.lost = math.inf, -1  # least of the recent medians; first step whose loss was not finite
        self.spike_step, self.spike_size, self.spike_base, self.spike_loss, self.lasting = (
            -1,
            0.0,
            math.nan,
            math.nan,
            0,
        )
        self._base, self._scale, self._age = math.nan, math.nan, 0

    def add(self, step, loss):
        """A loss, which may still be being computed."""
        self.given = True
        self._pending.append((step, loss))

    def drain(self, *, wait=False):
        """Take in what is there; whether something happened: a spike began, or a loss was not finite."""
        happened = False
        while self._pending and (wait or _is_ready(self._pending[0][1])):
            step, loss = self._pending.popleft()
            happened |= self.take(step, float(loss))
        return happened

    @property
    def start(self):
        """Median of the first losses."""
        return _median(self._first)

    @property
    def recent(self):
        """Median of the last losses."""
        return _median(list(self._window)[-FEWEST:])

    @property
    def noise(self):
        """Their scatter, as a standard deviation."""
        return 1.4826 * _median([abs(loss - self.recent) for loss in list(self._window)[-FEWEST:]])

    def take(self, step, loss):
        """Take in one loss; whether something happened."""
        self.unsaved.append((step, loss))
        self.count += 1
        if not math.isfinite(loss):
            first, self.lost = self.lost < 0, step if self.lost < 0 else self.lost
            return first
        if len(self._first) < FIRST:
            self._first.append(loss)
        if not self._is_unusual(loss):
            self.lasting = 0
            self._usual(loss)
            return False
        self.lasting += 1
        if self.lasting > WINDOW:  # the new level
            self._usual(loss)
        size = (loss - self._base) / self._scale
        if self.lasting == 1:
            self.spike_step, self.spike_size, self.spike_base, self.spike_loss = step, size, self._base, loss
            return True
        self.spike_size, self.spike_loss = max(self.spike_size, size), max(self.spike_loss, loss)
        return self.lasting == FEWEST // 2

    def _usual(self, loss):
        self._window.append(loss)
        self._age += 1
        if len(self._window) >= FEWEST and self._age >= 8:
            self._base = _median(self._window)
            scatter = 1.4826 * _median([abs(each - self._base) for each in self._window])
            self._scale, self._age = max(scatter, FLOOR * abs(self._base), 1e-30), 0
            self.best = min(self.best, self._base)

    def _is_unusual(self, loss):
        return loss > self._base + SPIKE * self._scale  # nan: not known yet


class Changes:
    """How far each leaf moved, relative to its size, between two looks at the parameters."""

    def __init__(self):
        self._kept = collections.deque(maxlen=SAMPLES)
        self.ratio, self.still = np.zeros(0), np.zeros(0, int)  # of one step; looks in a row without a movement

    def add(self, step, gap, ratio):
        """One look: |change| / |leaf| over `gap` steps, [P]."""
        self._kept.append((step, gap, ratio / gap))
        if len(self.still) != len(ratio):
            self.still = np.zeros(len(ratio), int)
        self.still = np.where(ratio == 0, self.still + 1, 0)
        if gap == 1:
            self.ratio = ratio

    def first_moved(self, names):
        """(leaf, times its usual movement) of the leaf that moved first of late; ("", nan) if none did."""
        for index in range(max(0, len(self._kept) - SAMPLES // 2), len(self._kept)):
            excess = self._excess(index)
            if excess.max(initial=0) > EXCESS:
                place = int(excess.argmax())
                return names[place], float(excess[place])
        return "", math.nan

    def _excess(self, index):
        """How many times its usual way each leaf moved, [P]: the median of the looks before over as many steps."""
        _, gap, ratio = self._kept[index]
        lost = ~np.isfinite(ratio)
        if lost.any():  # of one leaf a fault, of several what a step made of it
            return np.where(lost, np.inf, 0) if lost.sum() == 1 else np.zeros(len(ratio))
        alike = [r for i, (_, g, r) in enumerate(self._kept) if i < index and (g == 1) == (gap == 1)]
        if len(alike) < 3:
            return np.zeros(len(ratio))
        usual = np.median(alike, axis=0)
        return np.where(usual > 0, ratio / np.where(usual > 0, usual, 1), 0)


def _is_ready(loss):
    return not hasattr(loss, "is_ready") or loss.is_ready()


def _median(values):
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else math.nan
