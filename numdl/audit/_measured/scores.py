"""MEASURED: how right outputs are, in one currency, and how right a shallow model of the same data is.

classes, one-hot    share of the answers that are right; a class below 0 asks for none
binary              the same; an answer is the label that the loss makes cheaper, told by the side of `border`
values              1 - mean squared error / variance; nan asks for none, here and of two labels
"""

import math

import jax
import numpy as np

from numdl.audit._measured import labels

FEATURES = 256
STRENGTHS = (1e-4, 1e-2, 1.0)  # of the ridge, in units of the features' mean square
MOST = 4096  # examples that a shallow model is fitted to
WIDEST = 4096  # numbers of an input that it takes


def scorer(case, told, border):
    """score(outputs) of the case's unseen examples and `stderr(outputs)`, of the score from one example to another.

    `chance` is the score of the best single answer, `examples` counts those that ask for one.
    """
    targets, kind = answered(case, told, case.parts[1])[1], told.judged

    def score(out):
        return _score(np.asarray(told.outputs(out), np.float64), targets, kind, border)

    def stderr(out):
        return _stderr(np.asarray(told.outputs(out), np.float64), targets, kind, border)

    score.stderr = stderr
    score.chance = _chance(targets, kind) if kind != "other" else math.nan
    asked = _wanted(targets, kind) if kind != "other" else np.ones(len(targets), bool)
    score.examples = int(asked.reshape(len(asked), -1).any(1).sum())
    return score if kind != "other" else _silent(score)


def answered(case, told, pair):
    """(x, the targets read): a class that the loss does not ask for is -1, another target nan."""
    x, y = pair
    found, asked = told.read(y), labels.asked(case, told, x, y)
    if told.kind in labels.NAMED:
        return x, np.where(asked & np.isfinite(found), found, -1).astype(np.int64)
    return x, found if asked.all() else np.where(asked, found, np.nan)


def _silent(score):
    def unknown(out):
        return math.nan

    unknown.chance, unknown.examples, unknown.stderr = score.chance, score.examples, unknown
    return unknown


def _score(out, y, kind, border=0.0):
    if not np.isfinite(out).all():
        return min(_chance(y, kind), 0.0) if kind == "values" else 0.0
    told = _told(out, y, kind, border)
    return float(told.mean()) if told.count() else math.nan


def _stderr(out, y, kind, border):
    """Of their mean over examples, no less than one answer's; nan where one example cannot tell of others."""
    told = _told(out, y, kind, border)
    means = told.reshape(len(told), -1).mean(1).compressed()
    if len(means) < 2 or not np.isfinite(means).all():
        return math.nan
    return float(np.sqrt(max(means.var(ddof=1), 1 / len(means)) / len(means)))


def _told(out, y, kind, border):
    """What each answer adds to the score, which is their mean: masked where none is asked for."""
    if kind == "classes":
        return np.ma.masked_array(out.argmax(-1) == y, y < 0, dtype=float)
    wanted = np.ma.masked_invalid(np.asarray(y, np.float64).reshape(out.shape))
    if kind == "values":
        error, apart = (out - wanted) ** 2, (wanted - wanted.mean(0)) ** 2
        size = max(apart.mean() if apart.count() else 0.0, 1e-30)
        left = error.mean() / size
        return 1 - left - (error - left * apart) / size  # of a ratio: an example acts on both of its parts
    right = (out > border) == (wanted > (wanted.min() + wanted.max()) / 2)
    return np.ma.masked_array(right, wanted.mask | ~np.isfinite(border), dtype=float)


def _chance(y, kind):
    if kind == "values":
        return 0.0
    y = y[_wanted(y, kind)]
    return float(np.unique(y, return_counts=True)[1].max() / y.size) if y.size else math.nan


def _wanted(y, kind):
    """Which targets ask for an answer."""
    return y >= 0 if kind == "classes" else np.isfinite(y)


def shallow(train, unseen, kind):
    """Score on the unseen examples of a ridge regression on standardised inputs and random relu features of them.

    Its strength is chosen on a fifth of the examples. nan where inputs are no numbers, where each example has many
    answers, and where the answers are the inputs themselves.
    """
    (x, y), (new_x, new_y) = (tuple(map(_only, pair)) for pair in (train, unseen))
    if kind == "other" or any(part is None for part in (x, y, new_x, new_y)) or not _answers(y, kind):
        return math.nan
    if _copied(x, y):  # a bottleneck is no worse for what a plain copy does better
        return math.nan
    some = np.random.default_rng(5).permutation(len(x))[:MOST]
    x, y = x[some], y[some]
    if not np.issubdtype(x.dtype, np.floating) or math.prod(x.shape[1:]) > WIDEST or not np.isfinite(x).all():
        return math.nan
    if kind == "classes":
        y, new_y = _renamed(y, new_y)
    wanted = _columns(y, kind)
    kept = np.isfinite(wanted).all(1) & (y >= 0 if kind == "classes" else True)
    if kept.sum() < 2:  # one to fit, one to choose the strength
        return math.nan
    features, new = _features(x[kept], new_x)
    held = max(len(features) // 5, 1)
    weights = _ridge(features[held:], wanted[kept][held:])
    score = lambda w, at, truth: _score(_shaped(at @ w, truth, kind), truth, kind)  # noqa: E731
    best = max(weights, key=lambda w: score(w, features[:held], y[kept][:held]))
    return score(best, new, new_y)


def _only(tree):
    leaves = jax.tree.leaves(tree)
    return np.asarray(leaves[0]) if len(leaves) == 1 else None


def _answers(y, kind):
    return y.ndim == 1 if kind == "classes" else math.prod(y.shape[1:]) <= 64


def _copied(x, y):
    """Whether each column of the targets is the inputs' own, in other units perhaps."""
    x, y = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, y))
    return x.shape == y.shape and x.shape[1] > 1 and bool(np.allclose(*map(_standard, (x, y)), atol=1e-3))


def _standard(columns):
    wide = columns.std(0)
    return (columns - columns.mean(0)) / np.where(wide > 0, wide, 1.0)


def _renamed(y, new):
    """Classes numbered as they rise, those below 0 as -1; one that is met in `new` alone comes behind all."""
    known = np.unique(y[y >= 0])
    own, theirs = (np.searchsorted(known, part) for part in (y, new))
    met = np.isin(new, known)
    return np.where(y >= 0, own, -1), np.where(new >= 0, np.where(met, theirs, len(known)), -1)


def _columns(y, kind):
    """Targets as columns; classes and the two values around zero."""
    if kind == "classes":
        return np.eye(max(int(y.max()) + 1, 1))[y] - 0.5
    columns = np.ma.masked_invalid(np.asarray(y, np.float64).reshape(len(y), -1))
    sides = np.ma.where(columns > (columns.min() + columns.max()) / 2, 0.5, -0.5) if kind == "binary" else columns
    return np.ma.filled(sides, np.nan)


def _shaped(out, y, kind):
    return out if kind == "classes" else out.reshape(np.shape(y))


def _features(x, new):
    flat, new = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (x, new))
    middle, wide = flat.mean(0), flat.std(0)
    flat, new = ((part - middle) / np.where(wide > 1e-9 * wide.max(initial=0), wide, 1.0) for part in (flat, new))
    draw = np.random.default_rng(6)
    directions = draw.standard_normal((flat.shape[1], FEATURES)) / math.sqrt(max(flat.shape[1], 1))
    shifts = draw.standard_normal(FEATURES)
    made = lambda z: np.concatenate([np.ones((len(z), 1)), z, np.maximum(z @ directions + shifts, 0)], 1)  # noqa: E731
    return made(flat), made(np.clip(new, -10, 10))


def _ridge(features, wanted):
    """One solution for each strength, by the smaller of the two Gram matrices' eigenvectors."""
    wide = features.shape[1] > features.shape[0]
    values, vectors = np.linalg.eigh(features @ features.T if wide else features.T @ features)
    right = vectors.T @ (wanted if wide else features.T @ wanted)
    scale = np.mean(features**2) * len(features)
    solved = [vectors @ (right / (values + strength * scale)[:, None]) for strength in STRENGTHS]
    return [features.T @ one for one in solved] if wide else solved
