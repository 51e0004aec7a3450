"""Conditions on the data: labels, inputs, targets, their order."""

import numpy as np

from numdl.audit._conditions.seen import Seen, certain

SORTED = 0.5
COMMON = 0.9
CHANCE = 1e-3
TINY, SMALL, LARGE, COLUMNS = 1e-6, 1e-2, 10.0, 50.0
FAR_TARGETS = 10.0


def labels_out_of_range(r):
    d, kind = r.e.data, r.e.loss.kind
    span = f"{d.label_low:g} to {d.label_high:g}"
    if kind == "classes" and (d.label_low < 0 or d.label_high >= d.classes):
        if d.spare_labels and d.label_high < d.classes:
            more = f"{span} for {d.classes} columns (those below 0 do not move the loss)"
            return Seen("hint", d.label_low, 0, where="targets", more=more)
        return certain("targets", f"{span} for {d.classes} columns", d.label_high, d.classes - 1)
    if kind == "classes" and d.label_low > 0 and d.one_past > 0:
        more = f"{d.label_low:g} to {d.classes} for {d.classes} columns ({d.one_past:.0%}, the last, move nothing)"
        return Seen("likely", d.classes, d.classes - 1, where="targets", more=more, weight=0.9)
    outside = d.label_low < 0 or d.label_high > 1
    # A loss that has no bound for 0 and 1 either, a product with the label say, has room for any.
    if kind == "binary" and d.labels == 2 and outside and r.bottomless and not r.e.loss.floor_unit < -5:
        return certain("targets", f"{span}, and the loss is unbounded below", d.label_high, 1)
    return None


def labels_constant(r):
    d = r.e.data
    if not d.examples or not d.target_spread <= 1e-7 * max(d.target_rms, 1e-30):
        return None
    more = f"{d.label_low:g}" + ("" if d.whole else " in this batch")
    named = r.e.loss.kind in ("classes", "one-hot")
    if r.residual:  # it is to become 0 and has no other target
        more += ", which is right if the outputs are residuals"
        return Seen("hint", d.target_spread, 0, predicted=0, more=more, weight=0.1)
    return Seen("certain" if d.whole and named else "likely", d.target_spread, 0, predicted=0, more=more, weight=0.9)


def data_order(r):
    d = r.e.data
    # All others of a batch that is drawn at random have the first one's label with this chance at most.
    single = d.batch_labels == 1 and d.labels > 1 and d.common ** max(r.e.facts.examples - 1, 0) < CHANCE
    if not d.sorted_share > SORTED and not single:
        return None
    strong = r.e.facts.order or single
    return Seen("likely" if strong else "hint", d.sorted_share, SORTED, predicted=0, where="data", weight=0.85)


def imbalanced(r):
    d = r.e.data
    if r.e.loss.kind not in ("classes", "one-hot", "binary") or not d.common > COMMON or d.labels < 2:
        return None
    # Above what the common label gives, the score is the share of the rarer ones that are answered right.
    answered = r.later if np.isfinite(r.later) else r.end
    severity = "hint" if answered > 0.5 else "likely"
    return Seen(severity, d.common, COMMON, r.e.predicted.entropy, "data", f"{d.rare:.3g}", weight=0.6)


def inputs_constant(r):
    d = r.e.data
    if d.kind != "float" or not d.spread < TINY * max(d.rms, 1e-30):
        return _missed(r) if d.missed > 0 and not d.ids[3] else None
    share = d.spread / max(d.rms, 1e-30)
    more = f"The inputs do not change from one example to another: their spread is {share:.2g} of their size."
    return Seen("certain" if d.examples > 1 else "hint", share, TINY, where="inputs", more=more, weight=0.95)


def _missed(r):
    """jax reads a table's last row for all that lies past it."""
    d = r.e.data
    span = "{:g} to {:g} in a table whose last row is {:g}".format(*d.ids[:3])
    more = f"{d.missed:.2%} of what the inputs look up lies past the end of the table ({span}) and reads the row there."
    severity = "certain" if d.missed == 1 else "likely" if d.missed > 0.1 and r.end < 0.5 else "hint"
    return Seen(severity, d.missed, 0, where="inputs", more=more, weight=0.95)


def inputs_unscaled(r):
    d = r.e.data
    if d.kind != "float" or r.normalized:
        return None
    for value, limit, words in (
        (d.rms, LARGE, f"Inputs have size {d.rms:.3g}"),
        (d.column_ratio, COLUMNS, f"One input column varies {d.column_ratio:.3g} times as much as the median one"),
        (d.offset, LARGE, f"The inputs' mean is {d.offset:.3g} times their spread"),
    ):
        if value > limit:
            severity = "likely" if r.end < 0.5 or r.progress < 0.2 else "hint"
            return Seen(severity, value, limit, predicted=1, where="inputs", more=f"{words}.", weight=0.9)
    return None


def inputs_small(r):
    d = r.e.data
    if d.kind != "float" or r.normalized or not TINY * max(d.rms, 1e-30) < d.spread < SMALL:
        return None
    severity = "likely" if r.end < 0.3 else "hint"
    return Seen(severity, d.spread, SMALL, predicted=1, where="inputs", weight=0.9)


def targets_unscaled(r):
    d, f = r.e.data, r.e.function
    if r.e.loss.kind != "values" or d.labels:
        return None
    far = d.target_rms / max(f.rms, 1.0)
    if far > FAR_TARGETS or d.target_rms > 3 * FAR_TARGETS:
        severity = "likely" if r.end < 0.5 else "hint"
        more = f"mean {d.target_offset * d.target_spread:.3g}, deviation {d.target_spread:.3g}"
        where = f"their mean and divide by their deviation, {d.target_spread:.4g}"
        return Seen(severity, d.target_rms, FAR_TARGETS, predicted=f.rms, where=where, more=more, weight=0.85)
    if 0 < d.target_spread < 1e-3:
        return Seen("hint", d.target_spread, 1e-3, predicted=f.rms, where="their mean", more="they hardly vary")
    return None
