"""The search behind `lanczos.eigenpairs`: a basis that expands, restarts, locks its finds and starts anew beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort
from numdl.krylov import _places, _vectors

SMALL = 32  # rows of a basis whose Ritz values are looked at after every product
RISK = 1e-3  # the probability with which a random start may hide an eigenvalue above the ceiling


class Search:
    """The state of a search for the k largest eigenvalues of sign * A, and its moves. Mutable: a loop in Python."""

    def __init__(self, key, matvec, layout, left_out, *, k, sign, tolerance, basis):
        self.key, self.matvec, self.layout, self.left_out = key, matvec, layout, left_out
        self.k, self.sign, self.tolerance = k, sign, tolerance
        self.space = left_out.copy()
        self.room = min(basis, layout.size - left_out.count)
        self.projected = np.zeros((self.room, self.room))  # the matrix in the basis, beside the vectors left out
        # What the basis misses of A q_j, the last row aside: outside[j, u] times a unit vector for each start given up.
        self.outside = np.zeros((self.room, 0))
        self.unlike = [0.0, 0]  # sum of squares of q_i'Aq_j - q_j'Aq_i, and how many
        self.found = np.zeros(0)  # values of the locked rows, the first of the basis
        self.used, self.budget, self.plain, self.doubt, self.counting, self.coupling = 0, 0, 0, 0, True, 0.0
        self.bound = np.inf  # the ceiling of the starts before this one
        self.verified = self.broken = False
        self.previous, self.next = None, None

    @property
    def size(self):
        """Rows of the basis, beside the vectors left out."""
        return self.space.count - self.left_out.count

    @property
    def exhausted(self):
        """Whether the basis spans all that there is."""
        return self.space.count == self.layout.size

    def run(self, budget, warm, verify):
        """Expand, restart and verify until all is found or the budget is spent."""
        self.budget = budget
        self.begin(warm)
        while self.used < budget and not self.broken:
            self.expand()
            full = self.size == self.room or self.exhausted
            often = self.size <= SMALL or self.used % 3 == 0
            if self.broken or self.size < self.k or not (full or often or self.used == budget):
                continue
            if self.enough(verify):
                return
            if self.size == self.room:
                self.restart(self.kept())

    def begin(self, warm=None):
        """A start beside all rows, random or the caller's; only a random one carries a probability."""
        self.plain, self.counting, self.previous, self.coupling = 0, warm is None, None, 0.0
        for _ in range(3):
            self.key, drawn = _drawn(self.key, self.layout)
            start = drawn if warm is None else warm
            _, self.next, norm = _vectors.orthonormal(self.space, start)
            if norm > 0 and np.isfinite(norm):
                return
            warm = None

    def expand(self):
        """One product, and the next direction."""
        q, j = self.next, self.size
        before, coupling = (q, 0.0) if self.previous is None else (self.previous, self.coupling)
        self.space.append(q)
        w = _vectors.apply(self.matvec, q)
        alpha, w = _recur(w, q, before, np.asarray(coupling, w.dtype), np.asarray(self.sign, w.dtype))
        coefficients, ahead, norm = _vectors.orthonormal(self.space, w)
        column = coefficients[self.left_out.count :]
        if self.previous is not None:
            free = column[: j - 1][~self.outside[: j - 1].any(axis=1)]  # 0 where the matrix is symmetric
            self.unlike = [self.unlike[0] + float(free @ free), self.unlike[1] + len(free)]
        column[j] += float(alpha)
        if self.previous is not None:
            column[j - 1] += coupling
        self.used, self.plain = self.used + 1, self.plain + self.counting
        self.broken = not (np.isfinite(norm) and np.isfinite(column).all())
        self.projected[: j + 1, j] = self.projected[j, : j + 1] = column
        self.outside[j] = 0.0
        self.previous, self.next, self.coupling = q, ahead, norm
        if norm == 0 and not self.exhausted and not self.broken:  # an invariant subspace: go on beside it
            plain, counting = self.plain, self.counting
            self.begin()
            self.plain, self.counting = plain, counting

    def ritz(self, first=0):
        """(values descending, vectors, bounds of the residuals) in the basis from row `first` on."""
        values, weights = np.linalg.eigh(self.projected[first : self.size, first : self.size])
        values, weights = values[::-1], weights[:, ::-1]
        return values, weights, np.sum(np.abs(self.parts(weights, first)), axis=1)

    def parts(self, weights, first=0):
        """[p, 1 + starts]: the residuals of p vectors as numbers times vectors of norm 1 at most, but for rounding.

        A Q w = Q T w + coupling w[-1] q_next + sum_u (outside[:, u] . w) (1 - Q Q') u
        """
        return np.column_stack([self.coupling * weights[-1], weights.T @ self.outside[first : self.size]])

    def enough(self, verify):
        """Whether the k largest are found and nothing above them is left; locks them and starts anew to see."""
        values, weights, missed = self.ritz()
        share = 0.9 if self.exact else 0.4  # less than asked for where k more products decide
        goal = share * self.tolerance * np.abs(values).max()
        if self.exhausted:
            self.verified = True
            return True
        if len(self.found) and np.any(values[: self.k] > self.found + goal / 2):
            self.found = np.zeros(0)  # one more has come into the list: find it first
        if verify and len(self.found) and not self.nothing_above(goal):
            return False
        if not (np.all(missed[: self.k] <= goal) or self.measured_below(goal, weights)):
            return False
        if verify and not len(self.found):
            self.bound, self.doubt = self.ceiling(), 0
            given_up = np.zeros((self.room, 1))
            given_up[: self.k, 0] = self.coupling * weights[-1, : self.k]
            self.restart(self.k)
            self.outside, self.found = np.hstack([self.outside, given_up]), values[: self.k].copy()
            self.begin()
            return False
        self.verified = verify
        return True

    def measured_below(self, goal, weights):
        """Whether k products say what the bounds do not: what given up starts left in them adds up and never falls."""
        here, left = np.abs(self.parts(weights[:, : self.k])).T[0], self.outside[: self.size].any()
        if not left or np.any(here > goal) or self.used + self.k > self.budget:
            return False
        self.doubt += 1  # looks that found the bounds alone too large
        if self.doubt <= 2 * self.k:  # the bounds may still fall: another start mixes the rows anew
            return False
        self.used, self.doubt = self.used + self.k, -self.used
        rows = self.best()[0]
        norms = quotients(rows, _vectors.each(self.image, rows))[1]
        return bool(np.all(np.asarray(norms) <= goal))

    def image(self, v):
        """The matrix, turned so that the largest values are wanted, and beside what is left out, times a vector."""
        image = self.sign * _vectors.apply(self.matvec, v)
        return self.left_out.project(image)[1] if self.left_out.count else image

    def nothing_above(self, goal):
        """Whether the largest value beside the locked vectors is known well enough to lie below the least of them."""
        locked = len(self.found)
        if self.size - locked < min(8, self.layout.size - self.left_out.count - locked):
            return False
        values, _, missed = self.ritz(locked)
        return missed[0] <= max(goal, 0.5 * (self.found[-1] - values[0]))

    def kept(self):
        """How many of the free vectors a restart keeps: the wanted ones and half of the others."""
        free, wanted = self.size - len(self.found), 1 if len(self.found) else self.k
        return min(wanted + (free - wanted) // 2, free - 1)

    def restart(self, keep):
        """The locked rows and the best `keep` vectors of the others become the basis; the next direction stays."""
        locked, m, hidden = len(self.found), self.size, self.left_out.count
        _, weights, _ = self.ritz(locked)
        turn = np.eye(hidden + m)[:, : hidden + locked + keep]
        turn[hidden + locked :, hidden + locked :] = weights[:, :keep]
        inner, p = turn[hidden:, hidden:], locked + keep
        self.outside[:p] = inner.T @ self.outside[:m]
        self.projected[:p, :p] = inner.T @ self.projected[:m, :m] @ inner
        self.space = self.space.turned(turn)
        # The next row couples to all that were kept: the projection finds the coefficients.
        self.previous, self.counting = None, False

    def best(self):
        """(rows [k, n] of the k largest Ritz values, all Ritz values, `parts` of the residuals of the rows)."""
        values, weights, _ = self.ritz()
        hidden, weights = np.zeros((self.left_out.count, self.k)), weights[:, : self.k]
        return self.space.turned(np.concatenate([hidden, weights])).array(), values, self.parts(weights)

    @property
    def exact(self):
        """Whether residuals as small as asked for stand well above the rounding of the recursion."""
        return self.tolerance >= 1e3 * self.layout.eps

    @property
    def asymmetry(self):
        """Root mean square of q_i'Aq_j - q_j'Aq_i, divided by the root of 2."""
        total, count = self.unlike
        return np.sqrt(total / max(count, 1) / 2)

    def ceiling(self):
        """A bound of all eigenvalues beside the locked ones that fails with probability RISK at most.

            P(largest - Ritz value > e (largest - smallest)) <= 1.648 sqrt(n) exp(-sqrt(e) (2 m - 1))

        after m steps from a random start. Source: Kuczynski & Wozniakowski 1992.
        """
        if self.exhausted:
            values = self.ritz()[0]
            return values[self.k] if self.size > self.k else -np.inf
        values = self.ritz(len(self.found))[0] if self.size > len(self.found) else np.zeros(0)
        free = self.layout.size - self.left_out.count - len(self.found)
        share = (np.log(1.648 * np.sqrt(free) / RISK) / max(2 * self.plain - 1, 1)) ** 2 if self.plain else np.inf
        # The same holds at the other end, so that the spread of the Ritz values bounds the spectrum's.
        above = share / (1 - 2 * share) * (values[0] - values[-1]) if share < 0.5 else np.inf
        return min(self.bound, values[0] + above) if len(values) else self.bound


@_effort.jit
def quotients(rows, images):
    """(Rayleigh quotients, norms of the residuals, root mean square of the asymmetry q_i'Aq_j - q_j'Aq_i)."""
    squares = jnp.sum(rows**2, axis=1)
    theta = jnp.sum(rows * images, axis=1) / squares
    left = images - theta[:, None] * rows
    scale = jnp.maximum(jnp.max(jnp.abs(left), axis=1, keepdims=True), jnp.finfo(left.dtype).tiny)
    norms = scale[:, 0] * jnp.sqrt(jnp.sum((left / scale) ** 2, axis=1)) / jnp.sqrt(squares)
    cross = jnp.matmul(rows, images.T, precision="highest")
    pairs = max(len(rows) * (len(rows) - 1), 1)
    return theta, norms, jnp.sqrt(jnp.sum((cross - cross.T) ** 2) / pairs / 2)


@_effort.jit
def _recur(w, q, before, coupling, sign):
    w = sign * w - coupling * before
    alpha = jnp.vdot(q, w, precision="highest")
    return alpha, w - alpha * q


@functools.partial(_effort.jit, static_argnums=1)
def _drawn(key, layout):
    """(the next key, a random start): one program, where the first call compiles each."""
    key, own = jax.random.split(key)
    return key, _places.normal(own, layout)
