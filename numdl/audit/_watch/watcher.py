"""The watch itself: when which instrument looks, what is written of it, which findings are new."""

import dataclasses
import time
import weakref

import jax
import numpy as np

from numdl import checks
from numdl.audit._watch import journal, looks, rules
from numdl.audit._watch.memory import Memory
from numdl.audit._watch.pace import WINDOW, Clock, Pace
from numdl.audit.evidence import Finding

SHARES = {"change": 0.15, "layers": 0.3, "sharpness": 0.45, "noise": 0.1}  # of the cost
AIM = 0.8  # of the cost, so that what looks cost beyond their mean stays below it
REST = 100  # steps
SKIPPED = 8  # batches of another form that are passed over before their form is the one to look at


class Watch:
    """See `audit.watching.watch`."""

    def __init__(self, instruments, method, every, cost, folder):
        self.method, self.findings = method, ()
        self._instruments, self._about = instruments, {"cost": cost, "every": every}
        at_a_time = {"change": 2}  # the second one is of a single step
        self._paces = {
            name: Pace(share * AIM * cost, every, looks=at_a_time.get(name, 1)) for name, share in SHARES.items()
        }
        self._memory, self._clock, self._log = Memory(), Clock(), journal.Log(folder)
        self._form, self._compiled, self._skipped = None, None, 0  # of batches: to look at, looked at, passed over
        self._next, self._known, self._written = 0, {}, 0.0
        weakref.finalize(self, _finish, self._memory, self._log)

    def update(self, step, params, batch, loss=None, state=None):
        """New findings; almost nothing between looks. params after the step, loss of the step, optimizer's state."""
        begin, losses = time.thread_time(), self._memory.losses  # what preempts the thread is not ours
        step = checks.whole("step", step, least=0)
        if self._memory.begun is not None:
            self._clock.called(step)
        if loss is not None:
            losses.add(step, loss)
        if losses.drain():
            self._force()
        elif step < self._next:
            if losses.unsaved and self._log.path and time.perf_counter() - self._written > self._patience():
                self._write_losses()
            self._clock.spent += time.thread_time() - begin
            return ()
        return self._look(step, params, batch, state)

    __call__ = update

    def look(self, step, params, batch, loss=None, state=None):
        """New findings of a look with all instruments, whatever the interval."""
        step = checks.whole("step", step, least=0)
        if loss is not None:
            self._memory.losses.add(step, loss)
        return self._look(step, params, batch, state, whatever=True)

    @property
    def share(self):
        """Part of the time since the first look that went into looks, compilation apart."""
        return self._clock.share()

    @property
    def intervals(self):
        """Steps from one look of each instrument to its next, as they are now."""
        seconds = self._clock.step_seconds(self._next)
        return {name: pace.interval(seconds) for name, pace in self._paces.items()}

    def numbers(self):
        """What was seen last, by name: single numbers and arrays, nan where unknown."""
        now, layers = self._memory.now, self._memory.now.get("layers", {})
        single = {"loss": layers, "sharpness": now.get("sharpness", {}), "limit": now.get("sharpness", {})}
        single |= {"noise_scale": now.get("noise", {})}
        found = {name: np.asarray(of.get(name, np.nan), float) for name, of in single.items()}
        fields = ("dead", "saturated", "rank", "gradient_rms", "logit_max", "entropy")
        found |= {name: layers[name] for name in fields if np.size(layers.get(name, ()))}
        change = now.get("change", {"ratio": np.zeros(0), "gap": 0})
        return found | {"update_ratio": change["ratio"] / change["gap"] if change["gap"] else change["ratio"] * np.nan}

    def close(self):
        """Write what is left and close the file."""
        _finish(self._memory, self._log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __repr__(self):
        lines = [f"{f.severity}: {f.name} {f.where}: {f.sentence}" for f in self.findings]
        return "\n".join([f"Watch: {len(self.findings)} findings, {self.share:.1%} of the time", *lines])

    def _force(self):
        self._paces["change"].forced = True
        if self._memory.losses.lost >= 0:
            self._paces["layers"].forced = True

    def _look(self, step, params, batch, state, *, whatever=False):
        jax.block_until_ready(params)
        begin, seconds, batch = time.perf_counter(), self._clock.step_seconds(step), looks.opened(batch)
        if self._memory.begun is None:
            self._begin(step, params)
        known = self._familiar(batch, whatever)
        due = [
            n
            for n, pace in self._paces.items()
            if (whatever or self._affordable(pace, step, seconds)) and (known or n == "change")
        ]
        compiled = known and self._compiled != self._form
        events = [self._measured(name, step, params, batch, state, twice=compiled) for name in due]
        found = self._judged(step, batch) if due else ()
        self._write(step, events, found)
        overhead = (time.perf_counter() - begin - sum(own for *_, own in events)) / max(len(events), 1)
        again = "change" in due and self._memory.now["change"]["gap"] != 1 and not self._paces["change"].forced
        for name, _, own in events:
            self._paces[name].looked(step, own + (0.0 if compiled else overhead))
        self._paces["change"].forced |= again  # so that it sees a single step
        self._compiled = self._form if known else self._compiled
        self._clock.looked(begin, compiled=compiled)
        self._next = max(self._soonest(step), step + (1 if due else WINDOW))
        return found

    def _affordable(self, pace, step, seconds):
        """Whether the instrument is due, and the looks so far have left enough for it."""
        if not pace.due(step, seconds):
            return False
        free = pace.forced or pace.every is not None or pace.last is None
        return free or self._clock.share(pace.looks * pace.seconds) <= AIM * self._about["cost"]

    def _soonest(self, step):
        """The step at which the next instrument looks; soon, to see again, where that is not known yet."""
        soonest = min(pace.next(self._clock.step_seconds(step)) for pace in self._paces.values())
        return step + WINDOW if soonest == np.inf else soonest

    def _familiar(self, batch, whatever):
        """Whether the batch has the form that the programs were compiled for; another one is taken up after a while."""
        form = looks.form(batch)
        if form == self._form:
            self._skipped = 0
            return True
        self._skipped += 1
        if self._form is None or whatever or self._skipped > SKIPPED:
            self._form, self._skipped = form, 0
            return True
        return False

    def _measured(self, name, step, params, batch, state, *, twice):
        """(instrument, what it found, seconds); after one that compiles a second one, which tells what a look costs."""
        measure = {
            "change": lambda: self._instruments.change(params),
            "layers": lambda: self._instruments.layers(params, batch),
            "sharpness": lambda: self._sharpness(step, params, batch, state),
            "noise": lambda: {**self._instruments.noise(params, batch), "batch": looks.count(batch)},
        }[name]
        if twice:
            measure()
        begin = time.perf_counter()
        found = measure()
        return name, self._memory.note(name, step, found), time.perf_counter() - begin

    def _sharpness(self, step, params, batch, state):
        adaptive = self.method.method == "adam"
        found = self._instruments.sharpness(params, batch, state if adaptive else None, step + 1)
        # The limit is that of a preconditioner at rest, which it is not before its moments have seen some steps.
        known = not adaptive or (found["preconditioned"] and step >= REST)
        return {**found, "limit": self.method.limit(step) if known else np.nan}

    def _begin(self, step, params):
        """The file, and what it says of this run before this step."""
        about = {"leaves": self._instruments.leaves(params), "method": self.method.method}
        about |= {"momentum": self.method.momentum, "why_not": self.method.why_not}
        earlier = self._log.begin(step, {**about, **self._about})
        self._memory.begun = min((event["step"] for event in earlier), default=step)
        self._memory.restore(earlier)
        self.findings = tuple(finding(event) for event in earlier if event["kind"] == "finding")
        self._known = {(f.name, f.where): rules.RANK[f.severity] for f in self.findings}

    def _judged(self, step, batch):
        """The findings that are new, or more severe than before."""
        new = []
        for found in rules.judge(self._memory.seen(step, looks.count(batch))):
            rank = rules.RANK[found.severity]
            if rank > self._known.get((found.name, found.where), -1):
                self._known[found.name, found.where] = rank
                new.append(found)
        self.findings += tuple(new)
        return tuple(new)

    def _write(self, step, events, found):
        if self._log.path is None:
            return
        often = time.perf_counter() - self._written > self._patience() or found or len(events) > 1
        for name, values, _ in events:
            if name != "change" or often:
                self._log.write(name, step, values)
        for each in found:
            self._log.write("finding", step, dataclasses.asdict(each))
        if any(name != "change" for name, _, _ in events):
            clock = self._clock
            about = {"share": self.share, "seconds": clock.spent, "compiling": clock.compiling}
            self._log.write("cost", step, {**about, "intervals": self.intervals})
        if often:
            self._write_losses()

    def _write_losses(self):
        _write_losses(self._memory.losses, self._log)
        self._written = time.perf_counter()

    def _patience(self):
        """Seconds between two lines of losses: a thousandth of the run, a second at most."""
        return min(1.0, 0.01 + self._clock.age() / 1000)


def _write_losses(losses, log):
    if losses.unsaved:
        steps, values = zip(*losses.unsaved, strict=True)
        log.write("loss", steps[0], {"steps": steps, "values": values})
        losses.unsaved.clear()


def _finish(memory, log):
    memory.losses.drain(wait=True)
    _write_losses(memory.losses, log)
    log.close()


def finding(event):
    """A finding as the file has it."""
    numbers = ("measured", "uncertainty", "predicted", "threshold", "weight")
    values = {field.name: event[field.name] for field in dataclasses.fields(Finding)}
    values |= {name: np.nan if values[name] is None else values[name] for name in numbers}
    return Finding(**{**values, "consequences": tuple(values["consequences"])})
