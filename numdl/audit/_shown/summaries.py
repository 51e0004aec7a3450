"""What the evidence says in a few lines, each number by its path: the same lines for the terminal and for the page."""

import math

import numpy as np

from numdl.audit._shown.paths import At, value_at
from numdl.audit._shown.words import plain, seen, sentence, short


def lines(report):
    """[(what it is about, sentence of texts and numbers)] of what was seen; what was not seen is left out."""
    found = [(label, make(report)) for label, make in _LINES]
    return [(label, parts) for label, parts in found if parts]


def facts(report):
    """One line: the size of the network, the optimizer, the rate, the budget."""
    parts = [At("evidence.facts.parameters", "count"), " parameters"]
    if report.evidence.signal is not None and len(report.evidence.signal.names):
        parts = [At("evidence.signal.state_rms.size", "count"), " layers, ", *parts]
    parts += [", batch of ", At("evidence.facts.examples", "count")] if report.evidence.facts.examples else []
    parts += [f", {plain(report.evidence.facts.optimizer, 40)}"] if report.evidence.facts.optimizer else []
    parts += [" at rate ", At("evidence.facts.rate")] if seen(report, "evidence.facts.rate") else []
    budget = report.evidence.facts.steps
    return [*parts, *([", ", At("evidence.facts.steps", "count"), " steps"] if budget else [])]


def own_rate(trial):
    """Index of the rate that is the user's own, or -1."""
    factors = np.asarray(trial.factors, dtype=float)
    near = np.flatnonzero(np.isclose(factors, 1.0, rtol=1e-3))
    return int(near[0]) if near.size else -1


def nested(findings):
    """[(index, indices of its consequences)] of the findings that follow from no earlier one, in their order."""
    taken, order = set(), []
    for i, finding in enumerate(findings):
        if i in taken:
            continue
        later = [k for k in range(i + 1, len(findings)) if k not in taken]
        follow = [k for name in finding.consequences for k in later if findings[k].name == name]
        follow = tuple(dict.fromkeys(follow))
        taken.update(follow)
        order.append((i, follow))
    return order


def named_only(finding, findings):
    """Consequences that have no finding of their own."""
    known = {other.name for other in findings}
    return [name for name in finding.consequences if name not in known]


def _loss(report):
    loss, now = "evidence.loss.", "evidence.loss.value"
    if not seen(report, now):
        return []
    parts = ["", At(now), " on the batch"]
    if seen(report, "evidence.predicted.initial"):
        parts += ["; outputs that know nothing would have ", At("evidence.predicted.initial")]
    if seen(report, loss + "floor_head", loss + "floor"):
        parts += ["; the head can reach ", At(loss + "floor_head"), ", the loss itself ", At(loss + "floor")]
    return parts


def _through(report, field):
    path = f"evidence.signal.{field}"
    signal = report.evidence.signal
    if signal is None or len(signal.names) < 2 or not seen(report, f"{path}[0]", f"{path}[-1]"):
        return []
    return sentence("{first} in the first layer, {last} in the last", first=f"{path}[0]", last=f"{path}[-1]")


def _theory(report):
    predicted = report.evidence.predicted
    if not predicted.applies:
        return [f"mean-field theory does not apply: {plain(predicted.why_not)}"] if predicted.why_not else []
    base, parts = "evidence.predicted.", [plain(predicted.activation)]
    if seen(report, base + "weight_variance"):
        parts += [" with weight variance ", At(base + "weight_variance")]
    if seen(report, base + "critical_weight_variance"):
        parts += [", critical is ", At(base + "critical_weight_variance")]
    if seen(report, base + "chi"):
        parts += ["; squared gradients change by ", At(base + "chi"), " a layer where lengths settle"]
    return parts


def _sharpness(report):
    now, limit = "evidence.predicted.sharpness", "evidence.predicted.sharpness_limit"
    if not seen(report, now):
        return []
    more = [", the method is stable up to ", At(limit), " at this rate"] if seen(report, limit) else []
    return ["", At(now), *more]


def _alignment(report):
    ours, raw = "evidence.kernel.alignment", "evidence.kernel.alignment_raw"
    if not seen(report, ours):
        return []
    more = [", of the inputs alone ", At(raw)] if seen(report, raw) else []
    return ["", At(ours), " standard deviations above permuted targets", *more]


def _forecast(report):
    kernel = report.evidence.kernel
    if not len(kernel.forecast) or not seen(report, "evidence.kernel.start"):
        return []
    short_of = "" if kernel.linear else "; the rest of the budget was not run"
    parts = sentence(
        "loss {start} to {end} in {steps} steps by the tangent kernel of {examples} examples",
        start="evidence.kernel.start",
        end="evidence.kernel.forecast[-1]",
        steps=At("evidence.kernel.forecast_steps[-1]", "count"),
        examples=At("evidence.kernel.examples", "count"),
    )
    return [*parts, short_of]


def _trial(report):
    trial, own = report.evidence.trial, own_rate(report.evidence.trial)
    if own < 0 or not seen(report, "evidence.trial.start", f"evidence.trial.end[{own}].mean"):
        return []
    best, steps = _best(trial), At("evidence.trial.losses.shape[2]", "count")
    parts = ["loss ", At("evidence.trial.start"), " to ", At(f"evidence.trial.end[{own}].mean"), " in ", steps]
    parts.append(" steps at this rate")
    if best in (-1, own):
        return parts
    end, factor = At(f"evidence.trial.end[{best}].mean"), At(f"evidence.trial.factors[{best}]")
    return [*parts, "; to ", end, " at ", factor, " times it"]


def _best(trial):
    means = [value_at(trial, f"end[{i}].mean") for i in range(len(trial.factors))]
    finite = [i for i, mean in enumerate(means) if math.isfinite(mean)]
    return min(finite, key=means.__getitem__) if finite else -1


def _repeated(report):
    if not seen(report, "evidence.trial.repeated[0]", "evidence.trial.repeated[-1]"):
        return []
    return sentence("loss {a} to {b}", a="evidence.trial.repeated[0]", b="evidence.trial.repeated[-1]")


def _ahead(report):
    base, ahead = "evidence.ahead.", report.evidence.ahead
    if not ahead.steps.size or not seen(report, base + "unseen[-1]"):
        return []
    parts = sentence("to {steps} steps at this rate: ", steps=At(base + "steps[-1]", "count"))
    if not seen(report, base + "score[-1]"):
        return [*parts, *sentence("loss {a} of unseen examples", a=base + "unseen[-1]")]
    values = report.evidence.loss.kind == "values"
    form, said = ("number", "R² {a} of unseen examples") if values else ("share", "{a} of unseen examples right")
    others = [("a shallow model: ", "shallow")] if seen(report, base + "shallow") else []
    others += [("one answer for all: ", "chance")]
    told = [part for name, field in others for part in ("; ", name, At(base + field, form))]
    return [*parts, *sentence(said, a=At(base + "score[-1]", form)), " (", *told[1:], ")"]


def _apart(start, end):
    def make(report):
        own = own_rate(report.evidence.trial)
        first, last = f"evidence.trial.{start}", f"evidence.trial.{end}[{own}].mean"
        known = own >= 0 and seen(report, first, last)
        return sentence("loss {a} to {b}", a=first, b=last) if known else []

    return make


def _course(report):
    base = "evidence.optimizer."
    if not seen(report, base + "reach"):
        return []
    parts = ["a constant gradient moves the parameters by ", At(base + "reach"), " of their size over the budget"]
    late = [", ", At(base + "late", "share"), " of it in the second half"] if seen(report, base + "late") else []
    return [*parts, *late]


def _noise(report):
    if not seen(report, "evidence.trial.noise_scale"):
        return []
    if report.evidence.trial.noise_scale > 1e9:
        return ["no batch is large enough: the gradient is all noise"]
    return ["", At("evidence.trial.noise_scale"), " examples make the gradient's noise as large as the gradient"]


def _seconds(report):
    seconds = {k: v for k, v in report.evidence.seconds.items() if math.isfinite(v)}
    longest = sorted(seconds, key=seconds.get, reverse=True)[:4]
    said = ", ".join(f"{plain(name, 24)} {short(seconds[name], 'seconds')}" for name in longest)
    return [f"{short(sum(seconds.values()), 'seconds')}: {said}"] if seconds else []


_LINES = (
    ("loss now", _loss),
    ("states, rms", lambda report: _through(report, "state_rms")),
    ("gradients, rms", lambda report: _through(report, "gradient_rms")),
    ("theory", _theory),
    ("sharpness", _sharpness),
    ("alignment", _alignment),
    ("forecast", _forecast),
    ("trial", _trial),
    ("carried on", _ahead),
    ("held out", _apart("unseen_start", "unseen_end")),
    ("through evaluate", _apart("evaluate_start", "evaluate_end")),
    ("one batch again", _repeated),
    ("reach", _course),
    ("noise scale", _noise),
    ("time", _seconds),
)
