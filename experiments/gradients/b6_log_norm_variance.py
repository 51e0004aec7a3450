"""How much do equally built relu networks differ from one another?

Question
--------
He's initialisation keeps the mean square of signals and gradients at every depth. Yet one such network starts with
large gradients and the next, drawn from the same law, with tiny ones. How large is this lottery, and what makes it
large?

Prediction
----------
For one input, ln |g_1|^2 of a relu network of widths n_1 ... n_L with Gaussian weights varies between networks with
variance about 5 (1/n_1 + ... + 1/n_L): only the ratio of depth to width counts. The exact variance is known too. Design
check: keep depth well below width / 5. Source: Hanin 2018, arXiv:1801.03744; Hanin & Nica 2020, arXiv:1812.05994.

Measurement
-----------
The mean square of the gradient at every layer, for one digit and a random cotangent, over many networks.

Verdict
-------
600 networks of depth 20 for each of widths 50, 100, 200; two CPU cores. All claims hold.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import one_number
from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.analysis import gradients as measured
from numdl.networks import dense
from numdl.records import record
from numdl.reporting import Claim
from numdl.theory import gradients as predicted

HANIN = "Hanin & Nica 2020, arXiv:1812.05994"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (50, 100, 200)
    depth: int = 20
    seeds: int = 600
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(30, 50), depth=8, seeds=300)


@record
class Result:
    """Logarithms of mean squared gradients relative to the outputs', and their law."""

    samples: np.ndarray  # [widths, seeds, L]
    variance: np.ndarray  # [widths, L]
    mean: np.ndarray  # [widths, L]
    rule: np.ndarray  # [widths, L]


def run(config):
    """Measure and predict every width."""
    samples, laws = [], []
    x = jnp.asarray(data.digits().images[:1].reshape(1, -1))
    for width in config.widths:
        widths = (x.shape[1], *[width] * (config.depth + 1))
        network = dense.network(widths=widths, activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
        key = jax.random.fold_in(jax.random.key(config.seed), width)
        samples.append(np.asarray(measured.growth(key, network, x, seeds=config.seeds).log_ratio, dtype=float))
        laws.append(predicted.log_norm(widths=widths, weight_variance=2.0, activation=activations.relu))
    fields = (np.stack([getattr(law, name) for law in laws]) for name in ("log_variance", "log_mean", "rule"))
    return Result(np.stack(samples), *fields)


def claims(config, result):
    """Variance and mean at the first layer; the simple rule; only depth / width counts."""
    made = []
    for row, width in enumerate(config.widths):
        logs = result.samples[row, :, 0]
        made.append(_variance(config, width, logs, result.variance[row, 0]))
        stderr = logs.std(ddof=1) / np.sqrt(logs.size)
        made.append(
            Claim(
                f"width {width}: mean of ln |g_1|^2, relative to the outputs'",
                HANIN,
                origin="exact",
                expected=result.mean[row, 0],
                measured=logs.mean(),
                uncertainty=stderr,
                tolerance=6 * stderr,
                tolerance_from="six standard errors",
            )
        )
    made.append(
        one_number(
            f"width {config.widths[-1]}: the rule 5 L / n against the exact variance, relative",
            "Hanin 2018, arXiv:1801.03744",
            origin="exact",
            expected=1.0,
            measured=result.rule[-1, 0] / result.variance[-1, 0],
            tolerance=10 / config.widths[-1],
            tolerance_from="the next term, of relative size a few / width",
        )
    )
    return made


def _variance(config, width, logs, expected):
    centred = logs - logs.mean()
    variance = logs.var(ddof=1)
    stderr = np.sqrt((np.mean(centred**4) - np.mean(centred**2) ** 2) / logs.size)
    return Claim(
        f"width {width}: variance of ln |g_1|^2 over networks of depth {config.depth}",
        HANIN,
        origin="exact",
        expected=expected,
        measured=variance,
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors, the fourth moment taken from the sample",
    )


def figure(config, result):
    """Left: the variance over the depth, right: what it means for single networks."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    passed = np.arange(config.depth, 0, -1)
    for color, row, width in zip(plotting.COLORS, range(len(config.widths)), config.widths, strict=False):
        found = result.samples[row].var(axis=0, ddof=1)
        left.plot(passed, found, "o", color=color, markersize=4, label=f"width {width}")
        left.plot(passed, result.variance[row], "k--", linewidth=1.4, label="predicted" if row == 0 else None)
        left.plot(passed, result.rule[row], ":", color="0.5", label="rule 5 L / n" if row == 0 else None)
        right.hist(result.samples[row, :, 0] / np.log(10), bins=40, histtype="step", color=color, linewidth=1.6,
                   density=True, label=f"width {width}")  # fmt: skip
    left.set(xlabel="layers passed on the way back", ylabel="variance of ln |g|² over networks")
    right.set(xlabel="log₁₀ of the squared gradient at layer 1, relative to the outputs'")
    dress(right, ylabel="share of networks (density)")
    dress(left)
    return drawing
