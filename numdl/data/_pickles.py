"""A reader for the one kind of pickle that data sets use: a dictionary of byte arrays, texts and numbers.

A pickle is a program, and Python's own loader runs it. Here `pickletools` only says how long each instruction is, and a
small machine follows those that build containers. It imports nothing and calls nothing: the three names that a
NumPy array needs stand for records of this file, and every other name is refused.
"""

import io
import math
import pickletools

import numpy as np

from numdl.data import _files

MOST_STEPS = 2_000_000  # instructions; the largest published file, CIFAR-100's training set, has about 260 000
NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "class",
    ("numpy", "dtype"): "type",
    ("_codecs", "encode"): "bytes",  # how Python 3 writes bytes in protocol 2
}
CODES = {code.code.encode("latin-1"): code for code in pickletools.opcodes}
TYPES = {"u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"}
BYTES = {"SHORT_BINSTRING", "BINSTRING"}  # Python 2's str
CONSTANTS = {"BININT", "BININT1", "BININT2", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"} | {
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
}


def read(path, *, most_bytes=_files.MOST):
    """The dictionary in a pickle (protocols 2 to 4): arrays, int, text, bytes, None and lists of these, under texts.

    Raises
    ------
    ValueError                  truncated, damaged, too large, or asking for anything else, above all for a name to be
                                imported; the message names the file. Nothing in the file is executed.
    """
    raw = _files.contents(path, most_bytes=most_bytes)
    try:
        value = _Machine(len(raw)).run(raw)
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}; allowed is a dictionary")
        if sum(entry.size() for entry in value.values() if isinstance(entry, _Array)) > len(raw):
            raise ValueError("it makes several arrays of the same bytes")
        return {_text(key): _finished(key, entry) for key, entry in value.items()}
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a data set's pickle, or damaged: {error}") from error


class _Name:
    def __init__(self, meaning):
        self.meaning = meaning


class _Type:
    """Stands for a numpy.dtype."""

    def __init__(self, code):
        self.code, self.order = code, "|"


class _Array:
    """Stands for a numpy.ndarray; its state is kept as it came until all is read."""

    def __init__(self):
        self.state = None

    def size(self):
        """Bytes that it is made of."""
        return len(self.state[4]) if self.state and isinstance(self.state[4], bytes) else 0


class _Machine:
    """A stack machine for the pickle instructions that build containers."""

    def __init__(self, length):
        self.stack, self.marks, self.memo = [], [], {}
        self.left = length  # of the bytes that calls may make: a text kept once could be asked for a thousand times

    def run(self, raw):
        stream = io.BytesIO(raw)
        for _ in range(MOST_STEPS):
            code = CODES.get(stream.read(1))
            if code is None or not self.knows(code.name):
                what = (
                    "an unknown instruction or none" if code is None else f"instruction {code.name}, which is refused,"
                )
                raise ValueError(f"{what} at byte {stream.tell()}")
            if code.name == "STOP":
                break
            self.step(code, stream)
        else:
            raise ValueError(f"more than {MOST_STEPS} instructions")
        if stream.read(1):
            raise ValueError("bytes follow after its end")
        if len(self.stack) != 1 or self.marks:
            raise ValueError("it ends with an unfinished value")
        return self.stack[0]

    def knows(self, name):
        return name in CONSTANTS or name in BYTES or name in ("STOP", "GLOBAL") or hasattr(self, f"op_{name}")

    def step(self, code, stream):
        if code.name == "GLOBAL":
            self.push_name(*(stream.readline(200).decode("latin-1").rstrip("\n") for _ in range(2)))
            return
        argument = code.arg and code.arg.reader(stream)
        if code.name in CONSTANTS:
            self.stack.append(argument)
        elif code.name in BYTES:
            self.stack.append(argument.encode("latin-1"))
        else:
            getattr(self, f"op_{code.name}")(argument)

    def push_name(self, module, name):
        if (module, name) not in NAMES:
            raise ValueError(f"it asks to import {f'{module}.{name}'[:100]!r}, which is refused")
        self.stack.append(_Name(NAMES[module, name]))

    def op_STACK_GLOBAL(self, _):
        module, name = self.take(2)
        self.push_name(_text(module), _text(name))

    def items(self):
        """What has been pushed since the last mark."""
        if not self.marks:
            raise ValueError("it closes a container that it never opened")
        mark = self.marks.pop()
        found = self.stack[mark:]
        del self.stack[mark:]
        return found

    def take(self, count):
        if len(self.stack) < count:
            raise ValueError("it takes more values than there are")
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def op_PROTO(self, version):
        if version > 4:
            raise ValueError(f"protocol {version}; 2 to 4 are read")

    def op_FRAME(self, length):
        """Frames only help streaming."""

    def op_NONE(self, _):
        self.stack.append(None)

    def op_NEWTRUE(self, _):
        self.stack.append(True)

    def op_NEWFALSE(self, _):
        self.stack.append(False)

    def op_EMPTY_DICT(self, _):
        self.stack.append({})

    def op_EMPTY_LIST(self, _):
        self.stack.append([])

    def op_EMPTY_TUPLE(self, _):
        self.stack.append(())

    def op_MARK(self, _):
        self.marks.append(len(self.stack))

    def op_TUPLE(self, _):
        self.stack.append(tuple(self.items()))

    def op_TUPLE1(self, _):
        self.stack.append(tuple(self.take(1)))

    def op_TUPLE2(self, _):
        self.stack.append(tuple(self.take(2)))

    def op_TUPLE3(self, _):
        self.stack.append(tuple(self.take(3)))

    def op_BINPUT(self, index):
        self.memo[index] = self.stack[-1]

    def op_LONG_BINPUT(self, index):
        self.op_BINPUT(index)

    def op_MEMOIZE(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def op_BINGET(self, index):
        if index not in self.memo:
            raise ValueError(f"it asks for value {index}, which it never kept")
        self.stack.append(self.memo[index])

    def op_LONG_BINGET(self, index):
        self.op_BINGET(index)

    def op_APPEND(self, _):
        self.extend(self.take(1))

    def op_APPENDS(self, _):
        self.extend(self.items())

    def op_SETITEM(self, _):
        self.update(self.take(2))

    def op_SETITEMS(self, _):
        self.update(self.items())

    def extend(self, items):
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items):
        keys, values = items[::2], items[1::2]
        # Only flat keys: the hash of a nested tuple can take exponential time.
        if not isinstance(self.stack[-1], dict) or len(items) % 2 or not all(isinstance(k, str | bytes) for k in keys):
            raise ValueError("it sets an item of what is no dictionary, or under a key that is no text")
        self.stack[-1].update(zip(keys, values))

    def op_REDUCE(self, _):
        """The only calls: an array, an array's type, bytes written as text; none of them calls anything here."""
        called, arguments = self.take(2)
        meaning = called.meaning if isinstance(called, _Name) and isinstance(arguments, tuple) else None
        if meaning == "array":
            self.stack.append(_Array())
        elif meaning == "type" and arguments and _text(arguments[0]) in TYPES:
            self.stack.append(_Type(_text(arguments[0])))
        elif meaning == "bytes" and len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1":
            self.left -= len(arguments[0])
            if self.left < 0:
                raise ValueError("it makes more bytes than it holds")
            self.stack.append(arguments[0].encode("latin-1"))
        else:
            raise ValueError("it makes a call that is refused")

    def op_BUILD(self, _):
        target, state = self.take(2)
        if isinstance(target, _Array) and isinstance(state, tuple) and len(state) == 5:
            target.state = state
        elif isinstance(target, _Type) and isinstance(state, tuple) and len(state) == 8:
            target.order = _text(state[1])
        else:
            raise ValueError("it sets the state of what is neither an array nor an array's type")
        self.stack.append(target)


def _text(value):
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where a text is expected")
    return value


def _finished(key, value):
    """A value of the dictionary, arrays made of their bytes."""
    if isinstance(value, _Array):
        return _array(value.state)
    flat = int | str | bytes | None
    if isinstance(value, flat) or (isinstance(value, list) and all(isinstance(entry, flat) for entry in value)):
        return value
    raise ValueError(f"its entry {_text(key)!r} is a {type(value).__name__.strip('_')}, which is refused")


def _array(state):
    """The array for (version, shape, type, column major, bytes), if the five agree."""
    if state is None:
        raise ValueError("an array without contents")
    _, shape, kind, columns, raw = state
    whole = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 8
    if not (whole and isinstance(kind, _Type) and isinstance(raw, bytes) and kind.order in ("<", ">", "|", "=")):
        raise ValueError("an array whose description is none")
    dtype = np.dtype(kind.code).newbyteorder(kind.order)
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"an array of shape {shape} and type {kind.code} made of {len(raw)} bytes")
    array = np.frombuffer(raw, dtype).reshape(shape, order="F" if columns else "C")
    return array.astype(dtype.newbyteorder("="))
