"""What the instruments found, now and at first, as the plain numbers that rules read; a resumed run's from its file."""

import math

import numpy as np

from numdl.audit._watch.history import Changes, Losses
from numdl.audit._watch.rules import Seen

KEPT = 0.7  # of the sums whose ratio is the noise scale, from one look to the next
LAST = 1000  # losses of a resumed run that are looked at again


class Memory:
    """Everything that was seen of a run."""

    def __init__(self):
        self.losses, self.changes = Losses(), Changes()
        self.now, self.first = {}, {}  # instrument -> what it found
        self.begun, self._sums = None, None

    def note(self, kind, step, found):
        """What an instrument found at this step; what goes into the file of it."""
        if kind == "noise":
            found = self._noise(found)
        if kind == "change":
            found = self._changed(step, found)
        if kind == "layers" and not self.losses.given:
            self.losses.take(step, found["loss"])
        self.now[kind] = found
        self.first.setdefault(kind, found)
        return found

    def restore(self, events):
        """Go on from the events of a run's file; what was not written yet stays so."""
        losses = [pair for e in events if e["kind"] == "loss" for pair in zip(e["steps"], e["values"])]
        self.losses, new = Losses(), self.losses
        new.drain(wait=True)  # one may still be computed
        for step, loss in losses[:5] + losses[5:][-LAST:]:
            self.losses.take(step, math.nan if loss is None else loss)
        self.losses.unsaved.clear()
        for step, loss in new.unsaved:
            self.losses.take(step, loss)
        self.losses.given = new.given
        for event in events:
            if event["kind"] in ("layers", "change"):
                self.first.setdefault(event["kind"], {name: _array(value) for name, value in event.items()})

    def seen(self, step, batch):
        """The record that rules read."""
        losses, layers, change = self.losses, self.now.get("layers", {}), self.now.get("change", {})
        leaves = change.get("names", ())
        moved, by = self.changes.first_moved(leaves) if losses.lasting or losses.lost >= 0 else ("", math.nan)
        return Seen(
            step=step,
            steps=step - (step if self.begun is None else self.begun),
            batch=batch,
            losses=losses.count,
            start=losses.start,
            recent=losses.recent,
            best=losses.best,
            noise=losses.noise,
            lost_step=losses.lost,
            spike_step=losses.spike_step,
            spike_size=losses.spike_size,
            spike_loss=losses.spike_loss,
            lasting=losses.lasting,
            moved=moved,
            moved_by=by,
            sharpness=self._last("sharpness", "sharpness"),
            residual=self._last("sharpness", "residual"),
            limit=self._last("sharpness", "limit"),
            noise_scale=self._last("noise", "noise_scale"),
            leaves=leaves,
            leaf_rms=change.get("rms", np.zeros(0)),
            leaf_start=self._aligned("change", "rms", leaves),
            leaf_ratio=_whole(self.changes.ratio, len(leaves)),
            leaf_still=_whole(self.changes.still, len(leaves)),
            leaf_gradient=_by_name(layers.get("leaf_names", ()), layers.get("leaf_gradient_rms", ()), leaves),
            **self._of_layers(layers),
        )

    def _of_layers(self, layers):
        names, scores = layers.get("names", ()), layers.get("attention", ())
        fields = {"dead": "dead", "saturated": "saturated", "rank": "rank", "state": "state_rms"}
        now = {name: layers.get(field, np.zeros(0)) for name, field in fields.items()}
        first = {f"{name}_start": self._aligned("layers", field, names) for name, field in fields.items()}
        of_scores = {name: layers.get(field, np.zeros(0)) for name, field in _SCORES.items()}
        of_scores |= {
            f"{name}_start": self._aligned("layers", _SCORES[name], scores, "attention")
            for name in ("logit", "entropy")
        }
        return {
            "layers": names,
            "attentions": scores,
            "first_nonfinite": layers.get("first_nonfinite", -1),
            "cosine": layers.get("cosine", np.zeros(0)),
            "gradient": layers.get("gradient_rms", np.zeros(0)),
            **now,
            **first,
            **of_scores,
        }

    def _aligned(self, kind, field, names, by="names"):
        first = self.first.get(kind, {})
        return _by_name(first.get(by, ()), first.get(field, ()), names)

    def _last(self, kind, field):
        return self.now.get(kind, {}).get(field, math.nan)

    def _changed(self, step, found):
        before = self.now.get("change")
        gap = step - before["step"] if before else 0
        if gap > 0:
            self.changes.add(step, gap, found["ratio"])
        return {**found, "step": step, "gap": gap}

    def _noise(self, found):
        sums = np.array([found["trace"], found["square_norm"]])
        self._sums = sums if self._sums is None else KEPT * self._sums + (1 - KEPT) * sums
        trace, square = self._sums
        return {"noise_scale": float(trace / square) if square > 0 else math.nan, "trace": trace, "square_norm": square}


_SCORES = {"logit": "logit_max", "entropy": "entropy", "shut": "shut"}


def _by_name(names, values, wanted):
    """The values of the wanted names, nan for those that have none."""
    found = dict(zip(names, values))
    return np.array([found.get(name, math.nan) for name in wanted], float)


def _whole(values, count):
    return values if len(values) == count else np.full(count, math.nan)


def _array(value):
    """Numbers of a JSON list as an array, texts as a tuple."""
    if not isinstance(value, list):
        return value
    return tuple(value) if any(isinstance(each, str) for each in value) else np.array(value, float)
