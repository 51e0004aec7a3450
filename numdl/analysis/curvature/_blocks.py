"""MEASURED: the blocks of a Kronecker-factored matrix: which entries of which leaves each has, and where they are used.

Uses of the same entries in the same order are positions of one block. Uses of other entries of a leaf (a fused weight
cut into parts) are other blocks. A leaf used in any other way, or whose uses overlap, is no block's.
"""

import dataclasses
import math

import numpy as np

from numdl.analysis import _site_values, _sites
from numdl.analysis.curvature import _leaves


@dataclasses.dataclass(frozen=True)
class Use:
    """One contraction of a block's entries with data."""

    site: _sites.Site
    parts: np.ndarray  # of the site's parts that the block has
    rows: np.ndarray  # of its inputs
    columns: np.ndarray  # of its outputs
    scale: float  # of the weight where it is contracted
    constant: float = 0.0  # the input that stands for the bias


@dataclasses.dataclass(frozen=True)
class Block:
    """Entries of a leaf as weights [parts, inputs, outputs], of another as their bias."""

    leaf: int
    index: np.ndarray  # [parts, inputs, outputs]
    uses: tuple
    bias: int | None = None
    bias_index: np.ndarray | None = None  # [parts, outputs]

    @property
    def positions(self):
        """How often an example uses each weight."""
        return sum(use.site.positions for use in self.uses)


def find(traced, shapes):
    """(blocks, {leaf: why it is in none}) of the first leaves of a function traced at one example."""
    program, found, elsewhere, sums = traced.program, [], {}, {}
    for leaf, shape in enumerate(shapes):
        try:
            ends = _leaves.ends(program, program.inputs[leaf], shape)
            if ends and not any(end.contracts for end in ends):
                sums[leaf] = ends
                continue
            found += _of_leaf(leaf, ends)
        except _leaves.Elsewhere as reason:
            elsewhere[leaf] = str(reason)
    for leaf, ends in sums.items():
        pairs = ((place, _biased(block, ends)) for place, block in enumerate(found))
        place, block = next((pair for pair in pairs if pair[1] is not None), (None, None))
        if place is None or block is None:
            elsewhere[leaf] = "added where no weight of a block is alone"
        else:
            found[place] = dataclasses.replace(block, bias=leaf)
    return tuple(found), elsewhere


def _of_leaf(leaf, ends):
    if not ends:
        raise _leaves.Elsewhere("unused")
    blocks = []
    for end in ends:
        if not end.contracts:
            raise _leaves.Elsewhere("contracted and added")
        index, use = _use(leaf, end)
        same = next((i for i, block in enumerate(blocks) if np.array_equal(block.index, index)), None)
        if same is None:
            blocks.append(Block(leaf, index, (use,)))
        else:
            blocks[same] = dataclasses.replace(blocks[same], uses=(*blocks[same].uses, use))
    entries = np.concatenate([block.index.ravel() for block in blocks])
    if len(np.unique(entries)) != len(entries):
        raise _leaves.Elsewhere("contracted in ways that overlap")
    return blocks


def _use(leaf, end):
    """(index [parts, inputs, outputs], Use) of one contraction."""
    site = _sites.at(end.program, end.step, end.own, end.lengths, leaf)
    if site is None:
        raise _leaves.Elsewhere(f"{end.step.name} without factors")
    index = _site_values.weight(site, end.index)
    own = [np.flatnonzero((index >= 0).any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    index = index[np.ix_(*own)]
    if (index < 0).any():
        raise _leaves.Elsewhere("a part of a weight that is not a block of it")
    return index, Use(site, *own, end.scale)


# ---- biases --------------------------------------------------------------------------------------------------------


def _biased(block, ends):
    """The block with the leaf of these sums as its bias, one behind each of its uses; None if it is not."""
    if block.bias is not None or len(block.uses) != len(ends):
        return None
    index, uses = None, []
    for use in block.uses:
        found = [pair for pair in (_bias_index(use, end) for end in ends) if pair is not None]
        if len(found) != 1 or (index is not None and not np.array_equal(index, found[0][0])):
            return None
        index = found[0][0]
        uses.append(dataclasses.replace(use, constant=found[0][1]))
    unique = index is not None and len(np.unique(index)) == index.size
    return dataclasses.replace(block, uses=tuple(uses), bias_index=index) if unique else None


def _bias_index(use, end):
    """(entries [parts, outputs] that a sum adds to a use's outputs, alike at all positions; the input they have)."""
    site, step = use.site, end.step
    other = [read for read in step.reads if read != end.slot]
    if end.program is not site.program or end.own != site.own or len(other) != 1 or not isinstance(other[0], int):
        return None
    carried = _leaves.carried(site.program, site.step.writes[0], other[0])
    out = site.program.avals[step.writes[0]].shape
    if carried is None or carried[0].size != math.prod(out):
        return None
    lead = end.index.shape[: sum(end.own)]
    added = np.broadcast_to(end.index, (*lead, *out)).reshape(*lead, -1)
    back = np.empty_like(added)
    back[..., carried[0].ravel()] = added
    index = _at_outputs(use, back)
    return None if index is None else (index, end.scale / carried[1])


def _at_outputs(use, index):
    site = use.site
    shape = site.program.avals[site.step.writes[0]].shape
    lengths = iter(index.shape[:-1])
    wide = [next(lengths) if own else 1 for own in site.own]
    full = np.broadcast_to(index.reshape(*wide, *shape), (*site.lengths, *shape))
    found = _site_values.cotangents(site, full[None])[0]  # [parts, positions, fan_out]
    own = [np.flatnonzero((found >= 0).any(axes)) for axes in ((1, 2), (0, 1))]
    alike = all(np.array_equal(mine, theirs) for mine, theirs in zip(own, (use.parts, use.columns)))
    if not alike or (found != found[:, :1]).any():
        return None
    return found[:, 0][np.ix_(*own)]
