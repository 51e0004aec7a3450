"""When to look: each instrument has a share of the time, and waits until it has saved up for its next look."""

import math
import statistics
import time

WINDOW = 5  # steps without a look that tell what a step takes


class Pace:
    """One instrument: what it costs, when it looked."""

    def __init__(self, share, every=None, *, looks=1):
        self.share, self.every, self.looks = share, every, looks  # of the time; looks in a row each time
        self.last, self.forced, self._seconds = None, False, []

    @property
    def seconds(self):
        """Of a look, compilation apart; nan before the first."""
        return statistics.median(self._seconds) if self._seconds else math.nan

    def interval(self, step_seconds):
        """Steps from one look to the next; inf while it is not known."""
        if self.every is not None:
            return self.every
        wanted = self.looks * self.seconds / (self.share * step_seconds) if step_seconds > 0 else math.nan
        return math.inf if math.isnan(wanted) else max(1, math.ceil(wanted))

    def next(self, step_seconds):
        """The step of the next look; inf while it is not known."""
        if self.last is None:
            return 0
        return self.last + (1 if self.forced else self.interval(step_seconds))

    def due(self, step, step_seconds):
        """Whether to look at this step."""
        return self.forced or step >= self.next(step_seconds)

    def looked(self, step, seconds):
        """A look that took so long; the last five count."""
        self.last, self.forced, self._seconds = step, False, [*self._seconds[-4:], seconds]


class Clock:
    """The training's own seconds a step: the time that looks did not take, from the second call on.

    Before that the caller may have compiled.
    """

    def __init__(self):
        self.spent, self.compiling = 0.0, 0.0  # seconds of looks; of those that compiled
        self._start = None

    def called(self, step):
        """A call that is not the first one."""
        if self._start is None:
            self._start = step, time.perf_counter(), self.spent, self.compiling

    def looked(self, begin, *, compiled):
        """A look that began then is over."""
        seconds = time.perf_counter() - begin
        if compiled:
            self.compiling += seconds
        else:
            self.spent += seconds

    def step_seconds(self, step):
        """The mean; nan while there are too few steps to tell."""
        if self._start is None or step - self._start[0] < WINDOW:
            return math.nan
        return (self.age() - (self.spent - self._start[2])) / (step - self._start[0])

    def share(self, more=0.0):
        """Part of the time that went into looks, and would with so many seconds more, compilation apart."""
        total = self.age() + more
        return (self.spent - self._start[2] + more) / total if total > 0 else math.nan

    def age(self):
        """Seconds of the run, without those that compiled."""
        if self._start is None:
            return 0.0
        _, begin, _, compiling = self._start
        return time.perf_counter() - begin - (self.compiling - compiling)
