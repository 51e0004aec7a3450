"""MEASURED: mutual information between inputs, labels and the states of a layer; in nats.

A deterministic layer with distinct inputs has I(X; T) = ln N, whatever it does: only after binning, or after adding
noise, is there anything to measure, and the number then measures the bins or the noise as much as the layer. So the
bin width and the noise variance are axes of every result here, never defaults.

    entropy, mutual_information     of tables of probabilities, exact
    binned                          states cut into cubes of a given width
    kernel_bounds                   states plus Gaussian noise of a given variance: bounds on both sides
    plane                           either of them for each layer and time: the information plane

    >>> import numpy as np
    >>> states, labels = np.array([0.1, 0.2, 0.8, 0.9]), [0, 0, 1, 1]
    >>> found = binned(states, labels, widths=[0.5, 0.05])
    >>> found.inputs / np.log(2)  # bits: one label, then one bin for each example
    array([1., 2.])
    >>> found.labels / np.log(2)
    array([1., 1.])

Source: Shwartz-Ziv & Tishby 2017, arXiv:1703.00810; Saxe et al. 2018, "On the information bottleneck theory".
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike

from numdl import _effort, checks, precision
from numdl.records import record


@record
class Binned:
    """Information of binned states."""

    widths: np.ndarray  # [B]
    inputs: np.ndarray  # [B]: I(X; T) = H(T), X the N examples
    labels: np.ndarray  # [B]: I(Y; T)
    occupied: np.ndarray  # [B]: bins that hold an example; near N every example has its own and nothing is measured


@record
class Bounds:
    """Information of states with noise, between two bounds; tight where clusters are far apart or coincide."""

    noise_variances: np.ndarray  # [B]
    inputs_low: jax.Array  # [B]: I(X; T + noise) is at least this
    inputs_high: jax.Array  # [B]
    labels_low: jax.Array  # [B]: I(Y; T + noise)
    labels_high: jax.Array  # [B]


@record
class InformationPlane:
    """A point for each time, layer and width of bin (or variance of noise); binned: low and high are equal."""

    scales: np.ndarray  # [B]: bin widths or noise variances
    inputs_low: np.ndarray  # [times, layers, B]
    inputs_high: np.ndarray  # [times, layers, B]
    labels_low: np.ndarray  # [times, layers, B]
    labels_high: np.ndarray  # [times, layers, B]


def entropy(probabilities: ArrayLike | Sequence) -> float:
    """The entropy of a table of probabilities of any shape, in nats.

        H = -sum p ln p,   0 ln 0 = 0

    Parameters
    ----------
    probabilities : array [...]     >= 0, of sum 1
    Raises
    ------
    ValueError, TypeError       a negative entry, a sum that is not 1
    Source: the definition.
    """
    table = _table("probabilities", probabilities)
    positive = table[table > 0]
    return float(-np.sum(positive * np.log(positive)))


def mutual_information(joint: ArrayLike | Sequence) -> float:
    """The mutual information of two discrete variables from their joint table of probabilities, in nats.

        I = H(row) + H(column) - H(row, column) >= 0

    Parameters
    ----------
    joint : array [n, m]        >= 0, of sum 1
    Raises
    ------
    ValueError, TypeError       not two axes, a negative entry, a sum that is not 1
    Source: the definition.    Experiment: e12, where the states are binned first.
    """
    table = _table("joint", joint)
    if table.ndim != 2:
        raise checks.BadValue(f"joint must have 2 axes; got shape {table.shape}")
    return max(entropy(table.sum(axis=0)) + entropy(table.sum(axis=1)) - entropy(table), 0.0)


def binned(states: ArrayLike, labels: ArrayLike | Sequence, *, widths: ArrayLike | Sequence[float]) -> Binned:
    """MEASURED information of states cut into cubes: a `Binned`, one entry for each width.

        T = floor(states / width),    I(X; T) = H(T),    I(Y; T) = H(T) - H(T | Y)

    The plug-in estimate: every example counts 1 / N. Labels seem to be known as soon as bins hold one example each.

    Parameters
    ----------
    states : array [N, ...]     one example each; finite
    labels : array [N]          integers or any values that can be equal
    widths : array [B]          > 0, in the unit of the states
    Returns
    -------
    Binned                      inputs, labels [B] in nats, occupied [B]
    Raises
    ------
    ValueError, TypeError       states that are not finite, labels of another length, a width that is not positive
    Source: Shwartz-Ziv & Tishby 2017, arXiv:1703.00810.
    """
    states, labels = _samples(states, labels)
    widths = _scales("widths", widths)
    found = np.array([_of_bins(np.floor(np.asarray(states, np.float64) / width), labels) for width in widths])
    return Binned(widths, found[:, 0], found[:, 1], found[:, 2].astype(int))


def kernel_bounds(
    states: ArrayLike, labels: ArrayLike | Sequence, *, noise_variances: ArrayLike | Sequence[float]
) -> Bounds:
    """MEASURED bounds on the information of states plus Gaussian noise: a `Bounds`, one entry for each variance.

        bound(s) = -mean_i ln mean_j exp(-|t_i - t_j|^2 / s),    s = 8 variance: below, s = 2 variance: above
        low = bound(8 v) - sum_y p_y bound_y(2 v), high = bound(2 v) - sum_y p_y bound_y(8 v) for I(Y; T)

    and I(X; T) itself lies between the two bounds. Both are at most ln N and H(Y).

    Parameters
    ----------
    states : array [N, ...]     one example each; finite
    labels : array [N]          integers or any values that can be equal
    noise_variances : array [B] > 0, of each coordinate
    Returns
    -------
    Bounds                      inputs_low, inputs_high, labels_low, labels_high [B], in nats
    Raises
    ------
    ValueError, TypeError       states that are not finite, labels of another length, a variance that is not positive
    Source: Kolchinsky & Tracey 2017, arXiv:1706.02419, eqs. (10), (11) with Gaussians of one covariance.
    """
    states, labels = _samples(states, labels)
    variances = _scales("noise_variances", noise_variances)
    classes, places = np.unique(labels, return_inverse=True)
    shares = np.bincount(places) / len(places)
    dtype = precision.wide(jnp.result_type(states))
    rows = jnp.asarray(states, dtype).reshape(len(places), -1)
    found = _bounds(rows, jnp.asarray(places, jnp.int32), jnp.asarray(variances, dtype), classes=len(classes))
    most = entropy(shares)
    labels_low, labels_high = (jnp.clip(value, 0, most) for value in found[2:])
    return Bounds(variances, *(jnp.clip(value, 0, np.log(len(places))) for value in found[:2]), labels_low, labels_high)


def plane(
    states: Sequence[ArrayLike],
    labels: ArrayLike | Sequence,
    *,
    widths: ArrayLike | Sequence[float] | None = None,
    noise_variances: ArrayLike | Sequence[float] | None = None,
) -> InformationPlane:
    """MEASURED information plane of the information bottleneck: I(X; T) and I(Y; T) for each time, layer and scale.

    Parameters
    ----------
    states : list or tuple      one array [times, N, ...] for each layer, in the order of the layers
    labels : array [N]          integers or any values that can be equal
    widths, noise_variances : array [B]     exactly one of the two: bins as in `binned`, or noise as in `kernel_bounds`
    Returns
    -------
    InformationPlane            four tables [times, layers, B] in nats
    Raises
    ------
    ValueError, TypeError       both or neither of widths and noise_variances, layers with other numbers of times
    Source: Shwartz-Ziv & Tishby 2017, arXiv:1703.00810; Saxe et al. 2018.    Experiment: e12.
    """
    if (widths is None) == (noise_variances is None):
        got = "neither" if widths is None else "both"
        raise checks.BadValue(f"exactly one of widths and noise_variances must be given; got {got}")
    checks.instance("states", states, (list, tuple), hint="one array [times, N, ...] for each layer")
    states = [checks.array(f"states[{i}]", layer, least_ndim=2) for i, layer in enumerate(states)]
    times = {layer.shape[:1] for layer in states}
    if len(times) != 1:
        raise checks.BadValue(f"states must be arrays [times, N, ...] of one number of times; got {sorted(times)}")
    found = []
    for time in range(len(states[0])):
        for layer in states:
            if widths is not None:
                one = binned(layer[time], labels, widths=widths)
                found.append((one.inputs, one.inputs, one.labels, one.labels))
            else:
                one = kernel_bounds(layer[time], labels, noise_variances=noise_variances)
                found.append((one.inputs_low, one.inputs_high, one.labels_low, one.labels_high))
    scales = _scales("noise_variances", noise_variances) if widths is None else _scales("widths", widths)
    table = np.asarray(found).reshape(len(states[0]), len(states), 4, -1)
    return InformationPlane(scales, *np.moveaxis(table, 2, 0))


# ---- helpers -------------------------------------------------------------------------------------------------------


def _table(name, probabilities):
    table = np.asarray(checks.finite(name, checks.array(name, probabilities), least=0.0), np.float64)
    if abs(table.sum() - 1) > 1e-6:
        got = f"{float(table.sum())!r}, the sum of {checks.shown(table)}"
        raise checks.BadValue(f"{name} must sum to 1; got {got}")
    return table


def _scales(name, values):
    values = checks.positive(name, np.atleast_1d(checks.array(name, values)))
    return np.asarray(checks.array(name, values, ndim=1), np.float64)


def _samples(states, labels):
    states = checks.finite("states", checks.array("states", states, least_ndim=1))
    try:
        found = np.asarray(checks.native("labels", checks.concrete("labels", labels)))
        np.unique(found)
    except (TypeError, ValueError) as error:
        message = f"labels must be values that can be equal and sorted; got {checks.shown(labels)}"
        raise checks.BadType(message) from error
    labels = checks.shape("labels", found, (np.shape(states)[0],))
    if labels.dtype.kind in "fc" and not np.isfinite(labels).all():
        wrong = labels[~np.isfinite(labels)][0]
        raise checks.BadValue(f"labels must be values that can be equal; got {wrong} among them")
    return states, labels


def _of_bins(cells, labels):
    """(I(X; T), I(Y; T), occupied bins) of the cells of all examples."""
    bins = np.unique(cells.reshape(len(labels), -1), axis=0, return_inverse=True)[1].ravel()
    places = np.unique(labels, return_inverse=True)[1]
    joint = np.zeros((bins.max() + 1, places.max() + 1))
    np.add.at(joint, (bins, places), 1 / len(labels))
    return entropy(joint.sum(axis=1)), mutual_information(joint), len(joint)


@functools.partial(_effort.jit, static_argnames="classes")
def _bounds(rows, places, variances, classes):
    # Differences, not products of rows: |a|^2 + |b|^2 - 2 a.b loses what is small.
    distances = lax.map(lambda row: jnp.sum((rows - row[None, :]) ** 2, axis=1), rows)
    same = places[:, None] == places[None, :]
    counts = jnp.sum(same, axis=1).astype(rows.dtype)

    def at(variance):
        low, high = (_entropy_gap(distances, factor * variance, None, rows.shape[0]) for factor in (8, 2))
        low_given, high_given = (_entropy_gap(distances, factor * variance, same, counts) for factor in (8, 2))
        return low, high, low - high_given, high - low_given

    return lax.map(at, variances)


def _entropy_gap(distances, scale, same, counts):
    """-mean_i ln mean_j exp(-distance / scale) over all j, or those of i's label: entropy beyond the noise's own."""
    exponent = -distances / scale
    if same is not None:
        exponent = jnp.where(same, exponent, -jnp.inf)
    return -jnp.mean(jax.nn.logsumexp(exponent, axis=1) - jnp.log(counts))
