"""MEASURED: derivatives of one example's outputs, in factors: inputs and cotangents of a layer instead of its Jacobian.

A weight W that enters one contraction only, z = a W, has the gradient a' d, where d is the cotangent of z. So

    <a1' d1, a2' d2> = (a1 . a2) (d1 . d2)

and the Jacobian with respect to W is never made. A *site* is such a contraction, a bias added to it included. Where a
weight is used at several positions (a convolution, a token, a step of a recurrence) its gradient is a sum over them
and is made: it is no larger than the weight. All other leaves are differentiated as they are.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl.tracing._programs import CONTRACTIONS, REMAT, scan_counts

_MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy", "slice"}


@dataclasses.dataclass(frozen=True)
class Site:
    """A contraction whose weight is a leaf of the parameters, used nowhere else."""

    step: Any
    program: Any  # the step is in it
    leaf: int
    bias: int | None
    own: tuple  # for each scan around it, outermost first: whether each step has its own part of the leaf
    lengths: tuple  # of these scans
    contracted: tuple  # axes of the data operand that are summed; a convolution: its geometry is in the step
    positions: int  # uses of each part of the leaf
    fan_in: int
    fan_out: int

    @property
    def parts(self):
        """Steps with weights of their own."""
        return math.prod(length for length, own in zip(self.lengths, self.own) if own)


def sites(traced, leaves):
    """Sites of the parameters' leaves in a function traced at one example."""
    program, uses = traced.program, _Uses()
    slots = program.inputs[:leaves]
    found = [_weight_site(uses, program, slot, leaf) for leaf, slot in enumerate(slots)]
    found = [site for site in found if site]
    taken = {site.leaf for site in found}
    biases = [_bias(uses, program, slot, ()) for slot in slots]
    for leaf, place in enumerate(biases):
        for index, site in enumerate(found):
            if leaf not in taken and place and site.bias is None and _is_bias_of(uses, site, place):
                found[index] = dataclasses.replace(site, bias=leaf)
                taken.add(leaf)
    return tuple(found)


def moving(sites, count):
    """The sites whose leaf is one of the first `count`, the others' biases left out."""
    own = [site for site in sites if site.leaf < count]
    return tuple(
        dataclasses.replace(site, bias=None) if site.bias is not None and site.bias >= count else site for site in own
    )


def derivatives(traced, sites, selected, leaves, x, wide):
    """Per-site (inputs [parts, fan_in], cotangents [k, parts, fan_out]) and rows [k, P] of all else, of one example.

    A site with several positions contributes to the rows. `leaves` of the parameters, `x` [1, ...]; `selected` are the
    leaves to be differentiated as they are. Returns (outputs [k], factors, {leaf: rows}).
    """
    steps = {id(site.step): index for index, site in enumerate(sites)}
    shapes = [site.lengths + tuple(site.program.avals[site.step.writes[0]].shape) for site in sites]
    dtypes = [site.program.avals[site.step.writes[0]].dtype for site in sites]
    probes = {index: jnp.zeros(shape, dtype) for index, (shape, dtype) in enumerate(zip(shapes, dtypes))}

    def forward(chosen, probes):
        values = [chosen.get(index, leaf) for index, leaf in enumerate(leaves)] + jax.tree.leaves(x)
        outputs, inputs = _run(traced.program, values, steps, probes, traced.constants)
        return outputs[0].ravel(), inputs

    chosen = {index: leaves[index] for index in selected}
    outputs, pull, inputs = jax.vjp(forward, chosen, probes, has_aux=True)
    jacobian, cotangents = jax.vmap(pull)(jnp.eye(outputs.size, dtype=outputs.dtype))
    rows = {index: jacobian[index].reshape(outputs.size, -1).astype(wide) for index in selected}
    factors = {}
    for index, site in enumerate(sites):
        a, d = _inputs(site, inputs[index].astype(wide)), _cotangents(site, cotangents[index].astype(wide))
        if site.positions == 1:
            factors[index] = a[:, 0], d[:, :, 0]
        else:
            rows[site.leaf] = jnp.einsum("pti,kpto->kpio", a, d, precision="highest").reshape(outputs.size, -1)
    return outputs, factors, rows


def plain(traced, leaves, x):
    """The outputs [k] of one example, x [1, ...]."""
    outputs, _ = _run(traced.program, [*leaves, *jax.tree.leaves(x)], {}, {}, traced.constants)
    return outputs[0].ravel()


# ---- finding -------------------------------------------------------------------------------------------------------


class _Uses:
    """Who reads a slot; the lists of each program are made once."""

    def __init__(self):
        self.known = {}

    def only(self, program, slot):
        """The step that alone reads the slot, and once; else None."""
        if id(program) not in self.known:
            self.known[id(program)] = program.readers()
        readers = self.known[id(program)][slot]
        if len(readers) != 1 or readers[0] is None:
            return None
        return readers[0] if list(readers[0].reads).count(slot) == 1 else None


def _weight_site(uses, program, slot, leaf):
    found = _follow(uses, program, slot, ())
    if found is None:
        return None
    program, step, own, lengths = found
    operand = step.weight[0]
    data = step.reads[1 - operand]
    if not isinstance(data, int):
        return None
    shape, out = program.avals[data].shape, program.avals[step.writes[0]].shape
    weight = program.avals[step.reads[operand]].shape
    if step.name == "conv_general_dilated":
        return _convolution(program, step, leaf, own, lengths, weight, out, operand)
    contracted, batched = step.params["dimension_numbers"]
    if batched[0]:
        return None
    axes = tuple(contracted[1 - operand])
    fan_in = math.prod(shape[axis] for axis in axes)
    return _site(program, step, leaf, own, lengths, axes, fan_in, math.prod(weight) // max(fan_in, 1), math.prod(out))


def _convolution(program, step, leaf, own, lengths, weight, out, operand):
    grouped = step.params["feature_group_count"] != 1 or step.params["batch_group_count"] != 1
    if operand != 1 or grouped or any(d != 1 for d in step.params["lhs_dilation"]):
        return None
    fan_out = weight[step.params["dimension_numbers"].rhs_spec[0]]
    return _site(program, step, leaf, own, lengths, (), math.prod(weight) // fan_out, fan_out, math.prod(out))


def _site(program, step, leaf, own, lengths, contracted, fan_in, fan_out, size):
    if 0 in (fan_in, fan_out, size):
        return None
    shared = math.prod(length for length, mine in zip(lengths, own) if not mine)
    positions = size // fan_out * shared
    return Site(step, program, leaf, None, own, lengths, contracted, positions, fan_in, fan_out)


def _follow(uses, program, slot, scans):
    """(program, contraction, own, lengths) at the only use of a slot, past what only moves numbers; else None."""
    step = uses.only(program, slot)
    if step is None:
        return None
    if step.weight is not None and step.name in CONTRACTIONS and step.reads[step.weight[0]] == slot:
        own, lengths = zip(*scans) if scans else ((), ())
        return program, step, own, lengths
    if step.name in _MOVES:
        return _follow(uses, program, step.writes[0], scans)
    inside = _enter(step, slot)
    return None if inside is None else _follow(uses, *inside[:2], (*scans, *inside[2]))


def _bias(uses, program, slot, scans):
    """(program, add, the other summand's slot, own) at the only use of a slot, past moves and broadcasts; or None."""
    step = uses.only(program, slot)
    if step is None:
        return None
    if step.name in ("add", "add_any"):
        other = [read for read in step.reads if read != slot]
        return (program, step, other[0], tuple(own for own, _ in scans)) if len(other) == 1 else None
    if step.name in _MOVES or step.name == "broadcast_in_dim":
        return _bias(uses, program, step.writes[0], scans)
    inside = _enter(step, slot)
    return None if inside is None else _bias(uses, *inside[:2], (*scans, *inside[2]))


def _is_bias_of(uses, site, place):
    """Whether the cotangent of the bias is that of the site: one position, parts alike, added to nothing else."""
    program, add, other, own = place
    if site.positions != 1 or own != site.own or not all(own) or program is not site.program:
        return False
    size = math.prod(program.avals[add.writes[0]].shape)
    slot = site.step.writes[0]
    while slot != other:
        step = uses.only(program, slot)
        if step is None or step.name not in _MOVES - {"slice"}:
            return False
        slot = step.writes[0]
    return size == site.fan_out and uses.only(program, slot) is add


def _enter(step, slot):
    """(inner program, its slot, scan) where a slot goes on inside a scan or a checkpoint."""
    if not step.inner or not step.entered:
        return None
    place = list(step.reads).index(slot)
    if step.name in REMAT:
        return step.inner[0], step.inner[0].inputs[place], ()
    if step.name != "scan":
        return None
    consts, carries = scan_counts(step.params)
    if consts <= place < consts + carries:
        return None
    own = place >= consts
    return step.inner[0], step.inner[0].inputs[place], ((own, step.params["length"]),)


# ---- running -------------------------------------------------------------------------------------------------------


def _run(program, values, steps, probes, constants):
    """Outputs, and the data operands of the sites; a probe is added to each site's output."""
    slots = dict(zip(program.inputs, values)) | {s: constants[i] for s, i in program.captured.items()}
    found = {}
    for step in program.steps:
        values = [_value(slots, read) for read in step.reads]
        index = steps.get(id(step))
        if index is not None:
            found[index] = values[1 - step.weight[0]]
            results = [step.call(values)[0] + probes[index]]
        elif inner := _inside(step, steps):
            part = {i: probes[i] for i in inner}
            results, more = (_scan if step.name == "scan" else _plain)(step, values, steps, part, constants)
            found.update(more)
        else:
            results = step.call(values)
        slots.update(zip(step.writes, results))
    return [_value(slots, read) for read in program.outputs], found


def _value(slots, read):
    return slots[read] if isinstance(read, int) else np.asarray(read.val, read.aval.dtype)


def _inside(step, steps):
    """Indices of the sites in a step's programs."""
    here = [steps[id(inner)] for body in step.inner for inner in body.steps if id(inner) in steps]
    return here + [index for body in step.inner for inner in body.steps for index in _inside(inner, steps)]


def _plain(step, values, steps, probes, constants):
    return _run(step.inner[0], values, steps, probes, constants)


def _scan(step, values, steps, probes, constants):
    consts, carries = scan_counts(step.params)
    fixed, carry, xs = values[:consts], values[consts : consts + carries], values[consts + carries :]

    def one(carry, scanned):
        outputs, found = _run(step.inner[0], [*fixed, *carry, *scanned[0]], steps, scanned[1], constants)
        return outputs[:carries], (outputs[carries:], found)

    settings = {name: step.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, found) = lax.scan(one, carry, (xs, probes), **settings)
    return [*carry, *ys], found


# ---- one layout for all sites ---------------------------------------------------------------------------------------


def _inputs(site, a):
    """[parts, positions, fan_in] of what was the data operand, with the axes of the scans before it."""
    scans = len(site.lengths)
    if site.step.name == "conv_general_dilated":
        a = _patches(site.step.params, site.program.avals[site.step.reads[1]].shape, a, scans)
    else:
        last = [scans + axis for axis in site.contracted]
        a = a.transpose([axis for axis in range(a.ndim) if axis not in last] + last)
        a = a.reshape(*a.shape[: a.ndim - len(last)], site.fan_in)
    return _sorted(site, a, site.fan_in)


def _cotangents(site, d):
    """[k, parts, positions, fan_out] of the cotangents [k, scans ..., output of the contraction ...]."""
    scans, params = 1 + len(site.lengths), site.step.params
    if site.step.name == "conv_general_dilated":
        numbers = params["dimension_numbers"].out_spec
        d = d.transpose([*range(scans), *(scans + axis for axis in (numbers[0], *numbers[2:], numbers[1]))])
    elif site.step.weight[0] == 0:  # the weight's axes come first
        count = len(site.program.avals[site.step.reads[0]].shape) - len(site.contracted)
        d = jnp.moveaxis(d, range(scans, scans + count), range(d.ndim - count, d.ndim))
    d = d.reshape(*d.shape[:scans], -1, site.fan_out)
    return jax.vmap(lambda one: _sorted(site, one, site.fan_out))(d)


def _sorted(site, array, features):
    """Scans with parts of their own first, all others among the positions."""
    mine = [axis for axis, own in enumerate(site.own) if own]
    rest = [axis for axis in range(array.ndim - 1) if axis not in mine]
    return array.transpose([*mine, *rest, array.ndim - 1]).reshape(site.parts, site.positions, features)


def _patches(params, kernel, a, scans):
    """[scans ..., positions, window * channels] of a convolution's data: all that one output reads."""
    numbers = params["dimension_numbers"]
    order = [scans + axis for axis in (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])]
    a = a.transpose([*range(scans), *order])  # examples, space, channels
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    zero = jnp.zeros((), a.dtype)
    sides = [(0, 0, 0)] * (scans + 1) + [(*pad, 0) for pad in params["padding"]] + [(0, 0, 0)]
    a = lax.pad(a, zero, sides)
    reach = [(w - 1) * d + 1 for w, d in zip(window, params["rhs_dilation"])]
    counts = [(n - r) // s + 1 for n, r, s in zip(a.shape[scans + 1 : -1], reach, params["window_strides"])]
    views = []
    for offset in itertools.product(*map(range, window)):
        begin = [o * d for o, d in zip(offset, params["rhs_dilation"])]
        cut = [slice(b, b + (c - 1) * s + 1, s) for b, c, s in zip(begin, counts, params["window_strides"])]
        views.append(a[(..., *cut, slice(None))])
    patches = jnp.stack(views, axis=-2)
    return patches.reshape(*a.shape[:scans], -1, len(views) * a.shape[-1])
