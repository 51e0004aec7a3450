"""Conditions on the form: loss, head, function, symmetry. Most are algebra, and certain."""

import math

import numpy as np

from numdl.audit._conditions.seen import Seen

CONSTANT = 1e-6  # spread of outputs, relative
FAR_FROM_LABEL = -0.3  # cosine
COUPLED = 0.05
HEAD = 0.3
SHUT = 0.02  # of the gradient that passes a head
MIXED = 1e-3
COPIES = 0.5


def mask(r):
    s, f = r.e.signal, r.e.function
    if (
        s is not None
        and r.has_attention
        and 0 <= s.first_nonfinite < len(s.kinds)
        and s.kinds[s.first_nonfinite] == "attention"
    ):
        return Seen(
            "certain",
            1,
            0,
            where=s.names[s.first_nonfinite],
            more="a row of the attention sees nothing and is not a number",
            weight=1.0,
        )
    if not r.has_attention:
        return None
    if f.alone > 0.9:
        severity = "certain" if r.flat else "likely"
        return Seen(
            severity,
            f.alone,
            0.9,
            where="attention",
            more="every position sees only itself, at any parameters",
            weight=0.9,
        )
    if f.unseen > 0.5:
        more = f"a change at {f.unseen:.0%} of the positions does not reach any output, at any parameters"
        return Seen("likely", f.unseen, 0.5, where="attention", more=more, weight=0.8)
    return None


def float_range(r):
    s, o = r.e.signal, r.e.optimizer
    if s is None or not s.largest < 1e6:
        return None
    if not o.at_zero_finite:
        return Seen(
            "certain",
            1,
            0,
            where="optimizer",
            more="its update of a zero gradient is not a number: epsilon has become 0",
            weight=1.0,
        )
    if s.first_nonfinite >= 0 or not r.e.loss.finite_value:
        where = s.names[max(s.first_nonfinite, 0)]
        return Seen(
            "certain", s.largest, s.largest, where=where, more="a state leaves the range of half precision", weight=1.0
        )
    if np.nanmax(s.state_max, initial=0) > 0.1 * s.largest:
        at = int(np.nanargmax(s.state_max))
        return Seen(
            "hint",
            s.state_max[at],
            0.1 * s.largest,
            where=s.names[at],
            more=f"states reach {s.state_max[at]:.3g} of {s.largest:.3g}",
            weight=0.5,
        )
    lost = s.leaf_still & (s.leaf_rms > 0)
    if lost.mean() > 0.3:
        return Seen(
            "likely",
            lost.mean(),
            0.3,
            where=s.leaf_names[int(np.argmax(lost))],
            more="gradients have underflowed to 0",
            weight=0.6,
        )
    return None


def not_finite(r):
    d, loss, s = r.e.data, r.e.loss, r.e.signal
    if d.broken_count:
        shown = ", ".join(map(str, d.broken))
        more = (
            f"{d.broken_count} of {d.examples} examples are not finite, or their loss or gradient is not (rows {shown})"
        )
        return Seen("certain", d.broken_count, 0, where="data", more=more, weight=1.0)
    if s is not None and s.first_nonfinite >= 0:
        return Seen(
            "certain", 1, 0, where=s.names[s.first_nonfinite], more="the first state that is not finite", weight=1.0
        )
    if not loss.finite_value:
        return Seen("certain", 1, 0, where="loss", more="its value is not finite", weight=1.0)
    if not loss.finite_gradient:
        return Seen(
            "certain",
            1,
            0,
            where="loss",
            more="finite itself, and its gradient is not: a root, logarithm or division at 0",
            weight=1.0,
        )
    if not r.e.optimizer.at_zero_finite:
        return Seen("certain", 1, 0, where="optimizer", more="an update is not a number", weight=1.0)
    if s is not None and not np.isfinite(s.leaf_gradient_rms).all():
        at = int(np.argmax(~np.isfinite(s.leaf_gradient_rms)))
        return Seen("certain", 1, 0, where=s.leaf_names[at], more="its gradient is not finite", weight=1.0)
    return None


def loss_ignores(r):
    return Seen("certain", 0, 0, where="loss", weight=1.0) if r.e.loss.ignores else None


def wrong_sign(r):
    loss, o = r.e.loss, r.e.optimizer
    if o.ascent < FAR_FROM_LABEL and o.reach > 0:
        return Seen("certain", o.ascent, FAR_FROM_LABEL, where="optimizer", predicted=1, weight=1.0)
    if loss.kind in ("classes", "binary", "values") and loss.pull < FAR_FROM_LABEL:
        return Seen("certain", loss.pull, FAR_FROM_LABEL, where="loss", predicted=1, weight=1.0)
    return None


def coupled(r):
    loss = r.e.loss
    if not loss.coupling > COUPLED:
        return None
    if loss.coupling_reshaped < 0.1 * loss.coupling:
        more = "outputs and targets broadcast against each other; in one shape they would not act on each other"
        return Seen("certain", loss.coupling, COUPLED, predicted=0, where="loss", more=more, weight=1.0)
    return Seen(
        "hint",
        loss.coupling,
        COUPLED,
        predicted=0,
        where="loss",
        more="right for a loss that compares examples",
        weight=0.4,
    )


def head(r):
    loss, f, share = r.e.loss, r.e.function, r.head_share
    if not loss.has_head or loss.pull < FAR_FROM_LABEL or r.e.function.spread_near < CONSTANT:
        return None
    if share > HEAD:
        again = f.rows_sum < 1e-3 and loss.shift < 1e-3
        more = f"the least loss it can reach is {loss.floor_head:.4g}, without it {loss.floor:.4g}"
        more += "; its rows sum to one and the loss takes logits" if again else ""
        return Seen("certain", share, HEAD, predicted=0, where="head", more=more, weight=0.95)
    if loss.transmission < SHUT and r.end < 0.5:
        more = f"{loss.transmission:.2g} of the gradient passes it at this start"
        return Seen("likely", loss.transmission, SHUT, predicted=1, where="head", more=more, weight=0.8)
    return None


def outputs_constant(r):
    f = r.e.function
    if f.spread_near < CONSTANT and f.rms > 0 and r.e.data.spread > 0 and not _row_of_one_softmax(r):
        deep = r.e.signal is not None and (
            np.nanmax(r.e.signal.cosine, initial=0) > 0.999 or r.gradient_change < math.log(1e-4)
        )
        return Seen(
            "likely" if deep else "certain", f.spread_near, CONSTANT, where="outputs", weight=0.2 if deep else 0.95
        )
    return (
        Seen("certain", f.spread_near, CONSTANT, where="outputs", weight=0.95)
        if f.spread_near < CONSTANT and f.rms > 0 and r.e.data.spread > 0
        else None
    )


def _row_of_one_softmax(r):
    f = r.e.function
    return f.shape[-1:] == (1,) and f.least == f.most == 1


def norm_degenerate(r):
    f, s = r.e.function, r.e.signal
    if f.batch_of_one:
        return Seen(
            "certain",
            1,
            1,
            where="batch",
            more="the network normalises over the batch, which holds one example",
            weight=1.0,
        )
    if f.axis_of_one and f.normalizes and f.spread_near < 1e-3:
        return Seen(
            "certain",
            1,
            1,
            where="normalisation",
            more="a mean is taken over an axis of size one and subtracted",
            weight=1.0,
        )
    if s is not None and f.spread_near < CONSTANT and f.normalizes and not r.gradient_change < -7:
        return Seen(
            "likely",
            f.spread_near,
            CONSTANT,
            where="normalisation",
            more="what it normalises does not vary",
            weight=0.5,
        )
    return None


def wrong_axis(r):
    f = r.e.function
    if f.columns_sum < 1e-3 and f.rows_sum > 1e-2:
        return Seen(
            "certain", f.columns_sum, 1e-3, where="head", more="columns of the outputs sum to one, not rows", weight=1.0
        )
    if f.disorder > MIXED * 10 and f.mixing > MIXED:
        return Seen(
            "certain",
            f.disorder,
            MIXED * 10,
            predicted=0,
            where="examples",
            more="even their order matters",
            weight=0.95,
        )
    if f.mixing > 0.3 and not f.normalizes:
        return Seen(
            "likely" if r.flat else "hint",
            f.mixing,
            0.3,
            predicted=0,
            where="examples",
            more="nothing in the network normalises over the batch",
            weight=0.7,
        )
    return None


def frozen(r):
    s, o = r.e.signal, r.e.optimizer
    if o.reach == 0 and o.frozen.size and o.frozen.any():
        return Seen(
            "certain",
            0,
            0,
            where="optimizer",
            more="The optimizer's updates are exactly 0 over the whole budget although gradients are not.",
            weight=1.0,
        )
    if s is None or r.e.loss.ignores or r.e.function.spread_near < CONSTANT:
        return None
    share = _share(s.leaf_still, s, r)
    if share > 0.5:
        names = ", ".join(n for n, still in zip(s.leaf_names, s.leaf_still) if still)[:120]
        severity = "likely" if r.flat_anywhere or r.end < 0.3 else "hint"
        return Seen(
            severity, share, 0.5, where=names, more=f"{share:.0%} of the leaves get no gradient: {names}.", weight=0.9
        )
    held = o.frozen & (r.e.signal.leaf_gradient_rms > 0) if o.frozen.size == len(s.leaf_names) else np.zeros(1, bool)
    if held.mean() > 0.3:
        names = ", ".join(n for n, still in zip(s.leaf_names, held) if still)[:120]
        severity = "likely" if r.flat_anywhere else "hint"
        return Seen(severity, held.mean(), 0.3, where=names, more=f"The optimizer does not move {names}.", weight=0.8)
    return None


def _share(still, s, r):
    return float(np.mean(still)) if len(still) else 0.0


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
    return Seen(severity, share, COPIES, predicted=_variance(r), where=s.names[at], weight=0.97)


def _variance(r):
    value = r.e.predicted.critical_weight_variance
    if np.isfinite(value):
        return value
    s = r.e.signal
    return (
        2.0
        if s is not None and any(name in ("relu", "leaky_relu", "gelu", "silu") for name in s.nonlinearities)
        else 1.0
    )
