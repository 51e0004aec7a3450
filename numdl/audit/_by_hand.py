"""What no argument of `examine` can change: lines for the user's own code and data."""

from typing import Any

ARCHITECTURE = (
    "nothing tried ends near a shallow model of the same data: fewer layers, wider ones, skips or another activation"
)
LINES = {
    "attention_logits": "normalise queries and keys (qk-norm), scores over sqrt(k)",
    "entropy_collapse": "normalise queries and keys (qk-norm), scores over sqrt(k)",
    "parametrization_does_not_transfer": "optimize.scaling.rescale and multipliers",
    "mask": "let every row of the mask see at least one position that carries information",
    "wrong_axis": "find the operation that runs over axis 0, which holds the examples",
    "norm_degenerate": "normalise over an axis with several numbers, or take a larger batch",
    "labels_constant": "check how the labels are read",
    "labels_unrelated": "check that inputs and labels are paired",
    "labels_imbalanced": "weigh the classes by 1 / frequency, or sample them evenly",
    "data_order": "shuffle the examples before they are cut into batches",
    "inputs_constant": "check how the inputs are read",
    "loss_couples_examples": "let the loss of an example depend on its own target alone",
    "loss_ignores_outputs": "let the loss depend on the outputs through differentiable operations",
    "no_nonlinearity": "put an activation between the layers",
    "cannot_see": "give the network what the labels depend on: positions, features, the other tokens",
    "dropout_too_high": "a smaller dropout rate",
    "train_differs_from_evaluate": "update the running statistics during training",
    "outputs_constant": "find what makes the outputs one number: a softmax over one unit, a factor of 0, a clip",
}


def cut(signal: Any, findings: list) -> tuple:
    """What ends the gradient, where a finding says so; () where it is the optimizer that moves nothing.

    Parameters
    ----------
    signal : Signal or None
    findings : list of Finding
    """
    stops = signal.stops if signal is not None else ()
    said = any(f.name == "frozen" and stops and stops[0] in f.sentence for f in findings)
    return stops if said else ()


def line(name: str, stops: tuple) -> str:
    """What to change where this was found.

    Parameters
    ----------
    name : str                  of the finding
    stops : tuple of str        what ends the gradient, of `cut`
    """
    return f"take away what ends the gradient: {', '.join(stops)}" if name == "frozen" else LINES[name]
