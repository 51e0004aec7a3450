"""What a workload is: a problem, and sides that each make a call of it. Read by every Python: standard library only."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def flat(result):
    """The result as one list of numbers."""
    import numpy as np

    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, list | tuple):
        return [number for part in result for number in flat(part)]
    return np.asarray(result, float).ravel().tolist()


@dataclasses.dataclass(frozen=True)
class Run:
    """A call to be timed, and what is known of it besides."""

    call: Callable  # () -> result; whatever is asynchronous is waited for
    numbers: Callable = flat  # result -> numbers on which the sides should agree, outside of the timing
    scale: float = 1.0  # the workload is this many times the call
    plan: Callable | None = None  # () -> bytes beside the arguments, by the compiler


@dataclasses.dataclass(frozen=True)
class Side:
    """One way to do it: make(problem) -> Run, or a plain call."""

    name: str
    make: Callable
    python: str = "here"  # the environment: "here", "torch" or "tangents"


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sides that do one thing. The first is numdl; "limit ..." are kernels written by hand, all others are peers."""

    name: str
    problem: Callable  # (**sizes) -> what the sides share: NumPy arrays
    sides: Sequence[Side]
    sizes: Mapping[str, int]
    tiny: Mapping[str, int]
    laws: Mapping[str, float] = dataclasses.field(default_factory=dict)  # size -> exponent of time that is demanded
    agree: float | None = (
        None  # largest relative difference from numdl's numbers; None: other random numbers, not compared
    )

    def at(self, name):
        """The side of that name."""
        return next(side for side in self.sides if side.name == name)


def jitted(function, *arguments, numbers=flat) -> Run:
    """A function of arrays as one compiled program, and what the compiler plans to hold."""
    import jax

    program = jax.jit(function)

    def plan() -> Any:
        sizes = program.lower(*arguments).compile().memory_analysis()
        return sizes.temp_size_in_bytes + sizes.output_size_in_bytes

    return Run(lambda: program(*arguments), numbers, plan=plan)
