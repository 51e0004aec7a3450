"""MEASURED: how many floating-point operations an equation of a program is, from its shapes alone.

A contraction is two for each product, one multiplication and one addition, products with padded zeros too; a function
of one number (exp, tanh, max, a division) is one for each number it makes, a sum one for each number added. Moving,
comparing, choosing, casting and integers are none.
"""

import math

import numpy as np

from numdl.tracing._programs import bodies

# fmt: off
_ARITHMETIC = {
    "abs", "acos", "acosh", "add", "add_any", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "cbrt", "ceil", "clamp", "cos", "cosh", "digamma", "div", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor",
    "igamma", "igamma_grad_a", "igammac", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "mul",
    "neg", "polygamma", "pow", "regularized_incomplete_beta", "rem", "round", "rsqrt", "sign", "sin", "sinh", "sqrt",
    "square", "sub", "tan", "tanh", "zeta", "one_minus_square", "cumsum", "cumprod", "cummax", "cummin",
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}
_WINDOWS = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}
_ADDED = {"scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-max", "scatter_max", "scatter-min",
          "scatter_min", "scatter-sub", "scatter_sub"}
_SILENT = {
    "and", "argmax", "argmin", "bitcast_convert_type", "broadcast_in_dim", "clz", "complex", "concatenate", "conj",
    "convert_element_type", "copy", "copy_p", "device_put", "dynamic_slice", "dynamic_update_slice", "eq", "eq_to",
    "gather", "ge", "gt", "imag", "iota", "is_finite", "le", "le_to", "lt", "lt_to", "name", "ne", "nextafter", "not",
    "optimization_barrier", "or", "pad", "population_count", "psum_invariant", "pvary", "random_bits", "random_clone",
    "random_fold_in", "random_gamma", "random_seed", "random_split", "random_unwrap", "random_wrap", "real",
    "reduce_and", "reduce_or", "reduce_precision", "reduce_xor", "reshape", "rev", "scatter", "select_n",
    "sharding_constraint", "shift_left", "shift_right_arithmetic", "shift_right_logical", "slice", "sort", "split",
    "squeeze", "stack", "stop_gradient", "threefry2x32", "tile", "top_k", "transpose", "xor", "zeros_like", "empty",
}
# fmt: on


def operations(equation):
    """(how many, notes): nan where it is not known."""
    name = equation.primitive.name
    before, after = ([v.aval for v in side] for side in (equation.invars, equation.outvars))
    if name == "dot_general":
        contracted = equation.params["dimension_numbers"][0][0]
        return 2 * _size(after[0]) * math.prod(before[0].shape[axis] for axis in contracted), ()
    if name == "conv_general_dilated":
        numbers, window = equation.params["dimension_numbers"], before[1].shape
        products = math.prod(window[axis] for axis in numbers.rhs_spec[1:])
        return 2 * _size(after[0]) * products, ()
    if name in _REDUCTIONS:
        return _floating(after[0]) * (_size(before[0]) - _size(after[0])), ()
    if name in _WINDOWS:
        return _floating(after[0]) * _size(after[0]) * (math.prod(equation.params["window_dimensions"]) - 1), ()
    if name in _ARITHMETIC:
        return sum(_floating(aval) * _size(aval) for aval in after), ()
    if name in _ADDED:
        return _floating(after[0]) * _size(before[2]), ()
    return (0, ()) if name in _SILENT else _inside(equation, name)


def _inside(equation, name):
    """Of an equation that holds programs, or of one that is not known."""
    found = [_all(body) for body in bodies(equation)]
    counts, notes = [count for count, _ in found], tuple(dict.fromkeys(n for _, more in found for n in more))
    if name == "while":
        return math.nan, (*notes, "while: how often it runs is not known")
    if name == "cond":
        return max(counts), (*notes, "cond: the branch of the most operations is counted")
    if name == "scan":
        return equation.params["length"] * counts[0], notes
    if not found:
        return 0, (f"{name}: not counted",)
    return counts[0], notes


def _all(body):
    found = [operations(equation) for equation in getattr(body, "jaxpr", body).eqns]
    return sum(count for count, _ in found), tuple(dict.fromkeys(note for _, notes in found for note in notes))


def _size(aval):
    return math.prod(aval.shape)


def _floating(aval):
    """1 for real and complex numbers, 0 for integers and keys."""
    return int(np.issubdtype(aval.dtype, np.inexact) or str(aval.dtype) in _NARROW)


_NARROW = {"bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz"}
