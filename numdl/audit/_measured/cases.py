"""What is examined, checked at the door and put into one form that every measurement can take.

Parameters are what moves of them (`trees.trainable`); x and targets may be pytrees of arrays, the examples first.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _hyperparameters, checks, trees
from numdl._compiled import Same, known
from numdl.audit._measured import forms, programs, views

WATCHED = 256  # examples on which losses and outputs are looked at
NAMED = ("sgd", "momentum", "adam", "adamw")
NUDGE = 0.05  # of a leaf's rms, or of a fifth
TOGETHER = (
    "examples do not lie along the first axis of every input and target, or the network takes no other number of "
    "them: none was looked at alone"
)
MOST_KEPT_EXAMPLES = 4096  # of `data` that is handed over as an iterable


@dataclasses.dataclass(frozen=True, eq=False)
class Case(forms.Told):
    """One setting. `call(moving, x, key)` is the network, `cost(moving, x, y, key)` the loss the user watches."""

    moving: Any
    rest: Any
    x: Any
    y: Any
    apply: Callable
    loss: Callable
    make: Callable | None  # rate -> transformation; None: a finished one was given
    transformation: Any
    name: str
    rate: float
    steps: int | None
    data: tuple | None  # (x, y) of the whole set
    in_order: bool
    evaluate: Callable | None
    stochastic: bool
    key: Any
    follows: tuple | None  # for each output whether it has a row for each example; None: examples cannot be told apart
    notes: tuple = ()
    build: Callable | None = None  # width -> (apply, params), or these and a transformation
    widths: tuple = ()
    shown: Callable | None = None  # the loss that trainings record; None: the one that is trained

    @property
    def examples(self):
        return int(np.shape(jax.tree.leaves(self.x)[0])[0]) if self.separate else 0

    @functools.cached_property
    def parameters(self):
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.moving))

    @functools.cached_property
    def form(self):
        """The functions, as programs take them."""
        known = lambda function: None if function is None else Same(function)  # noqa: E731
        functions = map(known, (self.apply, self.loss, self.evaluate))
        return forms.Form(self.rest, self.key, *functions, self.stochastic, self.follows, known(self.shown))

    @functools.cached_property
    def method(self):
        """The optimizer, as programs take it; `number` where it can only be made for a number."""
        if self.make is None:
            return forms.Method(None, _hyperparameters.as_data(self.transformation), None, None)
        try:
            jax.eval_shape(lambda rate: forms.one_update(self.make(rate), self.moving), 1.0)
        except forms.NUMBER_NEEDED:
            return forms.Method(None, None, Same(self.make), self.rate)
        return forms.Method(self.rate, None, Same(self.make), None)

    def whole(self, moving):
        """All parameters, as the user's functions take them."""
        return self.form.whole(moving)

    def moving_of(self, params):
        """What moves of parameters like the user's."""
        return self.rest.moving(params) if self.rest.kept or "complex" in self.rest.kinds else params

    def nudged(self, moving):
        """Parameters a little off these: what begins at zero no longer hides what lies behind it."""
        draw = np.random.default_rng(np.asarray(jax.random.key_data(self.key)).ravel())

        def near(leaf):
            wide = np.asarray(leaf, np.float32)
            size = NUDGE * max(float(np.sqrt(np.mean(np.square(wide)))), 0.2) if wide.size else 0.0
            return jnp.asarray(wide + size * draw.standard_normal(wide.shape, np.float32), leaf.dtype)

        return jax.tree.map(near, moving)

    def forward(self, moving, x, key):
        """The outputs of the compiled network: shared by all that only runs it."""
        return self.run(_forward, moving, x, key)

    def slope(self, moving, x, y):
        """(loss of a batch, its gradient), compiled."""
        return self.run(_slope, moving, x, y)

    def recorded(self, outputs, y):
        """The loss of outputs that trainings record, compiled."""
        return self.run(_recorded, outputs, y)

    def evaluated(self, moving, x):
        """The outputs in evaluation mode, compiled."""
        return self.run(_evaluated, moving, x)

    @functools.cached_property
    def _costs(self):
        """The loss of the batch as a jaxpr."""
        return jax.make_jaxpr(self.cost)(self.moving, self.x, self.y)

    @functools.cached_property
    def only_backward(self):
        """Whether some function in it comes with a rule for the way back and none for the way forward."""
        return any(e.primitive.name.startswith("custom_vjp") for e in programs.equations(self._costs))

    @functools.cached_property
    def reads(self):
        """For each target whether the loss depends on its values."""
        out = jax.eval_shape(self.plain, self.moving, self.x)
        read = jax.make_jaxpr(known(self.loss))(out, self.y)
        return programs.read(read)[len(jax.tree.leaves(out)) :]

    @functools.cached_property
    def work(self):
        """Multiplications for the loss of one example; of the batch, where examples are not apart."""
        return max(programs.work(self._costs) // max(self.examples, 1), self.parameters // max(self.examples, 1), 1)

    @functools.cached_property
    def length(self):
        """Equations that the loss of a batch takes one after another, those of loops as often as they run."""
        return programs.length(self._costs)

    def run(self, function, *arrays, **static):
        """function(form, *arrays, **static), a function of a module, as a program: `forms`."""
        ordered = jax.default_backend() == "cpu" and programs.convolves(self._costs)
        run = forms.program(self.form, function, tuple(sorted(static)), ordered)
        return run(self.form, *arrays, **static)

    def call(self, moving, x, key=None):
        return self.form.call(moving, x, key)

    def cost(self, moving, x, y, key=None):
        return jnp.asarray(self.loss(self.call(moving, x, key), y))

    @functools.cached_property
    def plain(self):
        """The network as a function of two arguments, at the case's own key."""
        return self.form.plain

    @functools.cached_property
    def parts(self):
        """(examples to train on in their order or None, examples never trained on or None)."""
        if self.data is None or not self.separate:
            return None, None
        n = count(self.data[0])
        held = min(WATCHED, n // 5)
        if n - held < max(self.examples, 8) or held < 8:
            return self.data, None
        order = np.random.default_rng(1).permutation(n)
        kept = tuple(take(part, np.sort(order[held:])) for part in self.data)
        return kept, tuple(take(part, order[:held]) for part in self.data)

    @functools.cached_property
    def sample(self):
        """(x, targets) that are looked at: up to 256 examples to train on in random order, else the batch."""
        train, _ = self.parts
        if train is None:
            return self.x, self.y
        index = np.random.default_rng(4).permutation(count(train[0]))[:WATCHED]
        return tuple(take(part, index) for part in train)


def _forward(form, moving, x, key):
    return form.call(moving, x, key)


def _slope(form, moving, x, y):
    return jax.value_and_grad(form.cost)(moving, x, y)


def _recorded(form, outputs, y):
    return form.recorded(outputs, y)


def _evaluated(form, moving, x):
    return form.evaluate(form.whole(moving), x)


def case(
    apply, params, batch, *, loss, optimizer, learning_rate, steps, data, evaluate, stochastic, key, build=None,
    widths=None,
):  # fmt: skip
    """The Case of `examine`'s arguments, or an error that names what is wrong with them."""
    checks.flag("stochastic", stochastic)
    params, apply, evaluate, notes = views.arrays(params, apply, evaluate)
    checks.accepts(
        "apply", apply, 3 if stochastic else 2, "apply(params, x, key)" if stochastic else "apply(params, x)"
    )
    checks.accepts("loss", loss, 2, "loss(outputs, targets)")
    if evaluate is not None:
        checks.accepts("evaluate", evaluate, 2, "evaluate(params, x)")
    key = checks.key("key", key)
    widths = views.widths(build, widths, stochastic)
    x, y = _pair("batch", batch)
    moving, rest = trees.trainable(params)
    moving = jax.tree.map(jnp.asarray, moving)
    rate = math.nan if learning_rate is None else float(checks.positive("learning_rate", learning_rate, shape=()))
    make, transformation, name = _optimizer(optimizer, rate)
    steps = None if steps is None else checks.whole("steps", steps)
    known = Case(
        moving, rest, x, y, apply, loss, make, transformation, name, rate, steps, None, False, evaluate, stochastic,
        key, None, notes, build, widths,
    )  # fmt: skip
    follows = views.rows(known.plain, loss, moving, x, y)
    if follows is None:
        return dataclasses.replace(known, notes=(*notes, TOGETHER))
    whole, in_order = _data(data, x, y)
    if not any(follows):
        notes = (*notes, "no output has a row for each example: outputs were not looked at one by one")
    return dataclasses.replace(known, data=whole, in_order=in_order, follows=follows, notes=notes)


def take(tree, index):
    """Some examples of every leaf."""
    if isinstance(index, jax.core.Tracer):
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], tree)
    return jax.tree.map(lambda leaf: leaf[index], tree)


def count(tree):
    return int(np.shape(jax.tree.leaves(tree)[0])[0])


def _pair(name, value):
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise checks.BadType(f"{name} must be a pair (x, targets); got {checks.shown(value)}")
    x, y = (checks.leaves(f"{name}[{i}]", part) for i, part in enumerate(value))
    return jax.tree.map(_array, x), jax.tree.map(_array, y)


def _array(leaf):
    """On the host, in the dtype that jax computes in: slices of it need no program."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _optimizer(optimizer, rate):
    """(factory or None, transformation at the rate, name)."""
    if isinstance(optimizer, str):
        checks.one_of("optimizer", optimizer, NAMED)
        make, name = named(optimizer), optimizer
    elif hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return None, _functions(optimizer), "given"
    elif callable(optimizer):
        make, name = optimizer, getattr(optimizer, "__name__", "factory")
    else:
        raise checks.BadType(
            f"optimizer must be one of {', '.join(NAMED)}, a function rate -> GradientTransformation, or a "
            f"GradientTransformation; got {checks.shown(optimizer)}"
        )
    if math.isnan(rate):
        raise checks.BadValue(
            f"learning_rate must be given with optimizer={name!r}, which is a family of methods; got None"
        )
    transformation = make(rate)
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise checks.BadType(
            f"optimizer(rate) must return a GradientTransformation; got {checks.shown(transformation)}"
        )
    return make, transformation, name


def _functions(optimizer):
    """The two functions of an optimizer, which may be an object that has them as methods."""
    import optax

    if isinstance(optimizer, tuple):
        return optimizer
    return optax.GradientTransformation(optimizer.init, optimizer.update)


def named(name):
    import optax

    return _momentum if name == "momentum" else getattr(optax, name)


def _momentum(rate):
    import optax

    return optax.sgd(rate, momentum=0.9)


def _data(data, x, y):
    """((x, y) of the whole set or None, whether its order is that of the batches)."""
    if data is None:
        return None, False
    # Two batches and a pair (x, targets) are told apart by their form, which is the batch's.
    forms = jax.tree.structure(x), jax.tree.structure(y)
    pair = isinstance(data, tuple | list) and len(data) == 2
    ordered = not pair or tuple(map(jax.tree.structure, data)) != forms
    whole = _gathered(data) if ordered else _pair("data", data)
    for name, ours, theirs in (("x", x, whole[0]), ("targets", y, whole[1])):
        like = jax.tree.map(lambda a: np.shape(a)[1:], ours), jax.tree.map(lambda a: np.shape(a)[1:], theirs)
        if jax.tree.structure(ours) != jax.tree.structure(theirs) or like[0] != like[1]:
            raise checks.BadValue(f"data must hold {name} shaped like the batch's, {like[0]}; got {like[1]}")
    if not views.side_by_side(*whole):
        raise checks.BadValue("data must have as many targets as inputs, the examples along their first axes")
    return whole, ordered


def _gathered(batches):
    """The batches of an iterable one after another, up to a limit."""
    if not hasattr(batches, "__iter__"):
        raise checks.BadType(f"data must be a pair (x, targets) or an iterable of pairs; got {checks.shown(batches)}")
    kept, seen = [], 0
    for batch in batches:
        kept.append(_pair("data", batch))
        seen += count(kept[-1][0])
        if seen >= MOST_KEPT_EXAMPLES:
            break
    if not kept:
        raise checks.BadValue("data must hold at least one batch; got an empty iterable")
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *kept)
