"""A sick network on digits, for the demo and for `numdl audit experiments.sick:setting`.

Twenty relu layers, drawn with the variance that many libraries take where nothing is said: fan_in Var(W) = 1. Each
layer halves the square of what passes through it, so that hardly anything of the input arrives.
"""


def setting(*, depth=20, width=64, weight_variance=1.0, steps=300, seed=0):
    """The arguments of `numdl.audit.examine`."""
    import jax

    from numdl import activations, data
    from numdl.networks import dense
    from numdl.optimize import losses

    digits = data.digits()
    x, labels = data.standardize(digits.images.reshape(-1, 64)), digits.labels
    network = dense.network(
        widths=(64, *[width] * depth, 10),
        activation=activations.relu,
        weight_variance=weight_variance,
        bias_variance=0.0,
    )
    key = jax.random.key(seed)
    return {
        "apply": network.apply,
        "params": network.init(key, x[:1]),
        "batch": (x[:64], labels[:64]),
        "loss": losses.softmax_cross_entropy,
        "optimizer": "momentum",
        "learning_rate": 0.05,
        "steps": steps,
        "data": (x, labels),
        "key": key,
    }


def tiny():
    """The same, smaller."""
    return setting(depth=8, width=16, weight_variance=0.2, steps=60)
