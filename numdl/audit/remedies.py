"""Remedies: from findings to a network, a loss, an optimizer and scales that do not have the fault, and a proof.

Each remedy is a change of the Case; what cannot be built (an axis, a mask, a pairing of rows) is a line that says what
to change. Weights are drawn anew where the start is at fault (`_fresh`); rate, method and start are those that a
contest over the budget ends best with (`_contest`).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit import _affine, _bare, _by_hand, _contest, _fresh, _losses
from numdl.audit._measured import cases, labels, programs
from numdl.audit._reading import Reading
from numdl.audit.changes import Repair
from numdl.audit.evidence import Evidence

# Findings whose cure is a new start, another method, another rate.
START = {
    "symmetry", "signal_vanishes", "signal_explodes", "gradient_vanishes", "gradient_explodes", "saturated", "chaotic",
    "dead_units", "residual_scale", "recurrent_explodes", "recurrent_vanishes", "correlation_collapses", "too_narrow",
}  # fmt: skip
REPLACED = {"clipped_to_nothing", "optimizer_epsilon", "schedule", "decay_too_strong", "frozen"}
SHARP = {"attention_logits", "entropy_collapse"}  # a lower rate is tried; the norm of queries and keys is by hand
METHOD = {*REPLACED, *SHARP, "rate_too_high", "rate_too_low", "needs_warmup", "batch_noise", "loss_scale"}
FEW = 8  # examples: a smaller batch is noisy


def repair(case: Any, evidence: Evidence, findings: tuple) -> Repair:
    """The Repair for these findings.

    Parameters
    ----------
    case : Case                 what was examined
    evidence : Evidence
    findings : tuple of Finding causes and their consequences; hints change nothing
    Returns
    -------
    Repair                      its `case` is the setting to train
    """
    strong = [f for f in findings if f.severity != "hint"] or list(findings[:1])
    cut = _by_hand.cut(evidence.signal, strong)  # by hand, and all that follows with it
    names = [name for f in strong for name in _to_mend(f) if not (cut and f.name == "frozen")]
    narrow = any("too_narrow" in (f.name, *f.consequences) for f in findings)
    work, lines = _Work(case, evidence, set(names), narrow), []
    if _losses.passable(cut):
        lines += work.past(cut)
    for name, act in _ACTS.items():
        if name in names:
            lines += act(work)
    # What only follows from a cause goes with it.
    causes = [
        f for f in strong if (f.name in _by_hand.LINES or (cut and f.name == "frozen")) and f.name not in work.done
    ]
    if (START | METHOD) & work.names or work.changed or not any(f.severity == "certain" for f in causes):
        work.choose()
    lines += [work.told[part] for part in ("batch", "start", "method", "rate") if work.told.get(part)]
    solved = {"hint", "likely"} if work.cured else {"hint"} if lines and not work.short else set()
    by_hand = [f"{f.name}: {_by_hand.line(f.name, cut)}" for f in causes if f.severity not in solved] + work.short
    if not lines and not by_hand:
        by_hand = [f"{f.name}: {f.remedy}" for f in strong]
    return work.repair(lines, by_hand)


def _to_mend(finding):
    """The finding and what follows from it; alone where it goes away by hand and takes its consequences along."""
    by_hand = finding.severity == "certain" and finding.name in _by_hand.LINES and finding.name not in _ACTS
    return (finding.name,) if by_hand else (finding.name, *finding.consequences)


class _Work:
    """A Case under repair."""

    def __init__(self, case, evidence, names, narrow=False):
        self.before, self.case, self.e, self.names, self.narrow = case, case, evidence, names, narrow
        self.changed, self.done, self.ends, self.short = False, set(), None, []
        self.told = {}  # batch, start, method, rate -> what was changed of it
        self.parts = dict.fromkeys(
            ("params", "optimizer", "batch_size", "kept", "input_shift", "input_scale", "target_shift", "target_scale",
             "apply", "loss")
        )  # fmt: skip

    def put(self, fault, /, **changes):
        self.case = dataclasses.replace(self.case, **changes)
        self.changed = True
        self.done.add(fault)

    # ---- the data ----

    def inputs(self):
        shift, scale = _affine.columns(self._known(0))
        self.parts |= {"input_shift": shift, "input_scale": scale}
        self.put("inputs_unscaled", **self._moved(0, shift, scale))
        return ["inputs: subtract the mean of each column and divide by its deviation"]

    def targets(self):
        self._targets("targets_unscaled", *_affine.whole(self._known(1), labels.told(self.e.loss).target))
        return ["targets: subtract their mean and divide by their deviation; undo it on the outputs"]

    def labels(self):
        d = self.e.data
        if d.spare_labels:  # the first class is none that the loss asks for
            return []
        low = int(d.label_low)
        if self.e.loss.kind == "classes" and d.label_high - low >= d.classes:  # no shift brings them all to a column
            return self._without_columns()
        width = d.label_high - low if self.e.loss.kind == "binary" and d.label_high != low else 1
        self._targets(
            "labels_out_of_range", *_affine.labels(self._known(1), low, width, labels.told(self.e.loss).target)
        )
        return [f"targets: subtract {low}, so that the first class is 0"]

    def _known(self, part):
        """All inputs (0) or targets (1) there are."""
        return self.case.data[part] if self.case.data is not None else (self.case.x, self.case.y)[part]

    def _targets(self, fault, shift, scale):
        self.parts |= {"target_shift": shift, "target_scale": scale}
        self.put(fault, **self._moved(1, shift, scale))

    def _moved(self, part, shift, scale):
        """The batch and the data with their inputs (0) or targets (1) changed."""
        found = {"xy"[part]: _affine.moved((self.case.x, self.case.y)[part], shift, scale)}
        if self.case.data is not None:
            data = list(self.case.data)
            data[part] = _affine.moved(data[part], shift, scale)
            found["data"] = tuple(data)
        return found

    def wider(self):
        """Parameters of half precision in single precision, where their range is what was left."""
        narrow = lambda leaf: jnp.finfo(leaf.dtype).max < np.finfo(np.float32).max / 2  # noqa: E731
        if not any(map(narrow, jax.tree.leaves(self.case.moving))):
            return []
        wide = lambda leaf: leaf.astype(jnp.float32) if narrow(leaf) else leaf  # noqa: E731
        self.parts["params"] = jax.tree.map(wide, self.case.moving)
        self.put("float_range", moving=self.parts["params"])
        return ["parameters: in float32"]

    def rows(self):
        if not self.e.data.broken_count or self.case.data is None:
            return []
        x, y = self.case.data
        good = np.ones(cases.count(x), bool)
        for leaf in jax.tree.leaves((x, y)):
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                good &= np.isfinite(np.asarray(leaf, np.float64)).reshape(len(leaf), -1).all(1)
        kept = np.setdiff1d(np.flatnonzero(good), np.asarray(self.e.data.broken))
        return self._keep("not_finite", kept, "that are not finite")

    def _without_columns(self):
        told = labels.told(self.e.loss)
        if self.case.data is None or np.ndim(told.read(self.case.data[1])) != 1:
            return []
        wanted = told.read(self.case.data[1])
        kept = np.flatnonzero((wanted >= 0) & (wanted < self.e.data.classes))
        return self._keep("labels_out_of_range", kept, "whose label is no column") if len(kept) else []

    def _keep(self, fault, index, which):
        """The data with these rows alone."""
        x, y = (cases.take(part, index) for part in self.case.data)
        before, size = self.parts["kept"], min(self.case.examples, len(index))
        self.parts["kept"] = index if before is None else before[index]
        left = cases.count(self.case.data[0]) - len(index)
        self.put(fault, data=(x, y), x=cases.take(x, slice(0, size)), y=cases.take(y, slice(0, size)))
        return [f"data: leave out the {left} rows {which}"]

    def shuffle(self):
        if self.case.data is None:
            return []
        order = np.random.default_rng(6).permutation(cases.count(self.case.data[0]))
        data = cases.take(self.case.data[0], order), cases.take(self.case.data[1], order)
        size = slice(0, self.case.examples)
        self.put("data_order", data=data, x=cases.take(data[0], size), y=cases.take(data[1], size), in_order=False)
        return ["data: shuffle the examples before they are cut into batches"]

    def larger_batch(self, below=FEW):
        """Where a batch is small: for what is normalised over it, and for its noise."""
        if self.case.data is None or not self.case.separate or self.case.examples >= below:
            return []
        size = min(4 * FEW, cases.count(self.case.data[0]))
        x, y = (cases.take(part, slice(0, size)) for part in self.case.data)
        self.put("norm_degenerate", x=x, y=y)
        self.parts["batch_size"] = size
        self.told["batch"] = f"batch: {size} examples"
        return []

    # ---- loss and head ----

    def sign(self):
        if self.e.optimizer.ascent < 0:
            self.replace_method("wrong_sign")
            return []
        return self.other_loss("wrong_sign")

    def other_loss(self, fault):
        found = _losses.BUILT[fault](self.case, self.e)
        if found is None:
            return []
        words, self.parts["loss"] = found
        self.put(fault, loss=self.parts["loss"])
        return [f"loss: {words}"]

    def past(self, lines):
        self.parts["apply"] = programs.let_through(self.case.apply, lines)
        self.put("frozen", apply=self.parts["apply"])
        return [f"network: {_by_hand.line('frozen', lines)}"]

    def head(self):
        """The last layer's output, raw or through the function that the loss expects."""
        found = _bare.best(self.case)
        if found is None:
            return []
        words, self.parts["apply"] = found
        self.put("head_against_loss", apply=self.parts["apply"], evaluate=None)
        self.done.add("outputs_constant")
        return [f"network: {words}"]

    # ---- the start and the method ----

    def start_again(self, draw, orthogonal=False):
        """Weights drawn anew; None: the user's own."""
        if draw is None:
            return self._begin(self.own[0], None, self.own[1])
        return self._begin(*_fresh.fresh(self.case, self.e, "residual_scale" in self.names, draw, orthogonal))

    def open_rectifiers(self):
        """An orthogonal start whose rectifiers are nearly linear."""
        drawn, text = _fresh.fresh(self.case, self.e, orthogonal=True)
        moving, biases = (None, "") if drawn is None else _fresh.opened(self.case, drawn)
        self._begin(moving, text.replace("biases 0", biases))

    def pair_units(self):
        """A start whose units come in pairs of opposite signs: linear at first, however deep."""
        self._begin(*_fresh.mirrored(self.case))

    def _begin(self, moving, text, *params):
        if moving is not None:
            self.told["start"], (self.parts["params"],) = text, params or (moving,)
            self.put("start", moving=moving)

    def replace_method(self, why):
        self.told["method"], self.parts["optimizer"] = "optimizer: plain Adam in its place", "adam"
        self.put(why, make=cases.named("adam"), transformation=cases.named("adam")(1e-3), name="adam", rate=1e-3)

    def choose(self):
        """Lines on start, method and rate: what a contest ends best with, the least change first."""
        self.own, started = (self.case.moving, self.parts["params"]), bool(START & self.names)
        if started:
            self.start_again(0)
        if started and self.narrow:
            self.open_rectifiers()
        if (self.case.make is None or REPLACED & self.names) and self.parts["optimizer"] is None:
            self.replace_method("method")
        self._rate()
        if self.ends is None and not started:  # every rate blows up
            self._otherwise(lambda: self.start_again(0))
        if self.ends is None and not self.adam:
            self._otherwise(lambda: self.replace_method("method"))
        if self.ends is not None and self.ends.seen:
            self._go_on(started)
        elif self.ends is not None:
            slow = (started or "needs_warmup" in self.names) and not self.ends.fell > 0.3
            if slow and not self.adam:
                self.replace_method("method")
                self._rate()
            if started and _contest.poor(self.ends, self.shallow):
                self._otherwise(self.pair_units)
                self._other_method()

    def _go_on(self, started):
        """Where answers are left to get right: Adam, a larger batch, other starts; each only if clearly better."""
        self._other_method()
        before = self.case.moving
        first, *more = (
            functools.partial(self.start_again, *other)
            for other in ((None if started else 0,), (0, True), (1,), *([(2,)] if started else []))
        )
        other = functools.partial(self.start_again, 0) if started and self.narrow else self.open_rectifiers
        for act in (first, self.pair_units, more[0], other, *more[1:]):
            if self.ends.short if act is first else not self.cured:
                # Where nothing was learned, its rate says nothing of another start's.
                self._otherwise(act, self.ends.rate if self.ends.learned else math.nan)
        if self.case.moving is not before and not self.cured:
            self._other_method()
        self.short = [_by_hand.ARCHITECTURE] if _contest.poor(self.ends, self.shallow, 0.7) else []

    def _other_method(self):
        if self.ends.short and not self.adam:
            self._otherwise(lambda: self.replace_method("method"))
        if self.ends.short:
            self._otherwise(functools.partial(self.larger_batch, 4 * FEW))

    @property
    def shallow(self):
        return Reading(self.e).shallow

    @property
    def cured(self):
        """Whether a contest over the budget ended as near to what can be learned as is known."""
        return self.ends is not None and self.ends.seen and not _contest.poor(self.ends, self.shallow)

    @property
    def adam(self):
        return self.case.name in ("adam", "adamw")

    def _otherwise(self, act, *near):
        """The act and a new contest, if it ends better; else all is as it was."""
        kept = self.case, dict(self.parts), set(self.done), dict(self.told), self.ends
        act()
        if self.case is not kept[0]:
            self._rate(*near)
            if _contest.better(self.ends, kept[-1]):
                return
        self.case, self.parts, self.done, self.told, self.ends = kept

    def _rate(self, *near):
        adaptive = self.adam or self.e.optimizer.degree_up < 0.5
        self.ends = _contest.run(self.case, adaptive, *_contest.known(self.e.loss, self.parts), *near)
        if self.ends is not None:
            rate = self.ends.rate
            self.case = dataclasses.replace(self.case, rate=rate, transformation=self.case.make(rate))
            self.told["rate"] = f"learning rate: {rate:.3g}"

    def repair(self, lines, by_hand):
        moving = self.parts["params"]
        params = {"params": None if moving is None else self.case.whole(moving)}
        found = {"changes": tuple(lines), "by_hand": tuple(by_hand), "learning_rate": self.case.rate}
        return Repair(case=self.case, **found, **self.parts | params)


_ACTS = {
    "float_range": _Work.wider,
    "not_finite": _Work.rows,
    "labels_out_of_range": _Work.labels,
    "data_order": _Work.shuffle,
    "norm_degenerate": _Work.larger_batch,
    "inputs_unscaled": _Work.inputs,
    "inputs_too_small": _Work.inputs,
    "targets_unscaled": _Work.targets,
    "wrong_sign": _Work.sign,
    **{fault: functools.partial(_Work.other_loss, fault=fault) for fault in _losses.BUILT if fault != "wrong_sign"},
    "head_against_loss": _Work.head,
    "outputs_constant": _Work.head,
}
