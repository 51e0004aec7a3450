"""MEASURED: the contractions of a function whose weight is a leaf of the parameters: where they are, what is what.

A *site* is such a contraction, a bias added to it included. A leaf that is read more than once has no site here.
"""

import dataclasses
import math
from typing import Any

from numdl.tracing._programs import CONTRACTIONS, REMAT, scan_counts

MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy", "slice"}


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
    groups: int = 1  # of a convolution, or batch axes (heads): each has a part of the leaf of its own

    @property
    def parts(self):
        """Weights of their own: steps times groups."""
        return math.prod(length for length, own in zip(self.lengths, self.own) if own) * self.groups


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
    return at(*found, leaf)


def at(program, step, own, lengths, leaf):
    """The site at a contraction of this leaf; None where it has no factors."""
    operand = step.weight[0]
    data = step.reads[1 - operand]
    if not isinstance(data, int):
        return None
    weight, out = (math.prod(program.avals[slot].shape) for slot in (step.reads[operand], step.writes[0]))
    if step.name == "conv_general_dilated":
        if operand != 1 or step.params["batch_group_count"] != 1:
            return None
        outputs = program.avals[step.reads[1]].shape[step.params["dimension_numbers"].rhs_spec[0]]
        axes, groups = (), step.params["feature_group_count"]
        fan_in = weight // max(outputs, 1)
    else:
        shape, (contracted, batched) = program.avals[data].shape, step.params["dimension_numbers"]
        axes = tuple(contracted[1 - operand])
        fan_in, groups = (math.prod(shape[axis] for axis in each) for each in (axes, batched[1 - operand]))
        outputs = weight // max(fan_in, 1)
    if 0 in (weight, out, fan_in):
        return None
    shared = math.prod(length for length, mine in zip(lengths, own) if not mine)
    return Site(
        step, program, leaf, None, own, lengths, axes, out // outputs * shared, fan_in, outputs // groups, groups
    )


def _follow(uses, program, slot, scans):
    """(program, contraction, own, lengths) at the only use of a slot, past what only moves numbers; else None."""
    step = uses.only(program, slot)
    if step is None:
        return None
    if step.weight is not None and step.name in CONTRACTIONS and step.reads[step.weight[0]] == slot:
        own, lengths = zip(*scans) if scans else ((), ())
        return program, step, own, lengths
    if step.name in MOVES:
        return _follow(uses, program, step.writes[0], scans)
    inside = enter(step, slot)
    return None if inside is None else _follow(uses, *inside[:2], (*scans, *inside[2]))


def _bias(uses, program, slot, scans):
    """(program, add, the other summand's slot, own) at the only use of a slot, past moves and broadcasts; or None."""
    step = uses.only(program, slot)
    if step is None:
        return None
    if step.name in ("add", "add_any"):
        other = [read for read in step.reads if read != slot]
        return (program, step, other[0], tuple(own for own, _ in scans)) if len(other) == 1 else None
    if step.name in MOVES or step.name == "broadcast_in_dim":
        return _bias(uses, program, step.writes[0], scans)
    inside = enter(step, slot)
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
        if step is None or step.name not in MOVES - {"slice"}:
            return False
        slot = step.writes[0]
    return size == site.fan_out and uses.only(program, slot) is add


def enter(step, slot):
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
