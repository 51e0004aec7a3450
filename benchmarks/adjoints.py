"""Gradients through 200 Runge-Kutta steps of y' = tanh(y K + b), and through a leapfrog that is undone backwards.

Memory is the subject as much as time: the column "plan MiB" is the compiler's, "peak MiB" the process's.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload, jitted

TIME = 1.0


def problem(width, batch, steps):
    rng = np.random.default_rng(0)
    theta = {
        "K": (rng.standard_normal((width, width)) / width**0.5).astype(np.float32),
        "b": np.zeros(width, np.float32),
    }
    return {"y0": rng.standard_normal((batch, width)).astype(np.float32), "theta": theta, "steps": steps}


def field(t, y, theta):
    """tanh(y K + b)."""
    import jax.numpy as jnp

    return jnp.tanh(y @ theta["K"] + theta["b"])


def gradient(p, solve, y0=None):
    """The gradient of half the squared end with respect to y0 and theta, as one program."""
    import jax
    import jax.numpy as jnp

    def loss(y0, theta):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(solve(y0, theta))) / 2

    return jitted(jax.grad(loss, argnums=(0, 1)), p["y0"] if y0 is None else y0, p["theta"], numbers=sizes)


def sizes(found):
    """Norms of the gradients; of leapfrog's velocity, too."""
    import jax

    return [float(np.linalg.norm(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(found)]


def numdl(p, adjoint, **options):
    """`integrate.endpoint` with one of numdl's adjoints."""
    from numdl.ode import adjoints, integrate, tableaus

    chosen = getattr(adjoints, adjoint)
    chosen = chosen(**options) if options else chosen
    solve = functools.partial(
        integrate.endpoint, field, tableau=tableaus.rk4, t1=TIME, steps=p["steps"], adjoint=chosen
    )
    return gradient(p, solve)


def runge_kutta(y, theta, h):
    """One step."""
    a = field(0, y, theta)
    b = field(0, y + h / 2 * a, theta)
    c = field(0, y + h / 2 * b, theta)
    d = field(0, y + h * c, theta)
    return y + h / 6 * (a + 2 * b + 2 * c + d)


def scan(p, wrap):
    """lax.scan over steps, each wrapped."""
    import jax
    from jax import lax

    step = (jax.checkpoint if wrap else lambda f: f)(functools.partial(runge_kutta, h=TIME / p["steps"]))

    def solve(y0, theta):
        return lax.scan(lambda y, _: (step(y, theta), None), y0, length=p["steps"])[0]

    return gradient(p, solve)


def diffrax(p, adjoint):
    """The same steps by diffrax."""
    import diffrax

    class RungeKutta4(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=np.array([1 / 2, 1 / 2, 1.0]),
            b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
            b_error=np.zeros(4),
            a_lower=(np.array([1 / 2]), np.array([0.0, 1 / 2]), np.array([0.0, 0.0, 1.0])),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 4

    times = {"t0": 0.0, "t1": TIME, "dt0": TIME / p["steps"], "max_steps": p["steps"] + 2}

    def solve(y0, theta):
        term, how = diffrax.ODETerm(field), getattr(diffrax, adjoint)()
        return diffrax.diffeqsolve(term, RungeKutta4(), y0=y0, args=theta, adjoint=how, **times).ys[0]

    return gradient(p, solve)


def torch_solver(p, name):
    """A loop in torch, or torchdiffeq's odeint and odeint_adjoint."""
    import torch

    class Field(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.K, self.b = (torch.nn.Parameter(torch.from_numpy(p["theta"][name])) for name in ("K", "b"))

        def forward(self, t, y):
            return torch.tanh(y @ self.K + self.b)

    own, h, start = Field(), TIME / p["steps"], torch.from_numpy(p["y0"])

    def by_hand(y):
        for _ in range(p["steps"]):
            a = own(0, y)
            b = own(0, y + h / 2 * a)
            c = own(0, y + h / 2 * b)
            y = y + h / 6 * (a + 2 * b + 2 * c + own(0, y + h * c))
        return y

    def solve(y):
        if name == "loop":
            return by_hand(y)
        import torchdiffeq

        options = {"method": "rk4", "options": {"step_size": h}}
        return getattr(torchdiffeq, name)(own, y, torch.tensor([0.0, TIME]), **options)[-1]

    def call():
        y0 = start.clone().requires_grad_()
        own.zero_grad(set_to_none=True)
        (solve(y0).square().sum() / 2).backward()
        return [y0.grad, own.K.grad, own.b.grad]

    return Run(call, lambda found: [float(leaf.double().norm()) for leaf in found])


# ---- leapfrog ------------------------------------------------------------------------------------------------------


def numdl_leapfrog(p, adjoint):
    """`schemes.leapfrog` with one of numdl's adjoints."""
    from numdl.ode import adjoints, integrate, schemes

    options = {"scheme": schemes.leapfrog, "t1": TIME, "steps": p["steps"], "adjoint": getattr(adjoints, adjoint)}
    return gradient(p, functools.partial(integrate.endpoint, field, **options), (p["y0"], np.zeros_like(p["y0"])))


def leapfrog(state, theta, h):
    """Half a drift, a kick, half a drift."""
    y, v = state
    y = y + h / 2 * v
    v = v + h * field(0, y, theta)
    return y + h / 2 * v, v


def scan_leapfrog(p, reversible):
    """lax.scan, storing all; or undone step by step in a backward rule written by hand."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    h = TIME / p["steps"]

    def solve(state, theta):
        return lax.scan(lambda s, _: (leapfrog(s, theta, h), None), state, length=p["steps"])[0]

    def backward(kept, cotangent):
        def undo(carry, _):
            end, cotangent, total = carry
            start = leapfrog(end, theta, -h)
            pull = jax.vjp(lambda s, t: leapfrog(s, t, h), start, theta)[1]
            cotangent, part = pull(cotangent)
            return (start, cotangent, jax.tree.map(jnp.add, total, part)), None

        end, theta = kept
        start = end, cotangent, jax.tree.map(jnp.zeros_like, theta)
        return lax.scan(undo, start, length=p["steps"])[0][1:]

    if reversible:
        plain, solve = solve, jax.custom_vjp(solve)
        solve.defvjp(lambda state, theta: ((end := plain(state, theta)), (end, theta)), backward)
    return gradient(p, solve, (p["y0"], np.zeros_like(p["y0"])))


SIZES = {"width": 64, "batch": 256, "steps": 200}
TINY = {"width": 4, "batch": 3, "steps": 4}
LAWS = {"steps": 1, "batch": 1}
WORKLOADS = (
    Workload(
        "gradient through RK4",
        problem,
        (
            Side("numdl, checkpointed", functools.partial(numdl, adjoint="checkpointed")),
            Side("numdl, square_root", functools.partial(numdl, adjoint="square_root")),
            Side("numdl, binomial(10)", functools.partial(numdl, adjoint="binomial", snapshots=10)),
            Side("numdl, direct", functools.partial(numdl, adjoint="direct")),
            Side("numdl, backsolve", functools.partial(numdl, adjoint="backsolve")),
            Side("limit: scan of checkpoint", functools.partial(scan, wrap=True)),
            Side("plain scan", functools.partial(scan, wrap=False)),
            Side("diffrax, RecursiveCheckpoint", functools.partial(diffrax, adjoint="RecursiveCheckpointAdjoint")),
            Side("diffrax, Direct", functools.partial(diffrax, adjoint="DirectAdjoint")),
            Side("diffrax, Backsolve", functools.partial(diffrax, adjoint="BacksolveAdjoint")),
            Side("torchdiffeq, odeint", functools.partial(torch_solver, name="odeint"), "torch"),
            Side("torchdiffeq, odeint_adjoint", functools.partial(torch_solver, name="odeint_adjoint"), "torch"),
            Side("torch loop", functools.partial(torch_solver, name="loop"), "torch"),
        ),
        sizes=SIZES,
        tiny=TINY,
        laws=LAWS,
        agree=1e-3,
    ),
    Workload(
        "gradient through leapfrog",
        problem,
        (
            Side("numdl, reversible", functools.partial(numdl_leapfrog, adjoint="reversible")),
            Side("numdl, checkpointed", functools.partial(numdl_leapfrog, adjoint="checkpointed")),
            Side("limit: reversed by hand", functools.partial(scan_leapfrog, reversible=True)),
            Side("plain scan", functools.partial(scan_leapfrog, reversible=False)),
        ),
        sizes=SIZES,
        tiny=TINY,
        laws=LAWS,
        agree=1e-3,
    ),
)
