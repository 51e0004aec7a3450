"""What each leaf does as the width grows, from the traced call at two widths."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import PyTree

from numdl import checks
from numdl.optimize.scaling import _heads, _laws, _uses
from numdl.records import abridged


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One leaf at the two widths."""

    path: str
    shapes: tuple  # at the narrow and the wide width
    inputs: tuple | None  # axes that are summed over; None: not known but for the two widths
    m_in: float  # inputs, wide over narrow
    m_out: float  # entries over inputs, likewise
    role: str  # "input" | "hidden" | "output" | "vector" | "embedding" | "fixed"
    why: str
    law: Any  # `_laws.Law`: how the deviation goes as the build draws it
    head: Any = None  # `_heads.Head` whose growing scores this leaf undoes under muP
    part: Any = None  # `_parts.Part`: which of its entries do so; None: all
    pieces: tuple = ()  # of a leaf with a part: this row for the part, and for the rest, with laws of their own

    def undone(self, shape):
        """Factor of the deviation and Adam rate at this shape that undoes growing heads; None if that is not known."""
        if self.head is None or shape == self.shapes[0]:
            return 1.0
        if shape == self.shapes[1]:
            return self.head.undone
        ratios = self.ratios(shape)
        known = ratios is not None and math.isclose(self.m_out, self.head.growth)  # as many heads at every width
        return ratios[1] ** (self.head.power - 1) if known else None

    def ratios(self, shape):
        """(m_in, m_out) at this shape, relative to the narrow width; None if that is not known."""
        narrow, wide = self.shapes
        if shape in self.shapes:
            return (self.m_in, self.m_out) if shape == wide else (1.0, 1.0)
        if self.inputs is None or len(shape) != len(narrow):
            return None
        m_in = math.prod(shape[axis] / narrow[axis] for axis in self.inputs)
        return m_in, math.prod(shape) / math.prod(narrow) / m_in


@dataclasses.dataclass(frozen=True)
class Roles:
    """The leaves' roles, in the order of params; not a pytree: it holds no arrays to be traced."""

    widths: tuple  # narrow, wide
    leaves: tuple  # of Leaf
    notes: tuple  # what must be known beside

    @property
    def path(self):
        """Paths of the leaves."""
        return tuple(leaf.path for leaf in self.leaves)

    @property
    def role(self):
        """Of each leaf: "input", "hidden", "output", "vector", "embedding" or "fixed"."""
        return tuple(leaf.role for leaf in self.leaves)

    @property
    def why(self):
        """Where the role comes from, of each leaf."""
        return tuple(leaf.why for leaf in self.leaves)

    @property
    def m_in(self):
        """Inputs at the wide width over inputs at the narrow one: array [P]."""
        return np.array([leaf.m_in for leaf in self.leaves])

    @property
    def m_out(self):
        """Outputs, likewise: array [P]."""
        return np.array([leaf.m_out for leaf in self.leaves])

    @property
    def deviation(self):
        """Power of the width that the deviation has under muP: array [P]; 0, -1/2, -1 where sizes are the width's.

        Of a leaf of which a part makes queries whose heads widen, that of the rest.
        """
        log = math.log(self.widths[1] / self.widths[0])
        rest = [leaf.pieces[1] if leaf.pieces else leaf for leaf in self.leaves]
        wanted = [_laws.mup(leaf.m_in, leaf.m_out) * leaf.undone(leaf.shapes[1]) for leaf in rest]
        return np.array([_rounded(math.log(each) / log) for each in wanted])

    @property
    def drawn(self):
        """The power that it has as the build draws it, as measured: array [P]; nan for a leaf of zeros."""
        log = 2 * math.log(self.widths[1] / self.widths[0])
        return np.array([leaf.law.log_ratio / log for leaf in self.leaves])

    def __repr__(self):
        head = ("path", "m_in", "m_out", "deviation", "drawn", "role", "why")
        numbers = zip(self.m_in, self.m_out, self.deviation, self.drawn)
        rows = [
            (leaf.path, *(f"{n:.3g}" for n in four), leaf.role, leaf.why) for leaf, four in zip(self.leaves, numbers)
        ]
        table = [head, *abridged(rows)]
        wide = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = ["  ".join(text.ljust(n) for text, n in zip(row, wide)).rstrip() for row in table]
        return "\n".join([f"Roles at widths {self.widths[0]} and {self.widths[1]}", *lines, *self.notes])


def roles(build: Callable[[int], tuple], widths: Sequence[int], x: PyTree, *, embeddings: Sequence[str] = ()) -> Roles:
    """What each parameter leaf does as the network widens: m_in, m_out, role, found by tracing the call at two widths.

    Leaves are matched by their paths, and their axes are followed to where they are contracted with data, so that
    neither names nor the order of axes matter. Nothing is compiled; the parameters' mean squares are measured.

    Parameters
    ----------
    build : function            build(width) -> (apply, params), apply(params, x) -> outputs
    widths : two ints           narrow and wide; the narrow one is the reference
    x : pytree                  an example batch, the same at both widths
    embeddings : sequence of str    paths of tied leaves that are embeddings here, because apply multiplies the logits
                                by narrow / width
    Returns
    -------
    Roles                       path, m_in, m_out, deviation, drawn, role, why; notes; prints as a table
    Raises
    ------
    ValueError                  nothing grows, leaves come or go with the width, the depth changes too, a leaf is tied
                                with two roles, or a weight is computed from leaves (weight norm, low rank, a factor)
    TypeError                   build is not such a function, params or x hold no arrays
    """
    checks.accepts("build", build, 1, "build(width)")
    widths = _two(widths)
    x = checks.leaves("x", x, shapes=True)
    narrow, wide = (_uses.Seen(width, *built(build, width), x) for width in widths)
    _uses.check_same(narrow, wide)
    embeddings = _named(embeddings, narrow.paths)
    leaves = tuple(_leaf(narrow, wide, path, path in embeddings) for path in narrow.paths)
    if all(leaf.shapes[0] == leaf.shapes[1] for leaf in leaves):
        raise checks.BadValue(f"build must give a wider network for a larger width; got the same shapes at {widths}")
    heads = _heads.growing(narrow, wide)
    leaves = _named_laws([_headed(leaf, narrow, wide, heads) for leaf in leaves], widths[1] / widths[0])
    return Roles(widths, leaves, tuple(_notes(narrow, wide, leaves, heads)))


def built(build, width):
    """(apply, params) of a build, or a refusal that says what it should return."""
    pair = build(width)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[0]):
        raise checks.BadType(f"build must return (apply, params); got {checks.shown(pair)} at width {width}")
    return pair[0], checks.leaves("params", pair[1], host=True, shapes=True)


def _leaf(narrow, wide, path, is_embedding):
    one, other = narrow.use(path), wide.use(path)
    shapes = narrow.shapes[path], wide.shapes[path]
    total = math.prod(shapes[1]) / max(math.prod(shapes[0]), 1)
    looked_up = is_embedding or one.looked_up
    if is_embedding or not one.layers:
        _uses.check_not_contracted(path, one, shapes)
        m_in, inputs, why = 1.0, (), "embedding, tied: apply scales the logits" if is_embedding else one.text
    else:
        _uses.check_weight(path, one, other, (narrow.shapes, wide.shapes))
        m_in, inputs = _uses.inputs(path, one, other, shapes)
        why = f"weight of {one.layers[0].name}: {_growth(one.layers[0], other.layers[0])}"
    role = _role(m_in, total / m_in, looked_up, not one.layers)
    fans = (one.layers[0].fan_in, one.layers[0].fan_out) if one.layers else (1.0, math.prod(shapes[0]))
    law = _laws.measured(narrow.values[path], wide.values[path], fans)
    return Leaf(path, shapes, inputs, m_in, total / m_in, role, why, law)


def _headed(leaf, narrow, wide, heads):
    """The leaf with the head that it undoes; where a part of it does so, in two pieces."""
    head = next((head for head in heads if leaf.path in head.leaves), None)
    part = head and head.leaves[leaf.path]
    if part is None:
        return dataclasses.replace(leaf, head=head)
    both = [(np.asarray(seen.values[leaf.path]), seen.shapes[leaf.path]) for seen in (narrow, wide)]
    inside = [np.broadcast_to(part.at(shape), shape) for _, shape in both]
    chosen, rest = (
        _laws.measured(*(values[where] for (values, _), where in zip(both, each)), leaf.law.fans)
        for each in (inside, [~where for where in inside])
    )
    pieces = dataclasses.replace(leaf, law=chosen, head=head), dataclasses.replace(leaf, law=rest)
    return dataclasses.replace(leaf, head=head, part=part, pieces=pieces)


def _named_laws(leaves, m):
    """The leaves with the names of their laws; a leaf in pieces has those of its pieces."""
    flat = [piece for leaf in leaves for piece in (leaf, *leaf.pieces)]
    laws = iter(_laws.named(flat, m))
    named = [[dataclasses.replace(piece, law=next(laws)) for piece in (leaf, *leaf.pieces)] for leaf in leaves]
    return tuple(dataclasses.replace(leaf, pieces=tuple(pieces)) for leaf, *pieces in named)


def _role(m_in, m_out, looked_up, alone):
    if looked_up:
        return "embedding"
    if m_in == m_out == 1:
        return "fixed"
    if alone:
        return "vector"
    return {(False, True): "input", (True, True): "hidden", (True, False): "output"}[m_in != 1, m_out != 1]


def _growth(one, other):
    return f"{one.fan_in:g} -> {other.fan_in:g} inputs, {one.fan_out:g} -> {other.fan_out:g} outputs"


def _notes(narrow, wide, leaves, heads):
    """Widths of heads that grow, axes that do not grow as the others, and what was not entered."""
    yield from map(str, heads)
    m, last = wide.width / narrow.width, narrow.last
    for leaf in leaves:
        if leaf.role == "output" and leaf.path not in last:
            yield f"{leaf.path}: its outputs stay {leaf.shapes[0]} and are read by a later layer: should they grow?"
        if any(size not in (1.0, m) and not np.isclose(size, m, rtol=1e-9) for size in (leaf.m_in, leaf.m_out)):
            yield f"{leaf.path}: grows by {leaf.m_in:.4g} inputs and {leaf.m_out:.4g} outputs, the width by {m:.4g}"
    yield from (f"not entered: {text}" for text in narrow.traced.not_entered)


def _named(embeddings, paths):
    given = isinstance(embeddings, str | list | tuple | set)
    named = (embeddings,) if isinstance(embeddings, str) or not given else tuple(embeddings)
    unknown = [name for name in named if name not in paths]
    if unknown:
        raise checks.BadValue(
            f"embeddings must be paths of leaves, of {', '.join(paths)}; got {checks.shown(unknown[0])}"
        )
    return named


def _two(widths):
    widths = checks.wholes("widths", widths, fewest=2)
    if len(widths) != 2 or widths[0] >= widths[1]:
        raise checks.BadValue(f"widths must be two integers, narrow < wide; got {checks.shown(widths)}")
    return widths


def _rounded(number):
    """Without the rounding of logarithms."""
    return round(number, 12) + 0.0
