"""MEASURED: what a tangent kernel will cost by each method, counted from shapes, and the blocks in which it fits."""

import dataclasses
import math

import numpy as np

from numdl.analysis.curvature import _memory
from numdl.records import record, static

METHODS = ("layers", "jacobian", "products")
_LARGEST = 2**31  # bytes that a call takes without being told: half of what is free, at most 2 GiB
_COPIES = 3  # of a block of the kernel: the sum, one layer's part and its product with the inputs'


@record
class CostEstimate:
    """The plan of a call to `ntk`; nothing is computed or compiled to know it."""

    method: str = static()  # layers | jacobian | products
    block: int = static()  # examples at a time, on either side
    kept: bool = static()  # whether the derivatives of all examples are kept, or computed again for each block
    whole: bool = static()  # whether they are computed at once: a convolution within a loop is slow on a CPU
    bytes: int  # held at once beside parameters and data, the kernel itself included
    flops: float  # multiplications and additions
    flops_of: tuple = static()  # of each method in `METHODS`


@dataclasses.dataclass(frozen=True)
class Counts:
    """Numbers per example, but for the last five."""

    factors: int  # inputs and cotangents of sites, all outputs
    rows: int  # rows of the Jacobian, all outputs
    passing: int  # held while an example is differentiated
    states: int  # of the layers
    forward: float  # flops of one evaluation
    made: float  # flops to make rows of the Jacobian, beside the cotangents
    per_pair: float  # flops of a pair of examples
    outputs: int
    parameters: int
    itemsize: int
    full: bool


def counted(traced, sites, rest, leaves, outputs, itemsize, full):
    """Counts of a method with these sites and the leaves `rest` as rows."""
    single = [site for site in sites if site.positions == 1]
    several = [site for site in sites if site.positions > 1]
    rows = sum(math.prod(np.shape(leaves[i])) for i in rest)
    rows += sum(site.parts * site.fan_in * site.fan_out for site in several)
    states = sum(math.prod(layer.shape) * math.prod(layer.steps) for layer in traced.layers)
    forward = sum(2.0 * layer.fan_in * math.prod(layer.shape) * math.prod(layer.steps) for layer in traced.layers)
    uses = [site.parts * site.positions * (site.fan_in + outputs * site.fan_out) for site in several]
    made = sum(2.0 * outputs * s.parts * s.positions * s.fan_in * s.fan_out for s in several)
    seen = sum(2.0 * s.parts * s.positions * s.fan_in * s.fan_out for s in sites)
    made += outputs * max(forward - seen, 0.0)  # the weights among `rest`
    pairs = outputs**2 if full else outputs
    per_pair = 2.0 * pairs * rows
    per_pair += sum(s.parts * (2.0 * s.fan_in + pairs * (2.0 * s.fan_out + 1)) for s in single)
    return Counts(
        factors=sum(s.parts * (s.fan_in + outputs * s.fan_out) for s in single),
        rows=outputs * rows,
        passing=sum(uses) + 4 * outputs * states,
        states=states,
        forward=forward,
        made=made,
        per_pair=per_pair,
        outputs=outputs,
        parameters=sum(math.prod(np.shape(leaf)) for leaf in leaves),
        itemsize=itemsize,
        full=full,
    )


def planned(counts, n1, n2, symmetric, method, limit):
    """The CostEstimate of the cheapest of the methods, or of the one asked for, within the memory limit.

    `counts` is {"layers": Counts, "jacobian": Counts}.
    """
    limit = min(_LARGEST, _memory.available() / 2) if limit is None else limit
    plans = {name: _plan(name, counts[name], n1, n2, symmetric, limit) for name in counts}
    plans["products"] = _plan_products(counts["jacobian"], n1, n2, limit)
    costs = tuple(plans[name].flops for name in METHODS)
    if method == "auto":
        fitting = [plan for plan in plans.values() if plan.bytes <= limit]
        chosen = min(fitting or [min(plans.values(), key=lambda plan: plan.bytes)], key=lambda plan: plan.flops)
    else:
        chosen = plans[method]
    if chosen.bytes > limit:
        raise MemoryError(
            f"ntk needs {chosen.bytes:.3g} bytes at least by method {chosen.method!r} and memory_limit is {limit:.3g}: "
            "raise it, or compute the kernel for parts of x1 and x2"
        )
    return dataclasses.replace(chosen, flops_of=costs)


def _plan(name, counts, n1, n2, symmetric, limit):
    """The largest block that fits; derivatives of all examples kept if that fits."""
    k = counts.outputs
    entries = k**2 if counts.full else 1
    examples = n1 if symmetric else n1 + n2
    stored = counts.factors + counts.rows
    derivatives = examples * (counts.made + counts.forward * (1.0 + k))
    pairs = n1 * n2 * counts.per_pair
    block = min(32 if counts.full else 128, max(n1, n2))
    while True:
        padded1, padded2 = (-(-n // block) * block for n in (n1, n2))
        held = _COPIES * block**2 * entries + block * counts.passing + 3 * padded1 * padded2 * entries
        padded = padded1 + (0 if symmetric else padded2)
        kept_bytes = counts.itemsize * (held + (padded + block) * stored)
        whole_bytes = kept_bytes + counts.itemsize * padded * (counts.passing + stored)
        again_bytes = counts.itemsize * (held + 4 * block * stored)
        share = 0.5 * (1 + block / padded1) if symmetric else 1.0
        if whole_bytes <= limit:
            return CostEstimate(name, block, True, True, int(whole_bytes), derivatives + share * pairs, ())
        if kept_bytes <= limit:
            return CostEstimate(name, block, True, False, int(kept_bytes), derivatives + share * pairs, ())
        if again_bytes <= limit or block == 1:
            repeated = derivatives * (1 + share * padded1 / block)
            return CostEstimate(name, block, False, False, int(again_bytes), repeated + share * pairs, ())
        block = -(-block // 2)


def _plan_products(counts, n1, n2, limit):
    k, block = counts.outputs, n1
    entries = k**2 if counts.full else 1
    while True:
        padded = -(-n1 // block) * block
        held = 4 * counts.parameters + (block + 1) * (4 * counts.states + 2 * k) + 2 * padded * n2 * entries
        if counts.itemsize * held <= limit or block == 1:
            break
        block = -(-block // 2)
    pulls = padded / block * n2 * (1 + 2.0 * k) * counts.forward
    flops = pulls + n1 * n2 * k * 2.0 * counts.forward
    return CostEstimate("products", block, False, False, int(counts.itemsize * held), flops, ())
