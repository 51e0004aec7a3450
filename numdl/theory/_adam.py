"""PREDICTED: the size of Adam's steps under gradients that are noise alone."""

import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks


def adam_step_rms(*, step: ArrayLike, momentum: ArrayLike) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED size of Adam's step: root mean square of a coordinate's update over the rate, under white gradients.

        rms**2 = (1 - b) (1 + b**t) / ((1 + b) (1 - b**t)):   1 at step t = 1,   (1 - b) / (1 + b) as t -> inf

    The averages' weights are w_s = (1 - b) b**(t-s) / (1 - b**t), and the sum of w_s**2 is rms**2. Exact for gradients
    that are independent in time, of one law that is symmetric about 0 (no variance need exist), with beta_2 -> 1 and
    eps = 0: the second moment is then the mean of t squares, and E g_s**2 / mean(g**2) = 1 by exchange.

    Parameters
    ----------
    step : int or array of ints     t >= 1, counted from 1
    momentum : scalar               b = beta_1, 0 <= b < 1
    Returns
    -------
    shaped like step
    Raises
    ------
    ValueError, TypeError           a step that is not a whole number from 1 on, a momentum outside [0, 1)
    Source: derived above from Kingma & Ba 2015, arXiv:1412.6980, algorithm 1.    Experiment: g9.
    """
    steps = np.asarray(checks.finite("step", checks.concrete("step", step), least=1), np.float64)
    if (steps != np.floor(steps)).any():
        raise checks.BadValue(f"step must be whole numbers >= 1; got {checks.shown(step)}")
    b = checks.number("momentum", momentum, least=0.0)
    if b >= 1:
        raise checks.BadValue(f"momentum must be below 1; got {momentum!r}")
    if b == 0:
        return np.ones_like(steps)[()]
    log = np.log1p(b - 1) if b > 0.5 else np.log(b)  # b - 1 is exact near 1, where 1 - b**t would cancel
    terms = np.expm1(steps * log) / np.expm1(log)  # 1 + b + ... + b**(t-1), exactly 1 at t = 1
    return np.sqrt((1 + b**steps) / ((1 + b) * terms))[()]
