"""Which figures a report has: what each shows, the paths of its data, and whether there is anything to draw."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numdl import plotting, reporting
from numdl.audit._shown.paths import At
from numdl.audit._shown.phase import phase_map


class Drawing(NamedTuple):
    """One figure: `make(root)` is a function of axes, or None where there is nothing to draw."""

    caption: str
    paths: tuple
    make: Callable
    width: float = 4.6


def picture(root, draw):
    """The figure with its caption and its paths; empty where there is nothing to draw."""
    made = draw.make(root)
    if made is None:
        return ""
    figure = plotting.figure(width=draw.width, height=3.2)
    made(plotting.tidy(figure.subplots()))
    caption = reporting.tag("span", draw.caption, reporting.tag("small", " ".join(draw.paths)))
    return reporting.figure_image(figure, alt=draw.caption, caption=caption)


def _some(*arrays):
    return all(np.isfinite(np.asarray(a, dtype=float)).any() for a in arrays)


def _theory(root):
    """What theory predicted, where it applies, in the order of the layers: nan for one that it passes over."""
    predicted, signal = root.evidence.predicted, root.evidence.signal
    place = {name: i for i, name in enumerate(signal.names)}
    known = [(place[name], r) for r, name in enumerate(predicted.names) if name in place]
    if not (predicted.applies and known and np.size(signal.gradient_rms)):
        return None
    at, of = (np.array(each) for each in zip(*known, strict=True))
    states, gradients = np.full((2, len(signal.names)), np.nan)
    states[at] = predicted.state_rms[of]
    with np.errstate(divide="ignore", invalid="ignore"):
        last = 2 * np.log(signal.gradient_rms[at[-1]] / signal.gradient_rms[-1])
    gradients[at] = predicted.log_gradient[of] + last
    return dataclasses.replace(predicted, state_rms=states, log_gradient=gradients)


def _profile(draw, field):
    def make(root):
        signal = root.evidence.signal
        if signal is None or not len(signal.names) or not np.size(getattr(signal, field)):
            return None
        return lambda ax: draw(signal, predicted=_theory(root), ax=ax)

    return make


def _units(root):
    signal = root.evidence.signal
    if signal is None or len(signal.names) < 2 or not any(map(_some, (signal.dead, signal.saturated, signal.cosine))):
        return None
    return lambda ax: plotting.units(signal, ax=ax)


def _place(root):
    told = root.evidence.predicted
    diagram = None
    if told.applies:
        diagram = phase_map(told.activation, told.weight_variance, told.bias_variance, told.critical_weight_variance)
    if diagram is None:
        return None
    variances = {"weight_variance": told.weight_variance, "bias_variance": told.bias_variance}
    return lambda ax: plotting.place(diagram, **variances, ax=ax)


def _forecast(root):
    kernel, trial = root.evidence.kernel, root.evidence.trial
    drawn = trial if np.size(trial.losses) else None
    return (lambda ax: plotting.forecast(kernel, trial=drawn, ax=ax)) if _some(kernel.forecast) else None


def _trial(root):
    trial = root.evidence.trial
    return (lambda ax: plotting.trial(trial, ax=ax)) if _some(trial.losses) else None


def _rates(root):
    trial, predicted = root.evidence.trial, root.evidence.predicted
    if len(trial.factors) < 2 or not _some(trial.end, trial.factors):
        return None
    return lambda ax: plotting.rates(trial, predicted=predicted, ax=ax)


def _course(root):
    optimizer = root.evidence.optimizer
    known = _some(optimizer.early) and _some(optimizer.late)
    return (lambda ax: plotting.course(optimizer, ax=ax)) if known else None


def layers(report):
    """(summary, header, rows) of the table of layers, or None."""
    signal = report.evidence.signal
    if signal is None or not len(signal.names):
        return None
    columns = [(word, field) for word, field in _COLUMNS if np.size(getattr(signal, field))]
    rows = [
        [name, *(At(f"evidence.signal.{field}[{i}]") for _, field in columns)] for i, name in enumerate(signal.names)
    ]
    return f"All {len(rows)} layers", ("layer", *(word for word, _ in columns)), rows


def leaves(report):
    """(summary, header, rows) of the table of parameters, or None."""
    signal, optimizer = report.evidence.signal, report.evidence.optimizer
    names = () if signal is None else signal.leaf_names
    if not len(names):
        return None
    known = [
        ("rms", "signal.leaf_rms", signal.leaf_rms),
        ("gradient, rms", "signal.leaf_gradient_rms", signal.leaf_gradient_rms),
    ]
    known.append(("largest update / itself", "optimizer.update_ratio", optimizer.update_ratio))
    columns = [(word, path) for word, path, values in known if np.size(values) == len(names)]
    rows = [[name, *(At(f"evidence.{path}[{i}]") for _, path in columns)] for i, name in enumerate(names)]
    return f"All {len(rows)} parameters", ("parameter", *(word for word, _ in columns)), rows


_COLUMNS = (
    ("state rms", "state_rms"),
    ("gradient rms", "gradient_rms"),
    ("fan_in · Var W", "weight_variance"),
    ("never active", "dead"),
    ("at bounds", "saturated"),
    ("cosine", "cosine"),
    ("rank", "rank"),
)
SECTIONS = (
    (
        "Signals and gradients through the layers",
        (
            Drawing(
                "Size of the states, layer by layer.",
                ("evidence.signal.state_rms", "evidence.predicted.state_rms", "evidence.predicted.spread"),
                _profile(plotting.states, "state_rms"),
            ),
            Drawing(
                "Size of the loss's gradient at each layer, on its way back from the last.",
                ("evidence.signal.gradient_rms", "evidence.predicted.log_gradient", "evidence.predicted.spread"),
                _profile(plotting.gradients, "gradient_rms"),
            ),
            Drawing(
                "Units that do nothing, and how alike the examples have become.",
                ("evidence.signal.dead", "evidence.signal.saturated", "evidence.signal.cosine"),
                _units,
            ),
            Drawing(
                "Theory's phase diagram of this activation, and the network's place on it.",
                ("evidence.predicted.weight_variance", "evidence.predicted.bias_variance"),
                _place,
            ),
        ),
        layers,
    ),
    (
        "Forecast and trial",
        (
            Drawing(
                "The loss forecast over the budget, and the measured beginning.",
                ("evidence.kernel.forecast", "evidence.kernel.forecast_steps", "evidence.trial.losses"),
                _forecast,
            ),
            Drawing(
                "Short trainings at several rates.",
                ("evidence.trial.losses", "evidence.trial.repeated", "evidence.trial.factors"),
                _trial,
            ),
            Drawing(
                "Loss after the trial against the rate.",
                ("evidence.trial.end", "evidence.predicted.sharpness", "evidence.predicted.sharpness_limit"),
                _rates,
            ),
            Drawing(
                "When the optimizer moves, under a constant gradient.",
                ("evidence.optimizer.early", "evidence.optimizer.late"),
                _course,
            ),
        ),
        leaves,
    ),
)
PROOF = Drawing(
    "The loss while training, as it was and as repaired.",
    ("proof.sick", "proof.repaired", "proof.forecast", "proof.forecast_steps"),
    lambda root: (lambda ax: plotting.proof(root.proof, ax=ax)) if _some(root.proof.repaired) else None,
    5.4,
)
