"""Evidence: what the audit measured and what theory said beforehand, as plain records that rules can read.

None computes anything; a planted fault is one made by hand. What was not seen is nan, None or an empty array.
"""

import dataclasses
from typing import Any

import numpy as np

from numdl.activations import Activation
from numdl.audit._widths import Widths
from numdl.records import record, static


@record
class Facts:
    """What was handed over, and what follows from it without running anything but shapes."""

    examples: int = static()  # N in the batch
    parameters: int = static()  # numbers that move
    rate: float = static()  # nan: not known
    steps: int | None = static()  # training budget
    optimizer: str = static()  # as it was named; "given" for a finished transformation
    stochastic: bool = static()
    order: bool = static()  # batches were handed over in their order
    views: tuple = static()  # of "data", "evaluate", "steps", "rates", "widths", ...: what could be looked at


@record
class Signal:
    """Through the L layers, in call order; steps of a scan are layers 'path[i]'."""

    names: tuple = static()
    kinds: tuple = static()  # dense | conv | attention | tap
    nonlinearities: tuple = static()
    notes: tuple = static()
    first_nonfinite: int = static()  # layer; -1: none
    recurrent: tuple = static()  # [L] bool: a step of a scan that uses the same weight at each step
    state_rms: np.ndarray  # [L]
    state_max: np.ndarray  # [L]
    gradient_rms: np.ndarray  # [L] per-example cotangent of the state
    saturated: np.ndarray  # [L] shares
    dead: np.ndarray  # [L]
    rank: np.ndarray  # [L] effective rank of some examples' states
    cosine: np.ndarray  # [L] mean cosine between examples
    fan_in: np.ndarray  # [L]
    weight_variance: np.ndarray  # [L] fan_in * Var W
    identical: np.ndarray  # [L] share of a layer's units that are copies of another unit
    largest: float  # largest finite number of the states' dtype, in the narrowest layer
    leaf_names: tuple = static()
    leaf_still: np.ndarray  # [P] bool: the gradient is exactly zero, here and a little off these parameters
    stops: tuple = static()  # what ends the gradient of those leaves, and in which line; () if nothing does
    leaf_rms: np.ndarray  # [P]
    leaf_gradient_rms: np.ndarray  # [P]


@record
class Chain:
    """What mean-field theory needs to know of the R weights in the order of the call, and how they came out."""

    names: tuple = static()
    breaks: tuple = static()  # [R] what lies before each that is no chain
    function: Activation | None = static()  # the one between them; None: not known
    unknown: str = static()  # why it is not
    fan_in: np.ndarray  # [R]
    fan_out: np.ndarray  # [R]
    weight_variance: np.ndarray  # [R] fan_in * Var W
    bias_variance: np.ndarray  # [R]
    input_square: float  # mean square of what the first reads
    length: np.ndarray  # [R] measured mean squares of the outputs
    log_gradient: np.ndarray  # [R] ln |dL/dy|^2 of each / the last


@record
class Function:
    """The network as a function of its inputs: outputs over the batch."""

    shape: tuple = static()  # of the outputs; () for a pytree of several
    spread: float  # standard deviation over examples / rms of the outputs
    spread_near: float  # the same a little off these parameters: 0 is the network's form, not its start
    rms: float  # of the outputs
    rows_sum: float  # largest |sum of an output row - 1|, nan for one output; columns likewise
    columns_sum: float
    least: float
    most: float
    at_bound: float  # share of outputs that are the least or the most of all, exactly
    scaled: float  # relative change of outputs under inputs three times as large; nan for integers
    mixing: float  # relative change of one example's output when another example changes
    mixing_back: float  # the same in the direction with less of it, to earlier or to later examples
    second_axis: bool = static()  # the places of the second axis do not act on each other: examples may lie there
    disorder: float  # relative change of outputs when the examples are permuted and put back
    rounding: float  # relative change of outputs when every parameter changes in its last bit
    noise: float  # rms of f(key1) - f(key2) / of both: 0 if not stochastic, sqrt 2 where nothing else is left
    bend: float  # |f((x + x')/2) - (f(x) + f(x'))/2| / |f(x) - f(x')|; nan for integers
    floor_affine: float  # held-out loss of the best affine map; nan unless the network is linear in its inputs
    floor_bent: float  # the same of a small network that is not
    blind: float  # relative change of outputs under a permutation of the positions; nan without positions
    unseen: float  # share of positions whose change does not move any output
    unread: float  # share of the inputs' numbers, other than positions, of which that holds though they vary
    alone: float  # share of output positions that see only their own input position; nan unless outputs have positions
    normalizes: bool = static()  # roots are taken somewhere in it
    roots_spread: float  # (largest - least) / largest of what a root is taken of, least over the roots; nan: unasked
    axis_of_one: bool = static()  # a sum runs over an axis of size one
    batch_of_one: bool = static()  # alone, an example's output is another than beside a second one
    evaluate_distance: float  # |apply - evaluate| / spread of apply; nan without `evaluate`


@record
class Loss:
    """The loss as a function of the outputs alone."""

    kind: str = static()  # classes | one-hot | binary | values | other: how targets relate to outputs
    place: tuple = static()  # (which output, which target, the outputs' axis of the columns, how many columns)
    value: float
    finite_value: bool = static()
    finite_wide: bool = static()  # with all that is handed over in single precision
    finite_gradient: bool = static()  # with respect to the outputs
    ignores: bool = static()  # the gradient is zero at every output tried
    targets_unread: bool = static()  # its value does not depend on any target's
    gradient_rms: float
    border: float  # binary: the output at which both labels cost the same; nan where there is none, or several
    pull: float  # cosine of -dL/do with the direction to the label: 1 towards, -1 away, nan unknown
    meets: float  # share of the values on whose two sides the loss pulls opposite ways; low: outputs are logits, logs
    wrong_pays: float  # of what the way from the labels earns, what a wrong answer does: 1 a wrong sign, 0 a distance
    coupling: float  # change of the other examples' gradient / of its own, when one target changes
    coupling_reshaped: float  # the same with the outputs in the targets' shape; nan if the shapes agree or cannot
    pairing: float  # change of the loss when labels change places / all become one; 0: it knows no pairs; nan: none
    doubled: float  # loss of the batch twice over / loss: 1 a mean, 2 a sum
    shift: float  # relative change of the loss when a row's outputs are all shifted by one
    floor_unit: float  # binary: the least loss far to either side if the labels were 0 and 1
    floor: float  # least loss over all outputs; -inf: unbounded below
    floor_head: float  # least loss over what the head, its own parameters too, can produce from any last state
    floor_shared: float  # least loss with one output for all examples
    transmission: float  # |dL/dz| / |dL/do| through the head; 1 if the network ends in its last layer
    has_head: bool = static()


@record
class Data:
    """Inputs and targets: of the whole data where they were given, else of the batch."""

    whole: bool = static()
    examples: int = static()
    broken: tuple = static()  # indices of examples whose input, target or loss gradient is not finite (the first few)
    broken_count: int = static()
    broken_given: bool = static()  # whether their own inputs or targets are not finite
    kind: str = static()  # float | integer | other
    rms: float
    spread: float  # standard deviation over examples, rms over columns
    offset: float  # rms of the columns' means / spread
    column_ratio: float  # largest / median column standard deviation, of columns that vary
    constant: float  # share of constant columns
    missed: float  # share of whole-number inputs past an end of the table that they are looked up in; nan: none are
    ids: np.ndarray  # [4] least and largest looked up there, its last row, whether nan is read past it; empty: none are
    labels: int  # distinct values of the targets; 0: continuous
    label_low: float
    label_high: float
    spare_labels: bool = static()  # classes below 0 ask for no answer: the loss is deaf to the outputs of theirs
    one_past: float  # share of labels that name the column past the last and are left out; 0 if others are, too
    classes: int  # outputs in a row, for labels
    common: float  # share of the most common label
    rare: float  # share of the rarest label that a row has room for
    batch_labels: int  # distinct values in the batch
    sorted_share: float  # 1 - (variance of labels within consecutive batches / in all): 0 shuffled, 1 sorted
    target_rms: float
    target_spread: float
    target_offset: float  # |mean| / spread


@record
class Optimizer:
    """The transformation as a black box: what comes out for what goes in."""

    at_zero: float  # |update(0)| / |params|: decay per step
    at_zero_finite: bool = static()
    degree_up: float  # log10 of |update(1000 g)| / |update(g)|, divided by 3: 1 descent, 0 scale-free
    degree_down: float  # log10 of |update(g)| / |update(g / 1000)|, divided by 3
    direction: float  # cosine of the update of 1e6 g with -g: 1 plain or clipped, less if entrywise
    lost: float  # |update(g)| / what the other branch of a clip or an epsilon would give: 1 nothing lost
    ascent: float  # cosine of the summed update with -g: negative is ascent
    reach: float  # |sum of updates| / |params| under a constant gradient over the budget
    travel: float  # |sum of updates| over the budget, rms per number
    late: float  # share of that travel in the second half of the budget
    early: float  # in the first tenth
    first: float  # |first update| / largest update of the course
    memory: float  # sum of the updates after one impulse / the first
    decayed: float  # |params| after the budget without gradient / before
    update_ratio: np.ndarray  # [P] |update| / |leaf|, largest over the course
    frozen: np.ndarray  # [P] bool: a gradient that is not zero moves nothing
    horizon: int = static()  # steps that were run

    @property
    def linear(self):
        """Whether updates are proportional to the gradient: a limit for the sharpness is known."""
        return max(abs(self.degree_up - 1), abs(self.degree_down - 1)) < 0.05 and self.direction > 0.99


@record
class Attention:
    """The softmax of each of A attentions: at the start, and after the trial at each of its R rates."""

    names: tuple = static()  # of the scores' layers
    logit_max: np.ndarray  # [A] max |logit| of what no mask closes
    entropy: np.ndarray  # [A] mean over rows of H / ln(open keys): 1 uniform, 0 one key
    end_logit_max: np.ndarray  # [R, A] after the trial, the largest over its seeds
    end_entropy: np.ndarray  # [R, A] the mean over its seeds


@record
class Kernel:
    """The tangent kernel on some examples: alignment with the targets and the forecast of the loss."""

    examples: int = static()
    alignment: float  # z of r'Kr against permuted targets
    alignment_raw: float  # z of the inputs' own kernel
    forecast: np.ndarray  # [T] loss of the linearised network under the user's own optimizer; empty: not run
    forecast_steps: np.ndarray  # [T]
    start: float  # loss of these examples now
    linear: bool = static()  # whether the forecast, which is linear, was run to the end of the budget


@record
class Trial:
    """Short trainings: R rates, S seeds, T steps. Losses are on the watched batch unless they say otherwise."""

    rates: np.ndarray  # [R]
    factors: np.ndarray  # [R] rate / the user's rate
    losses: np.ndarray  # [R, S, T] of each step's batch
    start: float
    first: np.ndarray  # [R, S] after one step
    end: np.ndarray  # [R, S]
    unseen_start: float  # examples not trained on; nan without data
    unseen_end: np.ndarray  # [R, S]
    repeated: np.ndarray  # [T] loss on one repeated batch, at the user's rate
    warmed: np.ndarray  # [2] steps in which the rate rose to the user's own, the loss after some more; empty: not run
    spread_first: np.ndarray  # [R, S] spread of outputs after one step
    spread: np.ndarray  # [R, S] after the last
    evaluate_start: float  # loss through `evaluate`; nan without
    evaluate_end: np.ndarray  # [R, S]
    noise_scale: float  # tr(Sigma) / |G|^2, in examples; nan without data
    seconds: float


@record
class Ahead:
    """The training carried on at the user's own rate as far as it is cheap; C looks, at examples not trained on."""

    examples: int = static()  # not trained on, with an answer
    steps: np.ndarray  # [C] none: no examples are unseen
    watched: np.ndarray  # [C] loss of examples that are trained on
    unseen: np.ndarray  # [C] loss of those that are not
    score: np.ndarray  # [C] of those: share right (classes, binary) or 1 - squared error / variance; nan where neither
    stderr: float  # of the last score, from one example to another; nan where there is none
    chance: float  # score of the best single answer
    shallow: float  # score of a ridge regression on the inputs and random features of them
    seconds: float


@record
class Predicted:
    """What theory says of this network before anything is run; nan where its assumptions do not hold."""

    applies: bool = static()  # mean-field theory: a chain of one known nonlinearity
    why_not: str = static()
    activation: str = static()
    names: tuple = static()  # [R] weights, as in Chain
    state_rms: np.ndarray  # [R] from the measured size of what the first reads
    log_gradient: np.ndarray  # [R] ln |dL/dy|^2 of each / the last
    chi: float  # squared gradient's gain a layer at the fixed point
    depth_scale: float  # layers over which correlations forget, in layers
    spread: float  # standard deviation of ln |gradient|^2 at this width and depth: 5 L / n for relu
    critical_weight_variance: float  # beside biases as they are
    start_variance: float  # the same without biases: what to draw weights with
    centred_variance: float  # 1 / f'(0)^2 where f(0) is not 0: of weights that sum to zero at each unit
    weight_variance: float
    bias_variance: float
    sharpness: float  # measured beside the limit
    sharpness_limit: float  # of the method at this rate
    entropy: float  # of the labels: the loss of a constant answer
    initial: float  # loss expected of outputs that know nothing


@record
class Evidence:
    """All of it, and how long each part took in seconds."""

    facts: Facts
    signal: Signal | None
    chain: Chain | None
    function: Function
    loss: Loss
    data: Data
    optimizer: Optimizer
    kernel: Kernel
    trial: Trial
    predicted: Predicted
    seconds: dict
    notes: tuple = static(default=())  # what could not be measured, and why
    attention: Attention | None = None  # None: there is none, or it was not found
    widths: Widths | None = None  # None: no way to build the network at other widths was given
    ahead: Ahead = dataclasses.field(default_factory=lambda: empty(Ahead))


@record
class Finding:
    """One thing that is wrong: what was measured, what was expected, what to do."""

    name: str = static()
    severity: str = static()  # certain | likely | hint
    where: str = static()  # layer, leaf or example; "" if the whole
    measured: float
    uncertainty: float  # standard error; 0 for algebra, nan unknown
    predicted: float  # what theory expects here
    threshold: float
    sentence: str = static()
    theory: str = static()
    source: str = static()
    remedy: str = static()
    weight: float  # how much of the failure it explains: findings are ordered by it
    consequences: tuple = static(default=())  # names of findings that follow from this one


def empty(kind: type, /, **known: Any) -> Any:
    """A record of `kind` in which nothing was seen, but for the fields given: what hand-made evidence starts from.

    Parameters
    ----------
    kind : type                 one of the records above
    **known : fields            and their values
    Raises
    ------
    TypeError                   no such field
    """
    blank = {float: np.nan, int: 0, bool: False, str: "", tuple: (), np.ndarray: np.zeros(0), dict: {}}
    return kind(**{f.name: blank.get(f.type) for f in dataclasses.fields(kind)} | known)
