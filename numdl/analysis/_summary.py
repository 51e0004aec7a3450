"""MEASURED: the table of a network, layer by layer, from shapes alone: parameters, operations, memory."""

import collections
import collections.abc
import html
import math
from collections.abc import Callable

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import checks, tracing, trees
from numdl._compiled import known
from numdl.analysis._kept import kept
from numdl.analysis._table_rows import Line, Walk
from numdl.networks.core import Network
from numdl.records import abridged, record, rows, static

MOST_NOTES = 6


@record
class Summary:
    """A network's layers in call order, L lines; a scanned layer has one line for each step, 'path[i]'.

    Bias, activation, normalization and what else follows a layer count with it, until the next line begins.
    """

    names: tuple = static()  # [L] paths of the parameters, as `probe` has them
    kinds: tuple = (
        static()
    )  # [L] "dense", "conv", "attention", "embedding", "window" (pooling), "elementwise", "tap", ...
    shapes: tuple = static()  # [L] of the output
    notes: tuple = static()  # what could not be counted, and why
    x_shapes: tuple = static()  # of the leaves of x
    parameters: np.ndarray  # [L] numbers that can be trained; those used twice count where they are used first
    operations: np.ndarray  # [L] of one forward pass of x: a multiplication with an addition is two; nan: not known
    forward_bytes: np.ndarray  # [L] of the output
    backward_bytes: np.ndarray  # [L] kept for the gradient of the parameters, as `jax.vjp` keeps them; nan: no gradient
    parameter_bytes: int  # of all parameters; a gradient takes as much again

    @property
    def total_parameters(self):
        """All numbers that can be trained."""
        return int(np.sum(self.parameters))

    @property
    def total_operations(self):
        """Floating-point operations of one forward pass; nan where a part is not known."""
        return float(np.sum(self.operations))

    def __repr__(self):
        if isinstance(self.parameters, jax.core.Tracer) or np.ndim(self.parameters) != 1:
            return "\n".join(["Summary", *(f"  {name:<15} {text}" for name, text in rows(self))])
        table = [_HEAD, *_cells(self)]
        wide = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
        lines = [_line(row, wide) for row in table]
        rule = "-" * len(lines[0])
        return "\n".join([_title(self), lines[0], rule, *lines[1:], rule, *_totals(self), *_remarks(self)])

    def _repr_html_(self):
        if isinstance(self.parameters, jax.core.Tracer) or np.ndim(self.parameters) != 1:
            return f"<pre>{html.escape(repr(self))}</pre>"
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in [("th", _HEAD), *(("td", row) for row in _cells(self))]
        )
        below = "".join(f"<p>{html.escape(text)}</p>" for text in [*_totals(self), *_remarks(self)])
        return f"<table><caption>{html.escape(_title(self))}</caption>{body}</table>{below}"


def summary(apply_or_network: Callable | Network, x_shape: PyTree, params: PyTree = None) -> Summary:
    """MEASURED table of any network: layer, output, parameters, operations, memory; nothing is computed or allocated.

    Operations: two for each product of a contraction (padded zeros too), one for each number that a function of one
    number makes and for each number summed; moving, comparing and integers none.

    Parameters
    ----------
    apply_or_network : Network, or function apply(params, x), pure; without params apply(x), whose arrays (closed over,
        or leaves of a callable pytree such as an Equinox module) are the parameters
    x_shape : tuple of int, N first, of the default float type; or a pytree of arrays or jax.ShapeDtypeStruct (tokens)
    params : pytree             arrays or their shapes; None for a Network: those of `init`. Of Flax variables the
                                collection "params" counts, of a Network what `init` draws
    Returns
    -------
    Summary                     one line for each layer, lookup, pooling window and further module
    Raises
    ------
    ValueError, TypeError       not a function or Network, a shape that is none, params that are missing or not arrays
    """
    x = _input(x_shape)
    apply, params, only = _function(apply_or_network, x, params)
    traced = tracing.trace(apply, params, x)
    walk = Walk(traced)
    lines = walk.lines()
    lines[0].shape, lines[0].dtype = (getattr(jax.tree.leaves(x)[0], name) for name in ("shape", "dtype"))
    trained, untrained = _trained(params, traced.parameters, only)
    parameters = _shared_out(lines, trained, traced.parameters)
    backward, notes = _backward(traced, lines, params, x)
    shown = slice(0 if lines[0].operations or parameters[0] or backward[0] > 0 or len(lines) == 1 else 1, None)
    lines = lines[shown]
    return Summary(
        names=_names(lines),
        kinds=tuple(line.kind for line in lines),
        shapes=tuple(tuple(line.shape) for line in lines),
        notes=(*walk.notes, *notes, *untrained),
        x_shapes=tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(x)),
        parameters=np.array(parameters[shown], np.int64),
        operations=np.array([line.operations for line in lines], np.float64),
        forward_bytes=np.array([math.prod(line.shape) * _itemsize(line.dtype) for line in lines], np.float64),
        backward_bytes=np.array(backward[shown], np.float64),
        parameter_bytes=_bytes(params, trained),
    )


def _input(x_shape):
    """Shapes and dtypes of x."""
    if isinstance(x_shape, tuple | list) and all(isinstance(n, int | np.integer) for n in x_shape):
        x_shape = tuple(checks.whole("x_shape", n, least=1) for n in x_shape)
        if not x_shape:
            raise checks.BadValue(f"x_shape must be (N, ...), the examples first; got {x_shape}")
        return jax.ShapeDtypeStruct(x_shape, jnp.result_type(float))
    leaves = jax.tree.leaves(x_shape)
    if not leaves or not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise checks.BadValue(
            "x_shape must be a tuple of ints (N, ...), or a pytree of arrays or jax.ShapeDtypeStruct; got "
            f"{checks.shown(x_shape)}"
        )
    return jax.tree.map(_abstract, checks.leaves("x_shape", x_shape, shapes=True))


def _function(given, x, params):
    """(apply(params, x), shapes of the parameters, paths of those that count or None for all)."""
    if isinstance(given, Network):
        drawn = jax.eval_shape(lambda x: given.init(jax.random.key(0), x), x)
        return given.apply, drawn if params is None else _shapes(params), set(trees.names(drawn))
    if params is not None:
        given = checks.returning("apply_or_network", given, 2, "apply(params, x)")
        return given, _shapes(params), _collection(params)
    leaves, structure = jax.tree.flatten(given)
    given = checks.returning("apply_or_network", given, 1, "apply(x) where params is None")
    if not jax.tree_util.treedef_is_leaf(structure):  # a module that is a pytree
        return _held(leaves, structure)
    closed, outputs = jax.make_jaxpr(known(given), return_shape=True)(x)
    constants = {"closed over": [_abstract(each) for each in closed.consts]}
    body = getattr(closed, "jaxpr", closed)

    def apply(params, x):
        run = jex.jaxpr_as_fun(jex.ClosedJaxpr(body, params["closed over"]))
        return jax.tree.unflatten(jax.tree.structure(outputs), run(*jax.tree.leaves(x)))

    return apply, constants, None


def _held(leaves, structure):
    """A module that is a pytree and can be called: its arrays are the parameters."""
    arrays = [leaf if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else None for leaf in leaves]
    params = jax.tree.unflatten(structure, [None if leaf is None else _abstract(leaf) for leaf in arrays])

    def apply(params, x):
        moved = iter(jax.tree.leaves(params))
        full = [leaf if array is None else next(moved) for leaf, array in zip(leaves, arrays, strict=True)]
        return jax.tree.unflatten(structure, full)(x)

    return apply, params, None


def _shapes(params):
    return jax.tree.map(_abstract, checks.leaves("params", params, empty=True, shapes=True))


def _abstract(leaf):
    return jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf))


def _collection(params):
    """Of Flax's variables {"params": ..., "batch_stats": ...} the paths of the first; None: all count."""
    if not isinstance(params, collections.abc.Mapping) or "params" not in params or len(params) == 1:
        return None
    return {path for path in trees.names(params) if path.startswith("params/")}


def _trained(params, paths, only):
    """(how many numbers of each leaf can be trained, notes about the others)."""
    trained, left = [], []
    for path, leaf in zip(paths, jax.tree.leaves(params), strict=True):
        moves = jnp.issubdtype(leaf.dtype, jnp.inexact) and (only is None or path in only)
        trained.append(math.prod(leaf.shape) if moves else 0)
        left += [] if moves else [f"not counted: {path}, {math.prod(leaf.shape)} numbers of {leaf.dtype}"]
    return trained, left if len(left) <= MOST_NOTES else [*left[:MOST_NOTES], f"not counted: {len(left)} leaves in all"]


def _shared_out(lines, trained, paths):
    """The parameters of each line; a leaf that meets no data gets a line at the end."""
    left, found = dict(enumerate(trained)), []
    for line in lines:
        counted = [leaf for leaf in line.leaves if trained[leaf]]
        line.name = paths[counted[0]] if counted and line.kind == "elementwise" else line.name
        taken = {leaf: min(round(share * trained[leaf]), left[leaf]) for leaf, share in line.leaves.items()}
        for leaf, count in taken.items():
            left[leaf] -= count
        found.append(sum(taken.values()))
    for leaf, count in left.items():
        if count:
            lines.append(Line(paths[leaf], "unused", (), None))
            found.append(count)
    return found


def _backward(traced, lines, params, x):
    """(bytes kept of each line, notes)."""
    numbers, marks = {}, []
    for line in lines:
        if line.mark is not None and (key := (id(line.mark[0]), line.mark[1])) not in numbers:
            numbers[key] = len(marks)
            marks.append(line.mark)
    found, reason = kept(traced, marks, params, x)
    if found is None:
        return [math.nan] * len(lines), (reason,)
    of = [-1 if line.mark is None else numbers[id(line.mark[0]), line.mark[1]] for line in lines]
    of = [None if line.kind == "unused" else number for line, number in zip(lines, of, strict=True)]
    counts = collections.Counter(of)
    return [found.get(number, 0) / counts[number] for number in of], ()


def _names(lines):
    """'path[i]' in a scan, 'window_max#1' for the second of a name."""
    uses, found = collections.Counter(), []
    for line in lines:
        name = line.name + "".join(f"[{index}]" for index in line.steps)
        found.append(name + (f"#{uses[name]}" if uses[name] else ""))
        uses[name] += 1
    return tuple(found)


def _bytes(params, trained):
    leaves = jax.tree.leaves(params)
    return sum(count * _itemsize(leaf.dtype) for leaf, count in zip(leaves, trained, strict=True))


def _itemsize(dtype):
    return getattr(dtype, "itemsize", 0)


_HEAD = ("layer", "kind", "output", "parameters", "operations", "forward", "backward")


def _title(summary):
    shapes = ", ".join("x".join(map(str, shape)) for shape in summary.x_shapes)
    return f"Summary: {len(summary.names)} layers, x {shapes}"


def _cells(summary):
    """The lines as text; past 64 the first and the last 32."""
    table = [
        (
            name,
            kind,
            "x".join(map(str, shape)) or "-",
            f"{int(summary.parameters[i]):,}",
            _count(summary.operations[i]),
            _memory(summary.forward_bytes[i]),
            _memory(summary.backward_bytes[i]),
        )
        for i, (name, kind, shape) in enumerate(zip(summary.names, summary.kinds, summary.shapes, strict=True))
    ]
    return abridged(table, ends=32)


def _line(row, wide):
    return "  ".join([*map(str.ljust, row[:3], wide), *map(str.rjust, row[3:], wide[3:])]).rstrip()


def _totals(summary):
    backward = float(np.sum(summary.backward_bytes))
    return [
        f"parameters {summary.total_parameters:,} ({_memory(summary.parameter_bytes)}, a gradient as much again)",
        f"operations {_count(summary.total_operations)} (a multiplication with an addition is two)",
        f"memory     outputs {_memory(float(np.sum(summary.forward_bytes)))}, kept for backward {_memory(backward)}",
    ]


def _remarks(summary):
    return [f"note: {text}" for text in summary.notes]


def _count(number):
    return "-" if math.isnan(number) else f"{int(number):,}"


def _memory(count):
    if math.isnan(count):
        return "-"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{int(count)} B"
