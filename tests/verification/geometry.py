"""What a discretization must keep: the symplectic form, the energy, and the way back."""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.ode import integrate, schemes, tableaus
from tests.ode import test_integrate as oracle
from tests.verification import above, below, near, study

H = 0.1
FORM = np.array([[0.0, 1.0], [-1.0, 0.0]])
PENDULUM = {
    "leapfrog": (lambda t, q, theta: -jnp.sin(q), {"scheme": schemes.leapfrog}),
    "verlet": ((lambda t, p, theta: p, lambda t, q, theta: -jnp.sin(q)), {"scheme": schemes.verlet}),
    "coupling": ((lambda t, p, theta: p, lambda t, q, theta: -jnp.sin(q)), {"scheme": schemes.coupling}),
    "implicit_midpoint": (None, {"tableau": tableaus.implicit_midpoint}),
    "gauss_legendre4": (None, {"tableau": tableaus.gauss_legendre4}),
    "rk4": (None, {"tableau": tableaus.rk4}),
    "euler": (None, {"tableau": tableaus.euler}),
}
START = (0.7, 0.3)


def end(name, z, steps, t1=None):
    """The pendulum's (q, p) after some steps of a scheme."""
    field, how = PENDULUM[name]
    how = {**how, "t1": H * steps if t1 is None else t1, "steps": steps}
    if field is None:
        return integrate.endpoint(lambda t, z, _: jnp.stack([z[1], -jnp.sin(z[0])]), z, (), **how)
    return jnp.concatenate(integrate.endpoint(field, (z[:1], z[1:]), (), **how))


def defect(name, steps, dtype=jnp.float64):
    """|M'JM - J| / |M|^2 of the derivative M of the flow."""
    m = np.asarray(jax.jacfwd(lambda z: end(name, z, steps))(jnp.asarray(START, dtype)), np.float64)
    return np.abs(m.T @ FORM @ m - FORM).max() / np.linalg.norm(m, 2) ** 2


@study("Symplecticity")
def symplecticity(full):
    """|M'JM - J| / |M|^2 of the pendulum's discrete flow, h = 0.1."""
    names = ("leapfrog", "verlet", "coupling", "implicit_midpoint", "gauss_legendre4") if full else ("leapfrog",)
    for name in names:
        counts = (1, 10, 100, 1000) if full else (10,)
        worst = max(defect(name, n) for n in counts)
        limit = 1e-14 if name in ("leapfrog", "verlet", "coupling") else 1e-13  # the stages are solved to 100 roundings
        yield below(f"{name}, float64", worst, limit, f"N = {', '.join(map(str, counts))}")
    if not full:
        return
    for name in ("leapfrog", "verlet", "coupling"):
        worst = max(defect(name, n, jnp.float32) for n in (1, 10, 100, 1000))
        yield below(f"{name}, float32", worst, 1e-6, "N = 1, 10, 100, 1000")
    for name, least in (("rk4", 1e-9), ("euler", 1e-3)):
        yield above(f"not symplectic: {name}", defect(name, 1), least, "one step")
    yield from _energy()


def _energy():
    """Of leapfrog: bounded oscillation of size h^2 and no drift over T = 100."""
    sizes, drifts = [], []
    for h in (0.2, 0.1, 0.05, 0.025):
        path = integrate.trajectory(
            PENDULUM["leapfrog"][0],
            (jnp.asarray([START[0]]), jnp.asarray([START[1]])),
            (),
            scheme=schemes.leapfrog,
            t1=100.0,
            steps=round(100 / h),
        )
        q, p = (np.asarray(part)[:, 0] for part in path.states)
        energy = p**2 / 2 - np.cos(q)
        sizes.append(np.ptp(energy))
        half = len(energy) // 2
        drifts.append(abs(energy[half:].mean() - energy[:half].mean()) / np.ptp(energy))
    slopes = np.log2(np.array(sizes[:-1]) / sizes[1:])
    yield near("leapfrog: energy error, slope in h", slopes[np.abs(slopes - 2).argmax()], 2.0, 0.1, "h = 0.2 to 0.025")
    yield below("leapfrog: drift of the energy / oscillation", max(drifts), 0.05, "halves of T = 100")


@study("Reversibility: there and back")
def reversibility(full):
    """The start, integrated to T and undone by `invert`, relative to it."""
    for name in ("leapfrog", "verlet", "coupling") if full else ("coupling",):
        how = oracle.SCHEMES[name]
        for dtype, limit in ((jnp.float64, 1e-13), (jnp.float32, 1e-5)) if full else ((jnp.float64, 1e-13),):
            counts = (10, 100, 1000, 10000) if full else (10,)
            worst = max(_round_trip(how, n, dtype) for n in counts)
            tried = f"T = {oracle.T:g}, N = {', '.join(map(str, counts))}"
            yield below(f"{name}, {jnp.dtype(dtype).name}", worst, limit, tried)
    if full:
        chaos = _round_trip({**oracle.SCHEMES["leapfrog"], "field": lambda t, q, _: 30 * q}, 1000, jnp.float64, 5.0)
        yield above("where the flow spreads the way back is lost", chaos, 1e-8, "q'' = 30 q, T = 5")


def _round_trip(how, steps, dtype, t1=oracle.T):
    cast = lambda tree: jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)  # noqa: E731
    start, theta = cast(how["start"]), cast(oracle.THETA)
    grid = {"scheme": how["scheme"], "t1": t1, "steps": steps}
    back = integrate.invert(how["field"], integrate.endpoint(how["field"], start, theta, **grid), theta, **grid)
    gaps = [np.linalg.norm(np.asarray(a - b)) for a, b in zip(back, start, strict=True)]
    return max(gaps) / np.linalg.norm(np.concatenate([np.asarray(leaf) for leaf in start]))
