"""What each primitive does to axes: `after` gives its outputs' layouts for one source, given those of its inputs."""

from numdl.tracing import _layouts, _mixing
from numdl.tracing._layouts import Layout, blank, drop, followed, inexact, join, merged, other, reshape, stacked

# fmt: off
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e",
    "bessel_i1e", "cbrt", "ceil", "clamp", "clz", "complex", "conj", "convert_element_type", "copy", "copy_p",
    "cos", "cosh", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "device_put", "digamma", "div",
    "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igamma_grad_a", "igammac", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma", "log", "log1p",
    "logistic", "lt", "lt_to", "max", "min", "mul", "name", "ne", "neg", "nextafter", "not",
    "optimization_barrier", "or", "polygamma", "population_count", "pow", "psum_invariant", "pvary", "real",
    "reduce_precision", "regularized_incomplete_beta", "rem", "round", "rsqrt", "select_n",
    "sharding_constraint", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor", "zeta", "zeros_like",
}
REDUCTIONS = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor",
    "reduce", "argmax", "argmin",
}
# fmt: on


def after(step, given, before, shapes):
    """The outputs' layouts. `given`: a layout of each input, None if it does not depend on the source."""
    rule = RULES.get(step.name)
    if rule is None:
        return [_unknown(step.name, given, shape) for shape in shapes]
    found = rule(step.params, given, before, shapes)
    return found if isinstance(found, list) else [found]


def _unknown(name, given, shape):
    taken = join(given, ()).taken
    if not shape:
        return Layout((), taken)
    known = any(layout is not None and (_layouts.is_followed(layout) or layout.lost) for layout in given)
    return Layout(blank(shape), taken, f"{name} is not followed" if known else None)


def _elementwise(params, given, before, shapes):
    if len(shapes) > 1 and len(given) == len(shapes):
        return [join([one], shape) for one, shape in zip(given, shapes)]
    return [join(given, shape) for shape in shapes]


def _reduce(params, given, before, shapes):
    axes = params["axes"] if "axes" in params else params["dimensions"]
    kept = [one and one._replace(axes=tuple(p for i, p in enumerate(one.axes) if i not in axes)) for one in given]
    return [join(kept, shape) for shape in shapes]


def _transpose(params, given, before, shapes):
    (one,) = given
    return one._replace(axes=tuple(one.axes[axis] for axis in params["permutation"]))


def _squeeze(params, given, before, shapes):
    return drop(given[0], params["dimensions"])


def _reshape(params, given, before, shapes):
    return reshape(given[0], shapes[0])


def _broadcast(params, given, before, shapes):
    one, axes = given[0], list(blank(shapes[0]))
    if one is None:
        return join(given, shapes[0])
    for axis, target in enumerate(params["broadcast_dimensions"]):
        if before[0][axis] == shapes[0][target]:
            axes[target] = one.axes[axis]
    return one._replace(axes=tuple(axes))


def _concatenate(params, given, before, shapes):
    along, size = params["dimension"], shapes[0]
    free = [one and one._replace(axes=_put(one.axes, along, other(size[along]))) for one in given]
    pieces = [other(shape[along]) if one is None else one.axes[along] for one, shape in zip(given, before)]
    found = join(free, size)
    return found._replace(axes=_put(found.axes, along, stacked(pieces)))


def _stack(params, given, before, shapes):
    found, axis = join(given, before[0]), params.get("axis", params.get("dimension", 0))
    axes = (*found.axes[:axis], other(shapes[0][axis]), *found.axes[axis:])
    return found._replace(axes=axes)


def _tile(params, given, before, shapes):
    """Copies one after the other: an axis that is repeated becomes copies, the major part, times what it was."""
    pairs = zip(given[0].axes, before[0], shapes[0])
    return given[0]._replace(axes=tuple(p if a == b else merged((*other(b // a), *p)) for p, a, b in pairs))


def _pad(params, given, before, shapes):
    one = given[0]
    if one is None:
        return join(given, shapes[0])
    axes = [
        parts if config == (0, 0, 0) else inexact(parts, size)
        for parts, config, size in zip(one.axes, params["padding_config"], shapes[0])
    ]
    return one._replace(axes=tuple(axes))


def _slice(params, given, before, shapes):
    one, strides = given[0], params["strides"] or (1,) * len(before[0])
    bounds = zip(one.axes, before[0], params["start_indices"], params["limit_indices"], strides)
    return one._replace(axes=tuple(_layouts.cut(*bound) for bound in bounds))


def _split(params, given, before, shapes):
    axis, one, begin, found = params["axis"], given[0], 0, []
    for shape in shapes:
        parts = _layouts.cut(one.axes[axis], before[0][axis], begin, begin + shape[axis])
        found.append(one._replace(axes=_put(one.axes, axis, parts)))
        begin += shape[axis]
    return found


def _unstack(params, given, before, shapes):
    axis, one = params["axis"], given[0]
    cut = one._replace(axes=_put(one.axes, axis, _layouts.cut(one.axes[axis], before[0][axis], 0, 1)))
    return [drop(cut, (axis,)) for _ in shapes]


def _resized(one, given, old, new):
    """Axes whose length is unchanged are whole, of the others a part is left."""
    if one is None:
        return join(given, ())._replace(axes=blank(new))
    axes = tuple(parts if a == b else inexact(parts, b) for parts, a, b in zip(one.axes, old, new))
    return one._replace(axes=axes)


def _dynamic_update_slice(params, given, before, shapes):
    update = None if given[1] is None else _resized(given[1], given, before[1], shapes[0])
    if update is not None:
        whole = zip(update.axes, before[1], shapes[0])
        update = update._replace(axes=tuple(parts if a == b else other(b) for parts, a, b in whole))
    return join([given[0], update], shapes[0])


def _rev(params, given, before, shapes):
    return _permuted(given[0], before[0], params["dimensions"])


def _permuted(one, shape, dimensions):
    axes = (inexact(p, n) if i in dimensions else p for i, (p, n) in enumerate(zip(one.axes, shape)))
    return one._replace(axes=tuple(axes))


def _sort(params, given, before, shapes):
    found = join(given, shapes[0])
    return [_permuted(found, shape, (params["dimension"],)) for shape in shapes]


def _top_k(params, given, before, shapes):
    axis = params.get("axis", -1) % len(before[0])
    axes = _put(given[0].axes, axis, inexact(given[0].axes[axis], shapes[0][axis]))
    return [given[0]._replace(axes=axes) for _ in shapes]


def _window(params, given, before, shapes):
    """A pooling: axes over which the window does not reach are whole."""
    if given[0] is None:
        return _unknown("a window", given, shapes[0])
    dimensions = params["window_dimensions"]
    sizes = zip(given[0].axes, dimensions, before[0], shapes[0])
    axes = tuple(parts if w == 1 and a == b else inexact(parts, b) for parts, w, a, b in sizes)
    return given[0]._replace(axes=axes)


def _dot(params, given, before, shapes):
    contracted, batched = params["dimension_numbers"]
    found = []
    for side, one in enumerate(given):
        rest = [a for a in range(len(before[side])) if a not in (*contracted[side], *batched[side])]
        axes = [batched[side], rest]
        found.append([[other(before[side][a]) if one is None else one.axes[a] for a in group] for group in axes])
    (left, free), (right, more) = found
    sizes = shapes[0][: len(left)]
    batch = join([Layout(tuple(left)), Layout(tuple(right))], sizes)
    lost = next((one.lost for one in given if one is not None and one.lost), None)
    axes = (*batch.axes, *free, *more)
    known = any(map(followed, axes))
    return Layout(axes, join(given, ()).taken, batch.lost or (None if known else lost))


def _ragged(params, given, before, shapes):
    numbers = params["ragged_dot_dimension_numbers"].dot_dimension_numbers
    return _dot({"dimension_numbers": numbers}, given, before, shapes) if len(before[1]) < 3 else _rows(given, shapes)


def _rows(given, shapes):
    """Each row of the first operand makes a row; what the groups do is not followed."""
    if given[0] is None:
        return _unknown("ragged_dot_general", given, shapes[0])
    return given[0]._replace(axes=(given[0].axes[0], *blank(shapes[0][1:])))


def _convolution(params, given, before, shapes):
    numbers, shape = params["dimension_numbers"], shapes[0]
    axes = list(blank(shape))
    lhs, rhs = given[0], given[1]
    left, right, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    groups, batches = params["feature_group_count"], params["batch_group_count"]
    if rhs is not None and groups == batches == 1:
        axes[out[1]] = rhs.axes[right[0]]
    if lhs is not None:
        major, minor = _major(lhs.axes[left[0]], batches)
        axes[out[0]] = minor
        ahead = _major(lhs.axes[left[1]], groups)[0] if groups > 1 else major
        if groups * batches > 1 and followed(ahead):
            axes[out[1]] = merged((*ahead, *other(shape[out[1]] // (groups * batches))))
        for i in range(2, len(left)):
            reach, size = before[1][right[i]], before[0][left[i]]
            if followed(lhs.axes[left[i]]) and reach == 1 and size == shape[out[i]]:
                axes[out[i]] = lhs.axes[left[i]]
    lost = next((one.lost for one in given if one is not None and one.lost), None)
    return Layout(tuple(axes), join(given, ()).taken, None if any(map(followed, axes)) else lost)


def _major(parts, count):
    """(leading parts that make `count` together, the rest)."""
    if count == 1:
        return (), parts
    size = 1
    for part in parts:
        size *= part.size
    split = reshape(Layout((parts,)), (count, size // count))
    return split.axes


def _gather(params, given, before, shapes):
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    operand, indices = given[0], given[1]
    axes = list(blank(shapes[0]))
    batch = [a for a in range(len(shapes[0])) if a not in numbers.offset_dims]
    if indices is not None:
        for target, parts in zip(batch, indices.axes):
            axes[target] = parts
    taken, lost = join(given, ()).taken, None if indices is None else indices.lost
    if operand is not None:
        paired = dict(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims))
        gone = {*numbers.collapsed_slice_dims, *paired}
        kept = [a for a in range(len(before[0])) if a not in gone]
        for target, axis in zip(numbers.offset_dims, kept):
            whole = sizes[axis] == before[0][axis]
            axes[target] = operand.axes[axis] if whole else inexact(operand.axes[axis], sizes[axis])
        for axis, source in paired.items():
            target = batch[source]
            axes[target] = operand.axes[axis] if followed(operand.axes[axis]) else axes[target]
        open_ = [
            t for i, t in enumerate(batch) if i not in paired.values() and not followed(axes[t]) and shapes[0][t] > 1
        ]
        picked = []
        for axis in numbers.collapsed_slice_dims:
            if open_ and followed(operand.axes[axis]):  # several entries are picked: the axis in another order
                axes[open_[0]] = inexact(operand.axes[axis], shapes[0][open_[0]])
            else:
                picked += [part.axis for part in operand.axes[axis] if part.axis is not None]
        taken = (*taken, *(axis for axis in picked if axis not in taken))
        lost = lost or operand.lost
    known = any(map(followed, axes))
    return Layout(tuple(axes), tuple(a for a in taken if not known or a not in _axes(axes)), None if known else lost)


def _axes(axes):
    return {part.axis for parts in axes for part in parts}


def _scatter(params, given, before, shapes):
    """What is scattered into keeps its axes; whole windows of what is put there keep theirs."""
    numbers, (operand, _, updates) = params["dimension_numbers"], given
    gone = {*numbers.inserted_window_dims, *getattr(numbers, "operand_batching_dims", ())}
    found = [operand]
    if updates is not None:
        axes = list(blank(shapes[0]))
        kept = [a for a in range(len(shapes[0])) if a not in gone]
        for source, axis in zip(numbers.update_window_dims, kept):
            if before[2][source] == shapes[0][axis]:
                axes[axis] = updates.axes[source]
        scattered = [a for a in range(len(before[2])) if a not in numbers.update_window_dims]
        pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims)
        for axis, source in pairs:
            axes[axis] = updates.axes[scattered[source]]
        away = [
            updates.axes[a] for a in range(len(before[2])) if updates.axes[a] not in axes and followed(updates.axes[a])
        ]
        lost = updates.lost or ("scatter is not followed" if away else None)
        found.append(updates._replace(axes=tuple(axes), lost=lost))
    return join(found, shapes[0])


def _put(axes, index, parts):
    return tuple(parts if i == index else old for i, old in enumerate(axes))


RULES = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **_mixing.RULES,
    **dict.fromkeys(
        ["reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window", "cumulative_window"], _window
    ),
    **dict.fromkeys(["scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max", "scatter-sub"], _scatter),
    **dict.fromkeys(["scatter_add", "scatter_mul", "scatter_min", "scatter_max", "scatter_sub"], _scatter),
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "unstack": _unstack,
    "dynamic_slice": lambda params, given, before, shapes: _resized(given[0], given, before[0], shapes[0]),
    "dynamic_update_slice": _dynamic_update_slice,
    "rev": _rev,
    "sort": _sort,
    "top_k": _top_k,
    "dot_general": _dot,
    "ragged_dot": lambda params, given, before, shapes: _rows(given, shapes),
    "ragged_dot_general": _ragged,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}
