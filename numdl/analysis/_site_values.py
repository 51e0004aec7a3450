"""MEASURED: a function run with its sites in sight, and their inputs, cotangents and weights in one layout for all.

    inputs [parts, positions, fan_in],    cotangents [k, parts, positions, fan_out],    weight [parts, fan_in, fan_out]

Parts have weights of their own (steps of a scan, heads, groups of channels), positions share one. The layouts only
move numbers, of jax as of NumPy.
"""

import itertools

import jax.numpy as jnp
from jax import lax

from numdl.tracing._programs import read_from, scan_counts

# ---- running -------------------------------------------------------------------------------------------------------


def run(program, values, steps, probes, constants):
    """Outputs, and the data operands of the sites; a probe is added to each site's output.

    `steps` are {id of a step: index of its site}, `probes` {index: zeros like the output, scans before}.
    """
    slots = dict(zip(program.inputs, values)) | {s: constants[i] for s, i in program.captured.items()}
    found = {}
    for step in program.steps:
        values = [read_from(slots, read) for read in step.reads]
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
    return [read_from(slots, read) for read in program.outputs], found


def _inside(step, steps):
    """Indices of the sites in a step's programs."""
    here = [steps[id(inner)] for body in step.inner for inner in body.steps if id(inner) in steps]
    return here + [index for body in step.inner for inner in body.steps for index in _inside(inner, steps)]


def _plain(step, values, steps, probes, constants):
    return run(step.inner[0], values, steps, probes, constants)


def _scan(step, values, steps, probes, constants):
    consts, carries = scan_counts(step.params)
    fixed, carry, xs = values[:consts], values[consts : consts + carries], values[consts + carries :]

    def one(carry, scanned):
        outputs, found = run(step.inner[0], [*fixed, *carry, *scanned[0]], steps, scanned[1], constants)
        return outputs[:carries], (outputs[carries:], found)

    settings = {name: step.params[name] for name in ("length", "reverse", "unroll")}
    carry, (ys, found) = lax.scan(one, carry, (xs, probes), **settings)
    return [*carry, *ys], found


# ---- one layout for all sites ---------------------------------------------------------------------------------------


def inputs(site, a):
    """[parts, positions, fan_in] of what was the data operand, with the axes of the scans before it."""
    scans, params = len(site.lengths), site.step.params
    if site.step.name == "conv_general_dilated":
        a = _patches(params, site.program.avals[site.step.reads[1]].shape, a, scans)
        a = a.reshape(*a.shape[:-1], site.groups, a.shape[-1] // site.groups)  # [scans ..., positions, window, g, c]
        a = a.transpose([*range(scans), scans + 2, scans, scans + 1, scans + 3])
    else:
        operand = 1 - site.step.weight[0]
        contracted, batched = ([scans + axis for axis in axes[operand]] for axes in params["dimension_numbers"])
        rest = [axis for axis in range(scans, a.ndim) if axis not in contracted + batched]
        a = a.transpose([*range(scans), *batched, *rest, *contracted])
    return _sorted(site, a.reshape(*a.shape[:scans], site.groups, -1, site.fan_in))


def cotangents(site, d):
    """[k, parts, positions, fan_out] of the cotangents [k, scans ..., output of the contraction ...]."""
    scans, params = 1 + len(site.lengths), site.step.params
    if site.step.name == "conv_general_dilated":
        numbers = params["dimension_numbers"].out_spec
        d = d.transpose([*range(scans), *(scans + axis for axis in (numbers[0], *numbers[2:], numbers[1]))])
        d = d.reshape(*d.shape[:scans], -1, site.groups, site.fan_out)
        d = d.transpose([*range(scans), scans + 1, scans, scans + 2])
    elif site.step.weight[0] == 0:  # the weight's axes come before the data's
        first = scans + len(params["dimension_numbers"][1][0])
        count = site.program.avals[site.step.reads[0]].ndim - (first - scans) - len(site.contracted)
        d = d.transpose([*range(first), *range(first + count, d.ndim), *range(first, first + count)])
    d = d.reshape(*d.shape[:scans], site.groups, -1, site.fan_out)
    return _sorted(site, d, 1)


def weight(site, w):
    """[parts, fan_in, fan_out] of what was the weight operand, with the axes of the scans of its own before it."""
    scans, params = sum(site.own), site.step.params
    if site.step.name == "conv_general_dilated":
        numbers = params["dimension_numbers"].rhs_spec
        w = w.transpose([*range(scans), *(scans + axis for axis in (*numbers[2:], numbers[1], numbers[0]))])
        w = w.reshape(*w.shape[:scans], site.fan_in, site.groups, site.fan_out)
        w = w.transpose([*range(scans), scans + 1, scans, scans + 2])
    else:
        contracted, batched = (
            [scans + axis for axis in axes[site.step.weight[0]]] for axes in params["dimension_numbers"]
        )
        free = [axis for axis in range(scans, w.ndim) if axis not in contracted + batched]
        w = w.transpose([*range(scans), *batched, *contracted, *free])
    return w.reshape(site.parts, site.fan_in, site.fan_out)


def _sorted(site, array, lead=0):
    """[lead ..., parts, positions, features]: scans with parts of their own, groups; the others among the positions."""
    scans = lead + len(site.lengths)
    mine = [lead + axis for axis, own in enumerate(site.own) if own]
    shared = [lead + axis for axis, own in enumerate(site.own) if not own]
    order = [*range(lead), *mine, scans, *shared, scans + 1, scans + 2]
    return array.transpose(order).reshape(*array.shape[:lead], site.parts, site.positions, array.shape[-1])


def _patches(params, kernel, a, scans):
    """[scans ..., positions, window, channels] of a convolution's data: all that one output reads."""
    numbers = params["dimension_numbers"]
    order = [scans + axis for axis in (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])]
    a = a.transpose([*range(scans), *order])  # examples, space, channels
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    between = [(*pad, apart - 1) for pad, apart in zip(params["padding"], params["lhs_dilation"])]
    a = lax.pad(a, jnp.zeros((), a.dtype), [(0, 0, 0)] * (scans + 1) + between + [(0, 0, 0)])
    reach = [(w - 1) * d + 1 for w, d in zip(window, params["rhs_dilation"])]
    counts = [(n - r) // s + 1 for n, r, s in zip(a.shape[scans + 1 : -1], reach, params["window_strides"])]
    views = []
    for offset in itertools.product(*map(range, window)):
        begin = [o * d for o, d in zip(offset, params["rhs_dilation"])]
        cut = [slice(b, b + (c - 1) * s + 1, s) for b, c, s in zip(begin, counts, params["window_strides"])]
        views.append(a[(..., *cut, slice(None))])
    patches = jnp.stack(views, axis=-2)
    return patches.reshape(*a.shape[:scans], -1, *patches.shape[-2:])
