"""Submodules that load at first use: importing a package of numdl costs nothing, and completion still lists them."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence


def submodules(
    package: str, path: Sequence[str], functions: Mapping[str, str] | None = None
) -> tuple[Callable, Callable]:
    """The pair (__getattr__, __dir__) for a package's __init__ (PEP 562): its modules, loaded when asked for.

    Parameters
    ----------
    package : str               `__name__` of the package
    path : list of str          its `__path__`
    functions : dict            name -> the module that has it: functions that the package itself offers
    Raises
    ------
    AttributeError              by the returned `__getattr__`: there is no such module; the message lists them
    """
    functions = dict(functions or {})
    modules = [module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")]
    names = sorted({*modules, *functions})

    def load(name):
        if name in functions:
            return getattr(importlib.import_module(f"{package}.{functions[name]}"), name)
        if name in names:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")

    return load, lambda: names
