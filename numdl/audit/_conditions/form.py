"""Conditions on the form: loss, head, function, symmetry. Most are algebra, and certain."""

import math

import numpy as np

from numdl.audit._conditions.seen import Seen, certain
from numdl.audit._skills import FLAT, UNPAIRED

CONSTANT = 1e-6  # spread of outputs, relative
STILL = 1e-3  # of what a normalisation divides by
FAR_FROM_LABEL = -0.3  # cosine
WORSE = -0.1  # skill of the answers when the training was carried on
COUPLED = 0.05
HEAD = 0.3
SHUT = 0.02  # of the gradient that passes a head
BOUND = 0.25  # of the outputs at its bounds
MIXED = 1e-3
ALONE = "every position sees only itself, at any parameters"
BROADCAST = "outputs and targets broadcast against each other; in one shape they would not act on each other"
ONE_UNIT = "use a sigmoid for one unit, or a softmax over two and more"
BEHIND = "look for what multiplies, clips or normalises the outputs away"
COPIES = 0.5
HALF = 1e6  # above float16's largest number, below the next type's


def mask(r):
    s, f = r.e.signal, r.e.function
    if s is None or not r.has_attention:
        return None
    # In half precision, or where an input is none, what is not a number need not come from a closed row.
    whole = not s.largest < HALF and not r.e.data.broken_given
    if whole and s.first_nonfinite >= 0 and s.kinds[s.first_nonfinite] == "attention":
        return certain(s.names[s.first_nonfinite], "a row of the attention sees nothing and is not a number")
    if f.alone > 0.9:
        severity = "certain" if r.flat else "likely"
        return Seen(severity, f.alone, 0.9, where="attention", more=ALONE, weight=0.9)
    if f.unseen > 0.5:
        more = f"a change at {f.unseen:.0%} of the positions does not reach any output, at any parameters"
        return Seen("likely", f.unseen, 0.5, where="attention", more=more, weight=0.8)
    return None


def float_range(r):
    s, o = r.e.signal, r.e.optimizer
    if s is None or not s.largest < HALF:
        return None
    if not o.at_zero_finite:
        return certain("optimizer", "its update of a zero gradient is not a number: epsilon has become 0")
    lost = s.first_nonfinite >= 0 or not r.e.loss.finite_value
    if lost and not r.e.data.broken_given:
        where, more = s.names[max(s.first_nonfinite, 0)], "a state leaves the range of half precision"
        if r.e.loss.finite_wide or (s.first_nonfinite >= 0 and np.isposinf(s.state_max[s.first_nonfinite])):
            return certain(where, more)
        return Seen("likely", 1, 0, where=where, more=more, weight=0.9)
    lost = s.leaf_still & (s.leaf_rms > 0)
    if r.e.loss.gradient_rms == 0 and not r.e.loss.ignores and s.leaf_still.all():
        return certain("loss", "its gradient by the outputs is 0 in half precision, and not in single precision")
    if lost.mean() > 0.3:
        where = s.leaf_names[int(np.argmax(lost))]
        return Seen("likely", lost.mean(), 0.3, where=where, more="gradients have underflowed to 0", weight=0.6)
    return _near_the_end(s)


def _near_the_end(s):
    """A hint where states come near the largest number."""
    top = np.nanmax(s.state_max, initial=0)
    if not top > 0.1 * s.largest:
        return None
    where, more = s.names[int(np.nanargmax(s.state_max))], f"states reach {top:.3g} of {s.largest:.3g}"
    return Seen("hint", top, 0.1 * s.largest, where=where, more=more)


def _broken(r):
    """(where, what) in the order in which it is asked; no text: that is in order."""
    d, loss, s = r.e.data, r.e.loss, r.e.signal
    rows = ", ".join(map(str, d.broken))
    what = "hold numbers that are not finite" if d.broken_given else "have a loss or a gradient that is not finite"
    if d.missed > 0 and d.ids[3] and (d.broken_count or not loss.finite_value):
        yield (
            "data",
            f"{d.missed:.2%} of what the inputs look up lies past the last row, {d.ids[2]:g}, and is no number",
        )
    many = f"{d.broken_count} of {d.examples} examples {what} (rows {rows})"
    yield "data", many if d.broken_count else ""
    if s is not None and s.first_nonfinite >= 0:
        yield s.names[s.first_nonfinite], "the first state that is not finite"
    yield "loss", "" if loss.finite_value else "its value is not finite"
    yield "loss", "" if loss.finite_gradient else "finite itself, and its gradient is not: a root or a division at 0"
    yield "optimizer", "" if r.e.optimizer.at_zero_finite else "an update is not a number"
    if s is not None and not np.isfinite(s.leaf_gradient_rms).all():
        yield s.leaf_names[int(np.argmax(~np.isfinite(s.leaf_gradient_rms)))], "its gradient is not finite"


def not_finite(r):
    where, more = next((found for found in _broken(r) if found[1]), ("", ""))
    return certain(where, more, max(1.0, r.e.data.broken_count)) if more else None


def loss_ignores(r):
    return Seen("certain", 0, 0, where="loss", weight=1.0) if r.e.loss.ignores else None


def wrong_sign(r):
    loss, o = r.e.loss, r.e.optimizer
    if o.ascent < FAR_FROM_LABEL and o.reach > 0:
        return Seen("certain", o.ascent, FAR_FROM_LABEL, where="optimizer", predicted=1, weight=1.0)
    if loss.kind == "other" or not loss.pull < FAR_FROM_LABEL:
        return None
    # A bounded loss may expect what falls where the label is near: a distance, an energy, a mean's logarithm.
    named = loss.kind in ("classes", "one-hot")
    wrong = loss.wrong_pays > 0.5
    # Answers that get worse than a single one for all say it, too, of a loss that a wrong answer lowers.
    if (r.bottomless and named) or (wrong and (r.bottomless or r.later < WORSE)):
        return Seen("certain", loss.pull, FAR_FROM_LABEL, where="loss", predicted=1, weight=1.0)
    severity = "likely" if wrong or (named and r.e.function.rows_sum < 1e-3) else "hint"
    more = "" if severity == "likely" else " Right where outputs are distances, energies or logarithms."
    return Seen(severity, loss.pull, FAR_FROM_LABEL, 1, "loss", more, weight=0.96 if severity == "likely" else 0.3)


def coupled(r):
    loss = r.e.loss
    if not loss.coupling > COUPLED:
        return None
    if loss.coupling_reshaped < 0.1 * loss.coupling:
        return certain("loss", BROADCAST, loss.coupling, COUPLED, predicted=0)
    if loss.pairing < UNPAIRED:
        more = "it is the same whichever example each label belongs to"
        return Seen("certain", loss.coupling, COUPLED, predicted=0, where="loss", more=more, weight=1.0)
    more, astray = "right for a loss that compares examples", "and answers that a shallow model gives stay wrong"
    if r.spent > 0.5 and r.shallow > FLAT and r.later < 0.5 * r.shallow:
        return Seen("likely", loss.coupling, COUPLED, predicted=0, where="loss", more=astray, weight=0.9)
    return Seen("hint", loss.coupling, COUPLED, predicted=0, where="loss", more=more, weight=0.4)


def head(r):
    loss, f, share = r.e.loss, r.e.function, r.head_share
    if not loss.has_head or loss.pull < FAR_FROM_LABEL or (f.spread_near < CONSTANT and not r.dead):
        return None
    if share > HEAD:
        more = f"the least loss it can reach is {loss.floor_head:.4g}, without it {loss.floor:.4g}"
        again = f.rows_sum < 1e-3 and loss.shift < 1e-3
        more += "; its rows sum to one and the loss takes logits" if again else ""
        return Seen("certain", share, HEAD, predicted=0, where="head", more=more, weight=0.95)
    shut = loss.transmission < SHUT or f.at_bound > BOUND
    if shut and r.end < 0.5:
        more = f"{loss.transmission:.2g} of the gradient passes it, {f.at_bound:.0%} of the outputs lie at its bounds"
        return Seen("likely", loss.transmission, SHUT, predicted=1, where="head", more=more, weight=0.84)
    return None


def outputs_constant(r):
    f, s = r.e.function, r.e.signal
    nowhere = f.rms == 0 and not (r.e.loss.has_head and r.head_share > 0.9)  # a head that is shut here alone
    if not f.spread_near < CONSTANT or nowhere or r.e.data.spread == 0 or f.unseen < 1 or _together(f):
        return None
    one = f.shape[-1:] == (1,) and f.least == f.most == 1
    deep = s is not None and (r.alike or r.gradient_change < math.log(1e-4))
    severity, weight = ("likely", 0.2) if (deep or r.dead) and not one else ("certain", 0.95)
    return Seen(severity, f.spread_near, CONSTANT, 0, "outputs", ONE_UNIT if one else BEHIND, weight=weight)


def _together(f):
    """Whether outputs that are one for all examples follow the inputs of all."""
    return f.spread_near < CONSTANT and f.mixing > max(0.3, 10 * f.rounding) and not f.normalizes


def norm_degenerate(r):
    f = r.e.function
    if f.batch_of_one:
        return certain("batch", "the network normalises over the batch, which holds one example", threshold=1.0)
    if f.axis_of_one and f.normalizes and f.spread_near < 1e-3:
        return certain("normalisation", "a mean is taken over an axis of size one and subtracted", threshold=1.0)
    if f.spread_near < CONSTANT and f.roots_spread < STILL and not (f.unseen < 1 or r.dead):
        more, alike = "what it divides by is one number for all", r.alike  # states may be so for another reason
        severity, weight = ("likely", 0.5) if alike else ("certain", 1.0)
        return Seen(severity, f.roots_spread, STILL, where="normalisation", more=more, weight=weight)
    return None


def wrong_axis(r):
    f = r.e.function
    if f.columns_sum < 1e-3 and f.rows_sum > 1e-2:
        return certain("head", "columns of the outputs sum to one, not rows", f.columns_sum, 1e-3)
    least = max(MIXED, 10 * f.rounding)  # where rounding grows, sums in another order look like examples that mix
    if f.disorder > 10 * least and f.mixing > least:
        more = "even their order matters"
        if f.second_axis or f.mixing_back <= least:
            # Time may come first, or the batch be one sequence: both are right, and look like a scan over the examples.
            more += " (right if axis 0 is time)"
            severity = "likely" if r.flat else "hint"
            return Seen(severity, f.disorder, 10 * least, predicted=0, where="examples", more=more, weight=0.7)
        return certain("examples", more, f.disorder, 10 * least, predicted=0, weight=0.95)
    if _together(f):
        more = "all get the same outputs, which follow all of them"
        return certain("examples", more, f.mixing, 0.3, predicted=0, weight=0.96)
    if f.mixing > max(0.3, least) and not f.normalizes:
        more = "nothing in the network normalises over the batch"
        return Seen("likely" if r.flat else "hint", f.mixing, 0.3, predicted=0, where="examples", more=more, weight=0.7)
    return None


def frozen(r):
    s, o = r.e.signal, r.e.optimizer
    if o.reach == 0 and o.frozen.any():
        return certain(
            "optimizer", "The optimizer's updates are exactly 0 over the whole budget, gradients are not.", 0.0
        )
    if s is None or r.e.loss.ignores or r.e.function.spread_near < CONSTANT:
        return None
    moves = s.leaf_gradient_rms > 0
    held = o.frozen & moves if o.frozen.size == moves.size else np.zeros(1, bool)
    for share, which, limit, words in (
        (s.leaf_still, s.leaf_still, 0.5, "get no gradient"),
        (held, held, 0.3, "are not moved"),
    ):
        if share.mean() > limit:
            names = ", ".join(name for name, still in zip(s.leaf_names, which) if still)[:120]
            whole = which is s.leaf_still and which.all() and s.stops  # the program itself ends every gradient
            severity = "certain" if whole else "likely" if r.flat_anywhere or r.end < 0.3 else "hint"
            more = f"{share.mean():.0%} of the leaves {words}: {names}."
            more += f" The gradient ends at {', '.join(s.stops)}." if which is s.leaf_still and s.stops else ""
            return Seen(severity, share.mean(), limit, where=names, more=more, weight=0.96 if whole else 0.9)
    return None


def symmetry(r):
    s = r.e.signal
    if s is None or len(s.names) < 2:
        return None
    inner = s.identical[:-1]
    if not np.isfinite(inner).any() or not np.nanmax(inner) > COPIES:
        return None
    at = int(np.nanargmax(inner))
    share = float(inner[at])
    severity = "certain" if share > 0.99 and r.flat else "likely" if r.end < 0.5 else "hint"
    return Seen(severity, share, COPIES, start_variance(r), s.names[at], f"{share:.0%}", weight=0.97)


def start_variance(r):
    """fan_in Var W to draw weights with."""
    p, s = r.e.predicted, r.e.signal
    for known in (p.start_variance, p.centred_variance):
        if np.isfinite(known):
            return known
    rectified = s is not None and {"relu", "leaky_relu", "gelu", "silu"} & set(s.nonlinearities)
    return 2.0 if rectified else 1.0


def start_law(r):
    """The same in words."""
    p = r.e.predicted
    centred = bool(np.isfinite(p.centred_variance) and not np.isfinite(p.start_variance))
    still = bool(p.bias_variance > 0)
    return f"{start_variance(r):.3g} / fan_in{' and sum 0 at each unit' * centred}{', biases 0' * still}"
