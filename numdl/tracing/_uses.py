"""What each parameter leaf is used for: the layers that contract it, or how else it meets data."""

from numdl.tracing._axes import Follower, read
from numdl.tracing._programs import CONTRACTIONS, CUSTOM, REMAT, scan_counts

_LOOKUPS = {"gather": "embedding: gather", "dynamic_slice": "lookup: dynamic_slice"}
_SUMS = {"add", "add_any", "sub"}
_PRODUCTS = {"mul", "div"}
_ROOTS = {"rsqrt", "sqrt"}
_THROUGH = {"mul", "div", "sub", "broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "transpose", "copy"}


class Uses:
    """Collects, for each leaf, indices of layers and texts, in the order of the program."""

    def __init__(self, count):
        self.found = [[] for _ in range(count)]

    def layer(self, leaves, index):
        """These leaves are contracted in this layer."""
        for leaf in leaves:
            self.found[leaf].append(index)

    def meets(self, program, step, values, before=""):
        """Note the leaves that meet data in a step that is no layer."""
        if any(value.data for value in values):
            for place, value in enumerate(values):
                if value.made:
                    self.texts(value, before + _text(program, step, place, values))

    def starts(self, step, body, values):
        """Note the leaves that a scan's carry starts from, where the carry becomes data."""
        consts, carries = scan_counts(step.params)
        for place, slot in list(enumerate(body.inputs))[consts : consts + carries]:
            if values[place].made and body.values[slot].data:
                self.texts(values[place], "initial state of a scan")

    def scanned(self, program, step, values):
        """Note what happens in a scan that holds no layer: a recurrence written by hand."""
        follower = Follower()
        follower.step(program, step, values)
        (body,) = follower.inner(step)
        self.starts(step, body, values)
        for inner in body.steps:
            inside = read(body.values, inner.reads)
            if inner.name == "scan":
                self.scanned(body, inner, inside)
            else:
                self.meets(body, inner, inside, "scan: ")

    def outputs(self, program):
        """Note the leaves that are returned without meeting data."""
        for value in read(program.values, program.outputs):
            if value.made:
                self.texts(value, "output")

    def texts(self, value, text):
        for leaf in value.layouts:
            self.found[leaf].append(text)

    def told(self, program, layers, dtypes):
        """For each leaf a tuple of texts; a leaf that met nothing says by which steps it is read, if by any."""
        readers, live, told = program.readers(), program.live(), []
        for slot, found, dtype in zip(program.inputs, self.found, dtypes):
            steps = ", ".join(dict.fromkeys(step.name for step in readers[slot] if id(step) in live))
            found = found or [f"read by {steps}" if steps else "unused"]
            kept = () if dtype is None else (f"not floating: {dtype}",)
            told.append((*kept, *dict.fromkeys(layers[each].name if isinstance(each, int) else each for each in found)))
        return tuple(told)


def only_uses(program, count):
    """{leaf: layer} of the leaves that are, as they are, the weight of one layer and nothing else, one entry a step."""
    known = {}
    found = {leaf: _only_use(program, slot, known) for leaf, slot in enumerate(program.inputs[:count])}
    return {leaf: layer for leaf, layer in found.items() if layer is not None}


def scans_over(program, slot, known=None):
    """How many scans, one in another, take one step's part at a time of what comes in at this slot."""
    known = {} if known is None else known
    if id(program) not in known:
        known[id(program)] = program.readers()
    for step in filter(None, known[id(program)][slot]):
        scanned = step.name == "scan" and list(step.reads).index(slot) >= sum(scan_counts(step.params))
        if step.entered and (scanned or step.name in REMAT):
            inside = step.inner[0].inputs[list(step.reads).index(slot)]
            return scanned + scans_over(step.inner[0], inside, known)
    return 0


def _only_use(program, slot, known):
    if id(program) not in known:
        known[id(program)] = program.readers()
    readers = known[id(program)][slot]
    if len(readers) != 1 or readers[0] is None or list(readers[0].reads).count(slot) != 1:
        return None
    (step,) = readers
    place = list(step.reads).index(slot)
    if step.weight is not None:
        return step.weight[1] if step.weight[0] == place else None
    scanned = step.name == "scan" and step.entered and place >= sum(scan_counts(step.params))
    if scanned or (step.name in REMAT and step.entered):
        return _only_use(step.inner[0], step.inner[0].inputs[place], known)
    return None


def _text(program, step, place, values):
    if step.name in _LOOKUPS and place == 0:
        return _LOOKUPS[step.name]
    if step.name == "while" or step.name in CUSTOM:
        return f"not entered: {step.name}"
    if step.name in _PRODUCTS:
        data = next(i for i, value in enumerate(values) if value.data)
        normed = _has_root(program, step.reads[data], 5)
        return _ahead(step) + ("norm scale: elementwise product" if normed else "elementwise product")
    if step.name in _SUMS:
        return _ahead(step) + "bias: elementwise sum"
    return f"product: {step.name}" if step.name in CONTRACTIONS else step.name


def _has_root(program, slot, depth):
    """Whether a value was divided by a standard deviation a few steps ago."""
    step = program.writer(slot) if isinstance(slot, int) else None
    if step is None or depth == 0:
        return False
    if step.name in _ROOTS:
        return True
    if step.name not in _THROUGH or any(value.made for value in read(program.values, step.reads)):
        return False
    return any(_has_root(program, each, depth - 1) for each in step.reads)


def _ahead(step):
    """Of the functions that the step comes from, the one that says more than the step."""
    frames = getattr(getattr(step.equation.source_info, "traceback", None), "frames", ())
    return "associative scan: " if any(frame.function_name == "associative_scan" for frame in frames) else ""
