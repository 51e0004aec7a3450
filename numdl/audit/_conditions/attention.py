"""Conditions on the softmax of attention, at the start and after the trial, and on what changes with the width."""

import numpy as np

from numdl.audit._conditions.seen import Seen

LARGE, GREW = 50.0, 5.0  # a logit, and how many times its first size, as in a watched run
SHARP, OPEN = 0.1, 0.3  # of the entropy of an even row: one key is left; several were


def logits(r):
    a = r.e.attention
    if a is None:
        return None
    before, after = a.logit_max, _own(r, a.end_logit_max)
    grown = np.where((after > LARGE) & (after > GREW * before), after, 0)
    large = np.where(before > LARGE, before, 0)
    if not max(np.max(grown, initial=0), np.max(large, initial=0)) > 0:
        return None
    failing = _failing(r)
    if np.max(grown, initial=0) > 0:
        i, steps = int(grown.argmax()), r.e.trial.losses.shape[-1]
        more = f"grows from {before[i]:.3g} to {after[i]:.3g} in {steps} steps"
        return Seen("likely" if failing else "hint", after[i], LARGE, before[i], a.names[i], more, weight=0.6)
    i = int(large.argmax())
    more = f"is {before[i]:.3g} before the first step"
    return Seen("likely" if failing else "hint", before[i], LARGE, where=a.names[i], more=more, weight=0.6)


def entropy(r):
    a = r.e.attention
    if a is None:
        return None
    before, after = a.entropy, _own(r, a.end_entropy)
    failing = _failing(r)
    fell = np.where((after < SHARP) & (before > OPEN), after, np.inf)
    if failing and np.isfinite(fell).any():
        i, steps = int(fell.argmin()), r.e.trial.losses.shape[-1]
        more = f"falls from {before[i]:.3g} to {after[i]:.3g} in {steps} steps"
        return Seen("likely", after[i], SHARP, before[i], a.names[i], more, weight=0.58)
    sharp = np.where(before < SHARP, before, np.inf)
    if r.e.trial.end.size and r.flat_anywhere and np.isfinite(sharp).any():
        i = int(sharp.argmin())
        more = f"is {before[i]:.3g} before the first step, and no rate moves the loss"
        return Seen("likely", before[i], SHARP, where=a.names[i], more=more, weight=0.58)
    return None


def widths(r):
    w = r.e.widths
    wrong = [i for i, text in enumerate(w.verdicts) if text.startswith("fails")] if w is not None else []
    if not wrong:
        return None
    known = np.nan_to_num(np.abs(np.maximum(w.change, w.initial)[wrong]), nan=0.0)
    i = wrong[int(known.argmax())]
    names = w.culprits or tuple(w.names[j] for j in wrong)
    more = f"{w.names[i]} {w.verdicts[i]}; explained by {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
    error = float(w.error[i])
    return Seen("likely", float(w.change[i]), 0.25, 0.0, names[0], more, error if np.isfinite(error) else 0.0, 0.3)


def _failing(r):
    """Whether the training at the user's rate learned nothing, less than at a smaller one, or stayed far behind."""
    return bool(r.e.trial.end.size) and (r.flat or r.end < r.lower - 0.1 or r.behind)


def _own(r, rows):
    """What a table [R, A] has at the user's own rate; nan where no trial was run."""
    return rows[r.own] if len(rows) else np.full(rows.shape[1:], np.nan)
