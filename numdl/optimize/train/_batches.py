"""Where batches come from: data that lies on the device, or any iterable.

A source gives the next rows, stacked, and a function that makes a batch of one row on the device: for data that lies
there a row is a row of indices, for an iterable it is the batch itself.
"""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Key, PyTree

from numdl import checks
from numdl.optimize.train._checkpoints import digest

ROWS = 1024  # most steps in one chunk
INDICES = 2**22  # most indices in one chunk
STACKED = 64  # most batches of an iterable in one chunk, and most bytes of them
STACKED_BYTES = 2**23  # more, and every stack is new memory, whose pages cost as much as the copy


def resident(data: PyTree, *, size: int, key: Key[jax.Array, ""] | None, remainder: str = "drop") -> "Resident":
    """Mini-batches of data that lies on the device, in an order drawn anew for every epoch.

        order of epoch e = permutation(fold_in(key, e))

    Parameters
    ----------
    data : pytree               every leaf [examples, ...]; batches have the same structure, [size, ...]
    size : int                  examples in a batch, 1..examples
    key : key                   typed, of the orders; None keeps the data's own order
    remainder : str             "drop": what does not fill a batch is left out of this epoch, other examples in each;
                                "carry": it begins the next epoch's first batch, so each example comes once an epoch
    Returns
    -------
    Resident                    for `fit(batches=...)`
    Raises
    ------
    ValueError, TypeError       leaves of different lengths, a size beyond them, an untyped key, another `remainder`
    Source: the definition.
    """
    data = checks.leaves("data", data)
    examples = checks.length("data", data)
    size = checks.whole("size", size, most=examples)
    checks.one_of("remainder", remainder, ("drop", "carry"))
    if key is not None:
        checks.key("key", key)
    return Resident(jax.tree.map(_device, data), examples, size, key, remainder)


def whole(data: PyTree) -> "Whole":
    """The same batch at every step, all of the data: gradient descent without noise (full batch).

    Parameters
    ----------
    data : pytree               arrays; the loss gets them as they are, on the device
    Returns
    -------
    Whole                       for `fit(batches=...)`
    Raises
    ------
    TypeError, ValueError       leaves that are not arrays, or none at all
    """
    return Whole(jax.tree.map(_device, checks.leaves("data", data)))


def source(batches):
    """The source that `fit` draws from, for each kind of batches."""
    if isinstance(batches, (Resident, Whole)):
        return batches
    if not hasattr(batches, "__iter__") or isinstance(batches, str | bytes | dict):
        raise checks.BadType(
            f"batches must be an iterable of batches, train.resident(...) or train.whole(...); got {batches!r}"
        )
    return Stream(batches)


class Resident:
    """Shuffled epochs."""

    def __init__(self, data, examples, size, key, remainder):
        self.data, self.examples, self.size, self.key = data, examples, size, key
        self.used = examples if remainder == "carry" else examples // size * size  # examples of one epoch
        self.most = min(ROWS, max(1, INDICES // size))  # steps in one chunk
        self._orders = {}

    @property
    def steps_per_epoch(self):
        """Batches in one epoch: a whole number for remainder "drop"."""
        return self.used // self.size if self.used % self.size == 0 else self.used / self.size

    @property
    def identity(self):
        """What a resumed run must have in common."""
        key = None if self.key is None else np.asarray(jax.random.key_data(self.key)).tolist()
        about = {"kind": "resident", "examples": self.examples, "size": self.size, "used": self.used, "key": key}
        return about | {"data": digest(self.data)}

    def example(self):
        """A batch, for its shapes."""
        return jax.tree.map(lambda leaf: leaf[: self.size], self.data)

    def rows(self, first, count):
        """Indices of the batches of `count` steps, int32 [most, size]; only the first `count` rows are filled."""
        flat = np.zeros(self.most * self.size, np.int32)
        at, end, filled = first * self.size, (first + count) * self.size, 0
        while at < end:
            epoch, offset = divmod(at, self.used)
            taken = min(end - at, self.used - offset)
            flat[filled : filled + taken] = self._order(epoch)[offset : offset + taken]
            at, filled = at + taken, filled + taken
        return flat.reshape(self.most, self.size), count

    def first(self):
        """The rows of the first step."""
        return self.rows(0, 1)[0]

    def prefetch(self, count):
        """Nothing: the data is there."""

    @staticmethod
    def gather(data, row):
        """The examples at the indices; they are in range by construction."""
        return jax.tree.map(lambda leaf: leaf.at[row].get(mode="promise_in_bounds"), data)

    def _order(self, epoch):
        if epoch not in self._orders:
            kept = {e: order for e, order in self._orders.items() if e == epoch - 1}
            drawn = np.arange(self.examples) if self.key is None else _permutation(self.key, epoch, self.examples)
            self._orders = {**kept, epoch: np.asarray(drawn)}
        return self._orders[epoch]


class Whole:
    """One batch for ever."""

    most = ROWS

    def __init__(self, data):
        self.data = data

    @property
    def identity(self):
        """What a resumed run must have in common."""
        return {"kind": "whole", "data": digest(self.data)}

    def example(self):
        """The batch."""
        return self.data

    def rows(self, first, count):
        """Nothing changes from step to step."""
        return np.zeros((self.most, 1), np.int8), count

    def first(self):
        """The rows of the first step."""
        return self.rows(0, 1)[0]

    def prefetch(self, count):
        """Nothing: the data is there."""

    @staticmethod
    def gather(data, row):
        """All of the data."""
        return data


class Stream:
    """Batches of an iterable, stacked; one that is not its own iterator is read again from its beginning.

    Its only state is how many batches were taken: a resumed run reads and drops as many.
    """

    data = ()
    most = STACKED

    def __init__(self, batches):
        self._batches = batches
        self._iterator = iter(batches)
        self._taken, self._ahead = 0, collections.deque()

    @property
    def identity(self):
        """What a resumed run must have in common: of all batches the first one is known."""
        return {"kind": "iterable", "first batch": digest(self.example())}

    def first(self):
        """The rows of the first step, before any is taken."""
        self.example()
        return self._ahead[0].rows(1)

    def example(self):
        """The next batch, which stays the next one."""
        if self._peek() is None:
            raise checks.BadValue(f"batches must yield at least one batch; got {self._batches!r}")
        return self._ahead[0].batch(0)

    def rows(self, first, count):
        """Up to `count` batches of one shape, stacked with room for more, and how many they are; 0 at the end."""
        while self._taken < first and self._peek() is not None:
            self._take(first - self._taken)
        stack = self._peek()
        if stack is None:
            return None, 0
        while stack.count < min(count, stack.room) and stack is self._ahead[-1] and self._read():
            pass
        count = min(count, stack.count)
        self._take(count)
        return stack.rows(count), count

    @staticmethod
    def gather(data, row):
        """A row is a batch."""
        return row

    def prefetch(self, count):
        """Read this many batches ahead while the device works; they count as taken only when they are used."""
        while sum(stack.count for stack in self._ahead) < count and self._read():
            pass

    def _read(self):
        """One more batch from the iterable; False at its end."""
        batch = next(self._iterator, None)
        if batch is None and self._iterator is not self._batches:
            self._iterator = iter(self._batches)
            batch = next(self._iterator, None)
        if batch is None:
            return False
        batch = jax.tree_util.tree_map_with_path(_number, batch)
        if not (self._ahead and self._ahead[-1].takes(batch)):
            self._ahead.append(_Stack(batch, _room(batch)))
        self._ahead[-1].add(batch)
        return True

    def _peek(self):
        return self._ahead[0] if self._ahead or self._read() else None

    def _take(self, count):
        """At most so many batches of the first stack are used."""
        stack = self._ahead.popleft()
        taken = min(count, stack.count)
        self._taken += taken
        if taken < stack.count:
            self._ahead.appendleft(stack.rest(taken))


class _Stack:
    """Batches of one shape, copied to where they are handed over: a generator may refill one buffer meanwhile."""

    def __init__(self, batch, room):
        self.room, self.count, self._signature = room, 0, _signature(batch)
        self._held = jax.tree.map(lambda leaf: np.zeros((room, *leaf.shape), leaf.dtype), batch)

    def takes(self, batch):
        """Whether there is room, and the batch is like the others."""
        return self.count < self.room and _signature(batch) == self._signature

    def add(self, batch):
        for held, leaf in zip(jax.tree.leaves(self._held), jax.tree.leaves(batch), strict=True):
            held[self.count] = leaf
        self.count += 1

    def batch(self, place):
        return jax.tree.map(lambda held: held[place], self._held)

    def rows(self, count):
        """[room, ...], room one of two lengths, so that few programs are compiled; rows past `count` are not read."""
        few = math.ceil(self.room / 8)
        return jax.tree.map(lambda held: held[:few] if count <= few else held, self._held)

    def rest(self, first):
        """Another stack of the batches from `first` on."""
        rest = _Stack(self.batch(0), self.room)
        for place in range(first, self.count):
            rest.add(self.batch(place))
        return rest


@functools.partial(jax.jit, static_argnums=2)
def _permutation(key, epoch, examples):
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(examples, dtype=jnp.int32))


def _device(leaf):
    """On the device; a copy of NumPy's arrays, whose bytes the caller may write to."""
    return leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)


def _number(path, leaf):
    """A batch's leaf in NumPy."""
    if checks.is_key(leaf):
        raise checks.BadType(
            "batches must hold arrays of numbers; got a random key: fit(key=...) gives one to every step"
        )
    if hasattr(leaf, "__array__") or isinstance(leaf, list | tuple):
        leaf = np.asarray(leaf) if not isinstance(leaf, np.ndarray | jax.Array) else leaf
    return np.asarray(checks.leaf(f"batches{jax.tree_util.keystr(path)}", leaf))


def _signature(batch):
    return jax.tree.structure(batch), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(batch)]


def _room(batch):
    """Batches that are stacked at most."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    return min(STACKED, max(1, STACKED_BYTES // max(size, 1)))
