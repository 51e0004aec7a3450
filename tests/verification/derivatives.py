"""Every derivative written by hand: Taylor remainders and the dot-product test, against code that shares no rule."""

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import numdl
from numdl import _closed_forms, activations
from numdl.analysis import _listening
from numdl.networks import by_hand, dense
from numdl.ode import adjoints, integrate, parallel, schemes, tableaus
from numdl.optimize import _readout, losses, varpro
from tests.verification import above, below, furthest, near, study

PAIRS = 20
RULES = {"custom_jvp", "custom_vjp", "custom_root", "custom_linear_solve", "custom_gradient", "linear_call"}
RANDOM = np.random.default_rng(3)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape))


# ---- what is written by hand -----------------------------------------------------------------------------------------


def rules():
    """(file, function) of every rule in the package's source."""
    package = pathlib.Path(numdl.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    return {
        (str(path.relative_to(package)), name)
        for path, text in sources.items()
        if any(rule in text for rule in RULES)
        for name in _in_file(ast.parse(text))
    }


def _in_file(tree):
    """Functions that carry a rule as a decorator, or call one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorated = any(_names(each) & RULES for each in node.decorator_list)
            inner = {
                id(n)
                for child in ast.walk(node)
                if child is not node and isinstance(child, ast.FunctionDef)
                for n in ast.walk(child)
            }
            called = any(
                isinstance(n, ast.Call) and id(n) not in inner and _name(n.func) in RULES
                for statement in node.body
                for n in ast.walk(statement)
            )
            if decorated or called:
                yield node.name


def _names(tree):
    return {_name(node) for node in ast.walk(tree)}


def _name(node):
    return getattr(node, "attr", getattr(node, "id", None))


# ---- cases: a map, the same map without the rule where forward mode has none, a place --------------------------------


def adjoint(method, **how):
    """(the end and the states of an integration under this adjoint, the same under the direct one, where)."""
    theta = {"K": normal(3, 3), "b": normal(3)}
    start = normal(2, 3)

    def field(t, y, theta):
        return jnp.tanh(y @ theta["K"] + theta["b"][None]) + jnp.sin(t)

    def run(method, x):
        y0, theta, t1 = x
        pair = "scheme" in how
        fields = (field, field) if how.get("scheme") in (schemes.verlet, schemes.coupling) else field
        path = integrate.trajectory(
            fields, (y0, y0 / 2) if pair else y0, theta, t1=t1, t0=0.1, steps=7, adjoint=method, **how
        )
        return path.states

    return functools.partial(run, method), functools.partial(run, adjoints.direct), (start, theta, jnp.asarray(0.9))


def _heard(x):
    """`at` gives its cotangents' statistics to sinks, and must pass the cotangents themselves on unchanged."""
    values, sinks = (jnp.sin(x), x**2), (jnp.zeros(2), jnp.zeros(2))
    return sum(y**2 for y in _listening.at(False, values, sinks))


def _not_heard(x):
    return jnp.sin(x) ** 2 + (x**2) ** 2


def _implicit(x):
    y0, k = x
    return integrate.endpoint(
        lambda t, y, k: jnp.tanh(k @ y) + jnp.cos(t), y0, k, tableau=tableaus.gauss_legendre4, t1=1.0, steps=4
    )


CROSS = losses.softmax_cross_entropy
LABELS = jax.nn.softmax(normal(6, 2))
CASES = {
    ("_closed_forms.py", "angle"): [(_closed_forms.angle, None, jnp.asarray([-0.7, 0.1, 0.6]))],
    ("_closed_forms.py", "arc_cosine"): [(_closed_forms.arc_cosine, None, jnp.asarray([-0.7, 0.1, 0.6]))],
    ("optimize/_readout.py", "solve_damped"): [
        (lambda x: _readout.solve_damped(False, *x), None, (normal(7, 3), normal(7, 2)))
    ],
    ("optimize/_readout.py", "best"): [
        (lambda x: _readout.best(CROSS, x[0], LABELS, x[1]), None, (normal(6, 3), jnp.asarray(0.1)))
    ],
    ("ode/schemes.py", "_implicit_step"): [(_implicit, None, (normal(3), normal(3, 3) / 2))],
    ("ode/adjoints.py", "solve"): [
        adjoint(adjoints.reversible, scheme=schemes.leapfrog),
        adjoint(adjoints.reversible, scheme=schemes.verlet),
        adjoint(adjoints.reversible, scheme=schemes.coupling),
        adjoint(adjoints.backsolve, tableau=tableaus.implicit_midpoint),
    ],
    ("ode/adjoints.py", "_revolve"): [
        adjoint(adjoints.binomial(snapshots=1), tableau=tableaus.heun),
        adjoint(adjoints.binomial(snapshots=3), tableau=tableaus.rk4),
    ],
    ("ode/_depth.py", "integrate"): [
        adjoint(parallel.adjoint(coarsening=(7,), iterations=1), tableau=tableaus.heun),
    ],
    ("analysis/_listening.py", "at"): [(_heard, _not_heard, normal(4))],
}
# By hand without a rule of jax: adjoints by rematerialization, and slopes and curvatures given as formulas.
ALSO = {
    "adjoints.checkpointed": [adjoint(adjoints.checkpointed, tableau=tableaus.heun)],
    "adjoints.square_root": [adjoint(adjoints.square_root, tableau=tableaus.heun)],
    "adjoints.nested": [adjoint(adjoints.nested(levels=3), tableau=tableaus.heun)],
}


@study("Derivatives written by hand: Taylor remainders")
def taylor(full):
    """|L(x + e d) - L(x) - e L'(x) d| for L = <w, f(x)>: slope in e between halvings, the last five above rounding."""
    for name, function, _, x in _chosen(full):
        yield near(name, furthest(remainders(function, x), 2), 2.0, 0.1, "5 halvings of e, float64")
    if full:
        bent = _bent(lambda x: jnp.sum(jnp.sin(x)), 1e-2)
        yield above("planted: a gradient off by 1 %", 2 - furthest(remainders(bent, normal(4)), 2), 0.5, "gap to 2")


@study("Derivatives written by hand: dot-product test")
def dots(full):
    """The largest |<v, J u> - <J'v, u>| / (|v| |J u|)."""
    for name, function, plain, x in _chosen(full, also=("ode/adjoints.py: solve",)):
        yield below(name, dot_gap(function, plain or function, x), 1e-12, f"{PAIRS} random pairs, float64")
    if full:
        bent = _bent(lambda x: jnp.sin(x), 1e-6)
        yield above("planted: a gradient off by 1e-6", dot_gap(bent, jnp.sin, normal(4)), 1e-12, f"{PAIRS} pairs")


@study("Derivatives written by hand: formulas")
def formulas(full):
    """Slopes of activations, gradients and Hessians of losses, backpropagation spelled out: central differences."""
    names = activations.names() if full else ("tanh", "gelu")
    for name in names:
        yield below(f"{name}: slope", slope_gap(activations.named(name)), 1e-9, "40 points off the kinks")
    for loss, targets in _losses() if full else _losses()[:1]:
        for what, gap in loss_gaps(loss, targets).items():
            yield below(f"losses.{loss.name}: {what}", gap, 1e-8, "3 examples of 4 outputs")
    if full:
        yield below("networks.by_hand.backpropagate", backpropagation_gap(), 1e-12, "against jax.grad, 3 layers")
        yield below("varpro.Regularized.curvature", curvature_gap(), 1e-8, "cross-entropy, 6 examples")


def _chosen(full, also=()):
    """(name, map, the map without the rule, where) of all cases, or of those that are compiled in no time."""
    listed = {f"{file}: {name}": cases for (file, name), cases in CASES.items()} | ALSO
    for name, cases in listed.items():
        quick = name in also or (not name.startswith("ode/") and name not in ALSO)
        for number, case in enumerate(cases):
            if full or (quick and number == 0):
                yield (name if len(cases) == 1 else f"{name}, case {number + 1}"), *case


# ---- the two tests -------------------------------------------------------------------------------------------------


def _flat(function, x):
    flat, unravel = ravel_pytree(x)
    return jax.jit(lambda flat: ravel_pytree(function(unravel(flat)))[0]), flat


def remainders(function, x, seed=0):
    """Slopes of the second Taylor remainder over halvings of the step."""
    random = np.random.default_rng(seed)
    of_flat, flat = _flat(function, x)
    value, pull = jax.vjp(of_flat, flat)
    weights = jnp.asarray(random.normal(size=value.shape))
    direction = random.normal(size=flat.shape)
    direction /= np.linalg.norm(direction)
    slope = float(np.asarray(pull(weights)[0]) @ direction)
    scales = 0.02 / 2.0 ** np.arange(9)
    ends = np.array([np.vdot(weights, np.asarray(of_flat(flat + scale * direction)) - value) for scale in scales])
    rest = np.abs(ends - scales * slope)
    return np.log2(rest[:-1] / rest[1:])[-5:]


def dot_gap(function, plain, x, seed=1):
    """The largest relative difference of the two inner products; J u by forward mode through the plain map."""
    random = np.random.default_rng(seed)
    of_flat, flat = _flat(function, x)
    value, pull = jax.vjp(of_flat, flat)
    push = jax.linearize(_flat(plain, x)[0], flat)[1]
    gaps = []
    for _ in range(PAIRS):
        u, v = jnp.asarray(random.normal(size=flat.shape)), jnp.asarray(random.normal(size=value.shape))
        image = push(u)
        gap = abs(float(jnp.vdot(v, image)) - float(jnp.vdot(pull(v)[0], u)))
        gaps.append(gap / float(jnp.linalg.norm(v) * jnp.linalg.norm(image)))
    return max(gaps)


def _bent(function, delta):
    """The function with a derivative that is off by this factor."""

    @jax.custom_vjp
    def wrong(x):
        return function(x)

    def forward(x):
        return jax.vjp(function, x)

    wrong.defvjp(forward, lambda pull, cotangent: jax.tree.map(lambda g: (1 + delta) * g, pull(cotangent)))
    return wrong


# ---- formulas --------------------------------------------------------------------------------------------------------


def slope_gap(activation, step=1e-5):
    """|slope - central difference| away from the kinks, relative to the largest slope."""
    x = np.linspace(-3.17, 3.29, 40)
    x = x[np.all([np.abs(x - kink) > 1e-3 for kink in activation.kinks] or [np.ones(40, bool)], axis=0)]
    wanted = (np.asarray(activation(x + step)) - np.asarray(activation(x - step))) / (2 * step)
    return np.abs(np.asarray(activation.slope(jnp.asarray(x))) - wanted).max() / np.abs(wanted).max()


def _losses():
    signs = np.sign(RANDOM.normal(size=(3, 4)))
    shares = np.asarray(jax.nn.softmax(normal(3, 4)))
    return [(CROSS, shares), (losses.squared, signs), (losses.logistic, shares), (losses.hinge, signs)]


def loss_gaps(loss, targets, step=1e-5):
    """Gradient, Hessian and product with a vector, each against central differences of the one before."""
    outputs, v = np.linspace(-1.3, 1.7, 12).reshape(3, 4), np.linspace(-1, 2, 12).reshape(3, 4)
    gradient, hessian = np.empty((3, 4)), np.empty((3, 4, 4))
    for i, unit in enumerate(np.eye(4)):
        ends = outputs + step * unit, outputs - step * unit
        values = [np.asarray(loss.value(jnp.asarray(end), targets)) for end in ends]
        slopes = [np.asarray(loss.gradient(jnp.asarray(end), targets)) for end in ends]
        gradient[:, i], hessian[..., i] = (values[0] - values[1]) / (2 * step), (slopes[0] - slopes[1]) / (2 * step)
    place = jnp.asarray(outputs)
    product = np.einsum("nij,nj->ni", np.asarray(loss.hessian(place, targets)), v)
    return {
        "gradient": np.abs(np.asarray(loss.gradient(place, targets)) - gradient).max(),
        "hessian": np.abs(np.asarray(loss.hessian(place, targets)) - hessian).max(),
        "hessian_product": np.abs(np.asarray(loss.hessian_product(place, targets, jnp.asarray(v))) - product).max(),
    }


def backpropagation_gap():
    """The relative distance of the gradient by hand from that of jax."""
    network = dense.network(widths=(4, 5, 5, 2), activation=activations.tanh, weight_variance=1.5, bias_variance=0.1)
    x = normal(6, 4)
    params = network.init(jax.random.key(0), x)
    found = by_hand.backpropagate(
        params, x, lambda y: (jnp.mean(y**2), 2 * y / y.size), activation=activations.tanh
    ).gradient
    wanted = jax.grad(lambda p: jnp.mean(network.apply(p, x) ** 2))(params)
    found, wanted = ravel_pytree(found)[0], ravel_pytree(wanted)[0]
    return jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)


def curvature_gap(step=1e-5):
    """The product by hand against a central difference of jax's gradient."""
    loss = varpro.Regularized(CROSS)
    z, v = (normal(6, 2), normal(3, 2)), (normal(6, 2), normal(3, 2))
    targets = (LABELS, jnp.asarray(0.3))
    slopes = [jax.grad(loss)(jax.tree.map(lambda a, b, s=s: a + s * step * b, z, v), targets) for s in (1, -1)]
    wanted = ravel_pytree(jax.tree.map(lambda a, b: (a - b) / (2 * step), *slopes))[0]
    return jnp.abs(ravel_pytree(loss.curvature(z, targets, v))[0] - wanted).max()
