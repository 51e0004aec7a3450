"""Synthetic classification problems in the plane: peaks, circles, ellipses, swiss roll, spirals.

The test problems of the papers that read networks as differential equations. Each takes a NumPy generator or an
integer seed, `random`, and returns new arrays; nothing here needs jax. Classes are equally frequent.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from numdl import checks

SQUARE = 3.0  # peaks lives on [-3, 3]^2
CLASSES = 5  # levels of peaks
LOWEST, HIGHEST = -6.551133332835837, 8.106213589442337  # of peaks, attained near (0.23, -1.63) and (-0.01, 1.58)


class Points(NamedTuple):
    """Points in the plane and their classes."""

    features: np.ndarray  # [N, 2] float32
    labels: np.ndarray  # [N] int32


def peaks(random: np.random.Generator | int, count: int, *, classes: int = CLASSES) -> Points:
    """Points of [-3, 3]^2, classified by the level of MATLAB's peaks function: equal steps from its least value on.

    A class is first chosen for each point, then the point uniformly from where that level is (by rejection): the rare
    levels are as frequent as the others.

    Parameters
    ----------
    random : Generator or int   numpy.random.Generator, or a seed >= 0
    count : int                 points N, a multiple of `classes`
    classes : int               levels
    Returns
    -------
    Points                      features [N, 2], labels [N], in a random order
    Raises
    ------
    ValueError, TypeError       a count that is not a multiple of the classes, a negative seed
    Source: Haber & Ruthotto 2017, arXiv:1705.03341.
    """
    each = _each(count, classes)
    random = _generator(random)
    edges = np.linspace(LOWEST, HIGHEST, classes + 1)
    found = [np.zeros((0, 2)) for _ in range(classes)]
    while min(len(points) for points in found) < each:
        candidates = random.uniform(-SQUARE, SQUARE, (4096, 2))
        levels = level(peaks_function(candidates[:, 0], candidates[:, 1]), edges)
        found = [np.concatenate([points, candidates[levels == c]]) for c, points in enumerate(found)]
    return _finish(random, [points[:each] for points in found], 0.0)


def peaks_function(x: ArrayLike, y: ArrayLike) -> np.ndarray | np.floating:
    """MATLAB's peaks(x, y), elementwise: three hills and two valleys.

        3 (1 - x)^2 exp(-x^2 - (y + 1)^2) - 10 (x / 5 - x^3 - y^5) exp(-x^2 - y^2) - exp(-(x + 1)^2 - y^2) / 3

    Parameters
    ----------
    x, y : array                coordinates, of one shape or broadcast
    Returns
    -------
    array                       the heights; a number for two numbers
    Source: MATLAB's documentation of `peaks`.
    """
    hill = 3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
    valley = 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
    return hill - valley - np.exp(-((x + 1) ** 2) - y**2) / 3


def level(values: ArrayLike, edges: ArrayLike) -> np.ndarray | np.integer:
    """The index of the interval (edges[c], edges[c + 1]] that holds each value; the outermost reach to infinity.

    Parameters
    ----------
    values : array              numbers
    edges : array [levels + 1]  rising
    Returns
    -------
    array                       int, in 0..levels - 1, shaped like `values`
    Raises
    ------
    ValueError, TypeError       not real numbers, edges that fall or are fewer than two
    """
    values = checks.array("values", values, empty=True)
    edges = np.asarray(checks.array("edges", edges, ndim=1))
    if len(edges) < 2 or not np.all(np.diff(edges) >= 0):
        raise checks.BadValue(f"edges must be at least two rising numbers; got {edges}")
    return np.clip(np.searchsorted(edges, values, side="left") - 1, 0, len(edges) - 2)


def circles(random: np.random.Generator | int, count: int, *, noise: float = 0.0) -> Points:
    """A disc of radius 1 and the ring around it to radius 2: radii uniform, angles uniform. No line separates them.

    Parameters
    ----------
    random : Generator or int   numpy.random.Generator, or a seed >= 0
    count : int                 points N, an even number
    noise : float               variance of a Gaussian added to every coordinate, >= 0
    Returns
    -------
    Points                      features [N, 2], labels [N] (0 the disc), in a random order
    Raises
    ------
    ValueError, TypeError       an odd count, a negative variance or seed
    Source: Haber & Ruthotto 2017, arXiv:1705.03341.
    """
    return _discs(random, count, 1.0, noise)


def ellipses(random: np.random.Generator | int, count: int, *, axis: float = 0.4, noise: float = 0.0) -> Points:
    """`circles` with the second coordinate shrunk: an ellipse inside an elliptic ring.

    Parameters
    ----------
    random : Generator or int   numpy.random.Generator, or a seed >= 0
    count : int                 points N, an even number
    axis : float                length of the second axis relative to the first, > 0
    noise : float               variance of a Gaussian added to every coordinate, >= 0
    Returns
    -------
    Points                      features [N, 2], labels [N] (0 inside), in a random order
    Raises
    ------
    ValueError, TypeError       an odd count, an axis that is not positive, a negative variance or seed
    Source: github.com/XtractOpen/Meganet.m, setupCircle; Haber & Ruthotto 2017, arXiv:1705.03341.
    """
    axis = float(checks.positive("axis", axis, shape=()))
    return _discs(random, count, axis, noise)


def swiss_roll(random: np.random.Generator | int, count: int, *, noise: float = 0.0) -> Points:
    """Two interlaced spirals of two turns, radii 0 to 1 and 0.2 to 1.2 on the same angles, equally spaced.

    Without noise nothing is random but the order of the points.

    Parameters
    ----------
    random : Generator or int   numpy.random.Generator, or a seed >= 0
    count : int                 points N, an even number
    noise : float               variance of a Gaussian added to every coordinate, >= 0
    Returns
    -------
    Points                      features [N, 2], labels [N], in a random order
    Raises
    ------
    ValueError, TypeError       an odd count, a negative variance or seed
    Source: Haber & Ruthotto 2017, arXiv:1705.03341.
    """
    each = _each(count, 2)
    angle, radius = np.linspace(0, 4 * np.pi, each), np.linspace(0, 1, each)
    return _finish(random, [_polar(radius, angle), _polar(radius + 0.2, angle)], noise)


def spirals(
    random: np.random.Generator | int, count: int, *, turns: float = 1.5, arms: int = 2, noise: float = 0.0
) -> Points:
    """`arms` spirals from the origin, each the others turned: radius in proportion to the angle, up to 1.

    Parameters
    ----------
    random : Generator or int   numpy.random.Generator, or a seed >= 0
    count : int                 points N, a multiple of `arms`
    turns : float               of each arm around the origin, > 0
    arms : int                  classes, >= 1
    noise : float               variance of a Gaussian added to every coordinate, >= 0
    Returns
    -------
    Points                      features [N, 2], labels [N], in a random order
    Raises
    ------
    ValueError, TypeError       a count that is not a multiple of the arms, a negative variance or seed
    """
    arms = checks.whole("arms", arms)
    each = _each(count, arms)
    turns = float(checks.positive("turns", turns, shape=()))
    radius = np.linspace(0, 1, each + 1)[1:]
    angle = 2 * np.pi * turns * radius
    return _finish(random, [_polar(radius, angle + 2 * np.pi * arm / arms) for arm in range(arms)], noise)


def _discs(random, count, axis, noise):
    each, random = _each(count, 2), _generator(random)
    classes = []
    for inner in (0.0, 1.0):
        angle = random.uniform(0, 2 * np.pi, each)
        classes.append(_polar(inner + random.uniform(0, 1, each), angle) * np.array([1.0, axis]))
    return _finish(random, classes, noise)


def _polar(radius, angle):
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _finish(random, classes, noise):
    """Noise on the points of all classes, and a random order."""
    noise = float(checks.variance("noise", noise, shape=()))
    random = _generator(random)
    points = _points([c + np.sqrt(noise) * random.standard_normal(c.shape) for c in classes])
    order = random.permutation(len(points.labels))
    return Points(points.features[order], points.labels[order])


def _points(classes):
    labels = np.repeat(np.arange(len(classes)), [len(c) for c in classes])
    return Points(np.concatenate(classes).astype(np.float32), labels.astype(np.int32))


def _generator(random):
    if isinstance(random, np.random.Generator):
        return random
    return np.random.default_rng(checks.whole("random", random, least=0))


def _each(count, classes):
    count, classes = checks.whole("count", count), checks.whole("classes", classes)
    if count % classes:
        raise checks.BadValue(f"count must be a multiple of the {classes} classes; got {count}")
    return count // classes
