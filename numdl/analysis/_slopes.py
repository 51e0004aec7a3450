"""MEASURED: powers of the width fitted to sizes, and whether they are those that are expected."""

import numpy as np

from numdl.records import abridged, record, static

BOUND = 0.25  # powers are multiples of 1/2: nearer to what is expected than to the next one
_SIGMAS = 2.0  # an error of which these are more than the bound tells no powers apart


@record
class CoordinateCheck:
    """Powers of the width at P places: the layers, the leaves that no layer holds, the output last."""

    names: tuple = static()
    kinds: tuple = static()  # "layer", "attention", "leaf", "output"
    leaves: tuple = static()  # path of each place's leaf; None at the output
    widths: tuple = static()
    initial: np.ndarray  # [P] slope of the size at the start
    own: np.ndarray  # [P] of the first change, by the own weight; of the output: by the last layer's
    passed: np.ndarray  # [P] of the change by what is read
    total: np.ndarray  # [P] of both together
    initial_error: np.ndarray  # [P] standard errors
    own_error: np.ndarray  # [P]
    passed_error: np.ndarray  # [P]
    total_error: np.ndarray  # [P]
    later: np.ndarray  # [3, P] slopes of own, passed, total at the last step
    later_error: np.ndarray  # [3, P]
    expected: np.ndarray  # [P]
    rms: np.ndarray  # [4, W, S, steps, P]: initial (the same at every step), own, passed, total
    loss: np.ndarray  # [W, S, steps + 1]
    verdicts: tuple = static()  # "passes", "fails: ...", "not known: ..." at each place
    culprits: tuple = static()  # paths of leaves

    @property
    def verdict(self):
        """{name: "passes", "fails: ..." or "not known: ..."}, the output under "output"."""
        return dict(zip(self.names, self.verdicts))

    @property
    def passes(self):
        """Whether every place passes."""
        return all(text == "passes" for text in self.verdicts)

    def at_step(self, step):
        """(own, passed, total), each [P]: the slopes after this step, counted from 1."""
        logs = _logs(self.rms[1:, :, :, step - 1])
        return tuple(fitted(self.widths, each)[0] for each in logs)

    def __repr__(self):
        head = ("", "start", "own", "passed", "total", "later", "verdict")
        shown = ("initial", "own", "passed", "total")
        pairs = [(getattr(self, name), getattr(self, f"{name}_error")) for name in shown]
        pairs.append((self.later[2], self.later_error[2]))
        rows = [
            (name, *(_shown(value[i], error[i]) for value, error in pairs), self.verdicts[i])
            for i, name in enumerate(self.names)
        ]
        table = [head, *abridged(rows)]
        wide = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = ["  ".join(text.ljust(n) for text, n in zip(row, wide)).rstrip() for row in table]
        culprits = [f"explained by {', '.join(self.culprits)}"] if self.culprits else []
        return "\n".join([f"Powers of the width, widths {', '.join(map(str, self.widths))}", *lines, *culprits])


def fitted(widths, logs):
    """(slope, standard error), each [P], of logs [W, S, P]: over seeds, or from the residuals of one."""
    x = np.log(np.asarray(widths, float))
    x = x - x.mean()
    slopes = np.tensordot(x, logs, (0, 0)) / (x @ x)  # [S, P]
    if logs.shape[1] > 1:
        return slopes.mean(0), slopes.std(0, ddof=1) / np.sqrt(logs.shape[1])
    residual = logs[:, 0] - logs[:, 0].mean(0) - x[:, None] * slopes
    return slopes[0], np.sqrt((residual**2).sum(0) / (len(x) - 2) / (x @ x))


def judged(where, widths, courses, expected, proportional):
    """The `CoordinateCheck` of the courses at these widths."""
    steps = courses[0].own.shape[1]
    initial = np.stack([np.repeat(each.initial[:, None], steps, axis=1) for each in courses])
    changes = [np.stack([getattr(each, name) for each in courses]) for name in ("own", "passed", "total")]
    rms = np.sqrt(np.stack([initial, *changes]).astype(np.float64))
    first, last = ([fitted(widths, each) for each in _logs(rms[:, :, :, step])] for step in (_first(rms[1], where), -1))
    verdicts, culprits = _Judge(where, first, expected, proportional).all()
    if all(text == "passes" for text in verdicts):  # what comes later may be a consequence of what fails at first
        verdicts, culprits = _Judge(where, last, expected, proportional).all()
    return CoordinateCheck(
        where.names,
        where.kinds,
        where.leaves,
        tuple(widths),
        *(slope for slope, _ in first),
        *(error for _, error in first),
        np.stack([slope for slope, _ in last[1:]]),
        np.stack([error for _, error in last[1:]]),
        expected,
        rms,
        np.stack([each.loss for each in courses]),
        verdicts,
        culprits,
    )


def _first(own, where):
    """The first step at which all layers have moved: past a warm-up from 0, or a head of zeros; else the last."""
    layers = [i for i, kind in enumerate(where.kinds) if kind == "layer"]
    moved = (own[..., layers] > 0).all(axis=(0, 1, 3))
    return int(np.argmax(moved)) if moved.any() else -1


class _Judge:
    """Holds slopes against what is expected of them."""

    def __init__(self, where, fits, expected, proportional):
        self.where, self.expected, self.proportional = where, expected, proportional
        self.initial, self.own, self.passed, self.total = fits
        self.weights = [i for i, kind in enumerate(where.kinds) if kind == "layer"]
        # Where a scale or an embedding enters is not followed: one of a wrong size may explain what layers read.
        self.entering = [self.initial[0][i] for i, kind in enumerate(where.kinds) if kind == "leaf"]
        self.entering = [slope for slope in self.entering if abs(slope) > BOUND]

    def all(self):
        """(verdicts, culprits)."""
        deviations = {i: self.deviation(i) for i, kind in enumerate(self.where.kinds) if kind in ("layer", "leaf")}
        rates = {i: self.rate(i) for i in deviations}
        verdicts = [self.verdict(i, deviations, rates) for i in range(len(self.where.names))]
        last = self.weights[-1]
        wrong = {i: text for i, text in deviations.items() if text.startswith("fails")}
        head = self.gain(last)
        sizes = list(wrong) + ([last] if head.startswith("fails") and verdicts[-1].startswith("fails") else [])
        others = [i for i, text in rates.items() if text.startswith("fails")]
        blamed = sizes if sizes and self.proportional else sizes + others
        return tuple(verdicts), tuple(dict.fromkeys(self.where.leaves[i] for i in blamed))

    def verdict(self, i, deviations, rates):
        kind = self.where.kinds[i]
        if kind == "output":
            return self.output(i)
        if kind == "attention":
            return self.scores(i, rates)
        return worst(deviations[i], rates[i])

    def rate(self, i):
        """The change by the own weight, but for what the size of its input makes of it."""
        sizes = [self.initial[0][j] for j in self.where.reads[i]] + self.entering * (self.where.kinds[i] == "layer")
        text = "its own change goes as n^{:.2f}"
        return held(self.own[0][i] - self.expected[i], self.own[1][i], text, self.expected[i], sizes)

    def deviation(self, i):
        """The size at the start, where it is not taken over; the last layer's is judged by what it passes on."""
        if i == self.weights[-1]:
            return "passes"
        before = [self.initial[0][j] for j in self.where.reads[i]] + self.entering * (self.where.kinds[i] == "layer")
        return held(self.initial[0][i], self.initial[1][i], "its size at the start goes as n^{:.2f}", 0.0, before)

    def gain(self, last):
        """What the last layer makes of the changes before it."""
        before = self.where.reads[last] or [i for i in self.weights if i < last]
        changes, output = [self.total[0][i] for i in before] + self.entering, len(self.where.names) - 1
        return held(self.passed[0][output], self.passed[1][output], "it passes changes on as n^{:.2f}", 0.0, changes)

    def output(self, i):
        """The larger of the two parts: their sum comes in slowly."""
        parts = [(self.own[0][i], self.own[1][i]), (self.passed[0][i], self.passed[1][i])]
        known = [pair for pair in parts if np.isfinite(pair[0])] or [(self.total[0][i], self.total[1][i])]
        slope, error = max(known)
        whole = held(slope - self.expected[i], error, "it changes as n^{:.2f}", self.expected[i])
        vanishes = known[-1][0] < min(0.0, self.expected[i])
        return worst(whole, self.gain(self.weights[-1])) if vanishes else whole

    def scores(self, i, rates):
        """A product of data with data: judged where its factors change as they should."""
        if any(not text.startswith("passes") for text in rates.values()):
            return "passes"
        return held(self.total[0][i] - self.expected[i], self.total[1][i], "it changes as n^{:.2f}", self.expected[i])


def held(gap, error, text, expected, taken_over=()):
    """The verdict on a slope that is this far from what is expected; what other places hand on may explain it.

    A power that is handed on may come out weaker, behind a nonlinearity that saturates: anything between 0 and it.
    """
    known = [slope for slope in taken_over if np.isfinite(slope)]
    if not np.isfinite(gap) or any(min(slope, 0) - BOUND < gap < max(slope, 0) + BOUND for slope in known):
        return "passes"
    said = text.format(gap + expected)
    if _SIGMAS * error > BOUND or abs(abs(gap) - BOUND) < error:
        return f"not known: {said} +- {error:.2f}"
    return "passes" if abs(gap) < BOUND else f"fails: {said}"


def worst(*texts):
    """The verdict that says most against."""
    return min(texts, key=lambda text: ("fails", "not known", "passes").index(text.partition(":")[0]))


def _logs(rms):
    with np.errstate(divide="ignore"):
        logs = np.log(rms)
    return np.where(np.isfinite(logs), logs, np.nan)


def _shown(value, error):
    return f"{value:+.2f} +- {error:.2f}" if np.isfinite(value) else ""
