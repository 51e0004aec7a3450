"""Every public function of the package with a good call, and the bad calls that follow from the kinds of its arguments.

    functions()        name -> function: what the packages' faces offer
    bad_calls(name)    the good call with one argument replaced by a bad value of its kind, for every argument and value

A function that is not registered fails the test. What an argument's name means everywhere is said once, in `names`.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable
from typing import Any

import numpy as np

import numdl

# Modules that no face offers: helpers of one package.
INTERNAL = {
    "checks",
    "lazy",
    "networks.fields",
    "networks.stages",
}
# Functions whose good call needs what a test does not have: files, a record, an axes.
NOT_RUN = (
    "audit.watching.read",
    "data.cifar",
    "data.fashion_mnist",
    "data.fetch",
    "data.idx",
    "data.mnist",
    "data.npz",
    "data.tables",
    "optimize.train.read",
    "parallel.connect",
    "parallel.needs",
    "parallel.restore",
    "parallel.save",
    "parallel.sweep",
    "plotting.layers",
    "plotting.phase_diagram",
    "plotting.tidy",
    "reporting.figure_image",
    "reporting.load",
    "reporting.publish",
    "reporting.writable",
)
# What is offered without a door, and why.
UNCHECKED = {
    "audit.evidence.empty": "a record made by hand",
    "audit.measure.everything": "takes what the door of examine let in",
    "audit.measure.sharpness": "takes what the door of examine let in",
    "audit.measure.attending": "takes what the door of examine let in",
    "audit.measure.signal": "takes what the door of examine let in",
    "audit.measure.widths": "takes what the door of examine let in",
    "audit.trial.ahead": "takes what the door of examine let in",
    "audit.trial.chunks": "takes what the door of examine let in",
    "audit.trial.orders": "takes what the door of examine let in",
    "audit.predict.everything": "takes measured evidence",
    "audit.remedies.repair": "takes what the door of examine let in",
    "audit.rules.judge": "takes evidence",
    "audit.rules.table": "no arguments",
    "audit.trial.run": "takes what the door of examine let in",
    "cli.main": "prints what is wrong and returns an exit code",
    "krylov.trace.weighted_sums": "a helper of krylov",
    "networks.core.fitting": "a check itself",
    "networks.core.one_example": "a check itself",
    "networks.core.segment": "a check itself",
    "krylov.lanczos.settings": "a check itself",
    "networks.initializers.float_dtype": "a check itself",
    "ode.adjoints.backsolve": "called by the integrators",
    "ode.adjoints.checkpointed": "called by the integrators",
    "ode.adjoints.direct": "called by the integrators",
    "ode.adjoints.reversible": "called by the integrators",
    "ode.adjoints.square_root": "called by the integrators",
    "parallel.is_first": "no arguments",
    "quadrature.expect": "traceable, says so",
    "quadrature.expect_each": "traceable, says so",
    "quadrature.expect_product": "traceable, says so",
    "records.abridged": "rows of a table",
    "records.static": "a field",
    "reporting.arrays": "takes any record",
    "reporting.by_origin": "of claims, which check themselves",
    "reporting.details": "a piece of a page: any text",
    "reporting.environment": "takes what there is",
    "reporting.margin_text": "of a claim's margin, any number",
    "reporting.margins_text": "of claims, which check themselves",
    "reporting.versions": "takes what there is",
    "reporting.glossary": "a piece of a page: any text",
    "reporting.page": "a piece of a page: any text",
    "reporting.printable": "any text",
    "reporting.prose": "a piece of a page: any text",
    "reporting.run_section": "a piece of a page",
    "reporting.save": "checked by the command line",
    "reporting.scoreboard": "a piece of a page",
    "reporting.scoreboard_text": "a piece of a page",
    "reporting.section": "a piece of a page: any text",
    "reporting.tag": "a piece of a page: any text",
    "trees.matching": "a check itself",
    "trees.name_of": "takes a path of jax.tree_util",
}


@dataclasses.dataclass(frozen=True)
class BadCall:
    """A call with one bad argument."""

    function: str
    argument: str
    value: Any
    call: Callable

    def __str__(self):
        return f"{self.function}({self.argument}={shown(self.value)})"


def functions():
    """name -> function for everything that the faces of the packages offer, each function once."""
    found = {}
    for name, function in _walk(numdl.__path__, "numdl."):
        if function not in found.values():
            found[name] = function
    return found


def calls():
    """name -> {argument: kinds.Argument} of all that is registered, and the arguments a good call needs besides."""
    from tests.registry import analysis, audit, ground, networks, optimize, parallel, theory

    parts = theory, analysis, audit, networks, optimize, parallel, ground
    return (
        {name: call for part in parts for name, call in part.CALLS.items()},
        {name: extra for part in parts for name, extra in getattr(part, "EXTRA", {}).items()},
    )


def good_call(name, function, registered):
    """The keyword arguments of a call that the function accepts: what has a default is left out."""
    call, extra = registered[0][name], registered[1].get(name, {})
    needed = {
        parameter.name: _argument(call, parameter.name).good
        for parameter in _parameters(function)
        if parameter.default is parameter.empty and _argument(call, parameter.name) is not None
    }
    return {**needed, **extra}


def bad_calls(name, function, registered):
    """The good call with one argument replaced: every argument, every bad value of its kind."""
    good, call = good_call(name, function, registered), registered[0][name]
    for parameter in _parameters(function):
        argument = _argument(call, parameter.name)
        for value in () if argument is None else argument.bad:
            if not (value is None and parameter.default is None) and not _is_default(value, parameter):
                yield BadCall(name, parameter.name, value, calling(function, {**good, parameter.name: value}))


def calling(function, arguments):
    """A call of nothing, with these keyword arguments."""
    front = [p.name for p in _parameters(function) if p.kind is p.POSITIONAL_ONLY]
    rest = {name: value for name, value in arguments.items() if name not in front}
    return lambda: function(*(arguments[name] for name in front), **rest)


def unknown(name, function, registered):
    """Arguments that must be given and whose kind is not said."""
    good = good_call(name, function, registered)
    return [p.name for p in _parameters(function) if p.default is p.empty and p.name not in good]


def shown(value):
    """A bad value in a few letters, safe on what cannot be read."""
    if isinstance(value, np.ma.MaskedArray):
        return f"masked{value.shape}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{tuple(value.shape)}"
    if isinstance(value, dict | tuple | list):
        items = value.values() if isinstance(value, dict) else value
        return f"{type(value).__name__}({', '.join(shown(item) for item in items)})"
    if isinstance(value, functools.partial):
        return f"giving({shown(value.args[0])})"
    return getattr(value, "__name__", repr(value))[:40]


def _parameters(function):
    named = inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL
    found = inspect.signature(function).parameters.values()
    return [p for p in found if p.kind not in named] + [option for p in found for option in _options(p)]


def _options(parameter):
    """The keywords behind `**options: Unpack[Options]`, each optional."""
    options = next(iter(typing.get_args(parameter.annotation)), None)
    named = typing.get_type_hints(options) if typing.is_typeddict(options) else ()
    return [inspect.Parameter(name, parameter.KEYWORD_ONLY, default=None) for name in named]


def _argument(call, name):
    from tests.registry import names

    return call.get(name, names.NAMES.get(name))


def _is_default(value, parameter):
    return (
        isinstance(value, str | int | float | tuple)
        and type(value) is type(parameter.default)
        and (value == parameter.default)
    )


def _walk(path, prefix):
    for info in pkgutil.iter_modules(path, prefix):
        if info.name.removeprefix("numdl.") in INTERNAL or info.name.split(".")[-1].startswith("_"):
            continue
        module = importlib.import_module(info.name)
        if hasattr(module, "__all__"):
            offered = [getattr(module, name) for name in module.__all__]
            yield from ((f"{_short(module)}.{f.__name__}", f) for f in offered if _is_function(f))
            for inner in filter(inspect.ismodule, offered):
                yield from _own(inner)
        elif info.ispkg:
            yield from _walk(module.__path__, info.name + ".")
        else:
            yield from _own(module)


def _own(module):
    for name, value in vars(module).items():
        if not name.startswith("_") and _is_function(value) and value.__module__ == module.__name__:
            yield f"{_short(module)}.{name}", value


def _is_function(value):
    # Records that can be called, activations say, are values; compiled functions are functions.
    return (inspect.isfunction(value) or hasattr(value, "__wrapped__")) and not inspect.isclass(value)


def _short(module):
    return module.__name__.removeprefix("numdl.")
