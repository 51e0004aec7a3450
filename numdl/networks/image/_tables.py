"""The published networks as tables, row by row as the papers have them."""

import jax.numpy as jnp

from numdl import activations
from numdl.networks.image._parts import (
    Active,
    Chain,
    Codes,
    Connected,
    Convolution,
    Dense,
    Drop,
    Frame,
    Mean,
    Merged,
    Pool,
    Response,
    Row,
    Subsample,
)


def scaled_tanh(y):
    """1.7159 tanh(2 y / 3): +-1 goes to +-1, and lies where the curve bends most."""
    return 1.7159 * jnp.tanh(2 / 3 * y)


TANH, RELU = Active(scaled_tanh), Active(activations.relu)

# Maps of H2 that each map of H3 sees: LeCun et al. 1990, table 1.
H3 = ((0,), (0, 1), (0, 1), (1,), (0, 1), (0, 1), (2,), (2, 3), (2, 3), (3,), (2, 3), (2, 3))
# Maps of S2 that each map of C3 sees: LeCun et al. 1998, table I.
C3 = (
    *(tuple(sorted((i + j) % 6 for j in range(3))) for i in range(6)),
    *(tuple(sorted((i + j) % 6 for j in range(4))) for i in range(6)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5)),
    tuple(range(6)),
)


def rows(*lines):
    """Lines (name, part, part, ...) as rows; (name, count, part, ...) as a row of so many equal layers."""
    return tuple(_row(name, *rest) for name, *rest in lines)


def _row(name, *rest):
    count = rest[0] if isinstance(rest[0], int) else None
    return Row(name, Chain(rest if count is None else rest[1:]), count)


LECUN_1990 = rows(
    ("h1", Convolution(4, 5)),
    ("h2", TANH, Subsample(2)),
    ("h3", TANH, Connected(H3, 5)),
    ("h4", TANH, Subsample(2)),
    ("output", TANH, Dense(10)),
)
LENET_5 = rows(
    ("c1", Frame(32), Convolution(6, 5)),
    ("s2", TANH, Subsample(2)),
    ("c3", TANH, Connected(C3, 5)),
    ("s4", TANH, Subsample(2)),
    ("c5", TANH, Convolution(120, 5)),
    ("f6", TANH, Dense(84)),
    ("output", TANH, Codes()),
)


def alexnet(outputs):
    """Krizhevsky et al. 2012: two groups of channels, one of each of their two GPUs."""
    return rows(
        ("conv1", Frame(227), Convolution(96, 11, stride=4)),
        ("conv2", RELU, Response(), Pool(3, 2), Convolution(256, 5, padding=2, groups=2, bias=1.0)),
        ("conv3", RELU, Response(), Pool(3, 2), Convolution(384, 3, padding=1)),
        ("conv4", RELU, Convolution(384, 3, padding=1, groups=2, bias=1.0)),
        ("conv5", RELU, Convolution(256, 3, padding=1, groups=2, bias=1.0)),
        ("fc6", RELU, Pool(3, 2), Dense(4096, bias=1.0)),
        ("fc7", RELU, Drop(0.5), Dense(4096, bias=1.0)),
        ("fc8", RELU, Drop(0.5), Dense(outputs)),
    )


# One line for each module: channels of 1x1, 3x3 reduced, 3x3, 5x5 reduced, 5x5, behind the pooling.
INCEPTION = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
_HALVED = Pool(3, 2, (0, 1))


def googlenet(outputs):
    """Szegedy et al. 2014, table 1; a module's four branches are one layer, its state their maps side by side."""
    before = {"3a": (Response(), _HALVED), "4a": (_HALVED,), "5a": (_HALVED,)}  # response normalization once
    modules = [
        (f"inception_{name}", RELU, *before.get(name, ()), _inception(*counts)) for name, counts in INCEPTION.items()
    ]
    return rows(
        ("conv1", Convolution(64, 7, stride=2, padding=3, bias=0.2)),
        ("conv2_reduce", RELU, _HALVED, Response(), Convolution(64, 1, bias=0.2)),
        ("conv2", RELU, Convolution(192, 3, padding=1, bias=0.2)),
        *modules,
        ("output", RELU, Mean(), Drop(0.4), Dense(outputs)),
    )


def _inception(one, three_reduced, three, five_reduced, five, pooled):
    def convolution(channels, window):
        return Convolution(channels, window, padding=window // 2, bias=0.2)

    branches = (
        (("one", convolution(one, 1)),),
        (("three_reduce", convolution(three_reduced, 1)), RELU, ("three", convolution(three, 3))),
        (("five_reduce", convolution(five_reduced, 1)), RELU, ("five", convolution(five, 5))),
        (Pool(3, 1, (1, 1)), ("pool", convolution(pooled, 1))),
    )
    return Merged(tuple(map(Chain, branches)), "concatenation")


# Depth: blocks of each stage, whether they are bottlenecks. He et al. 2015, table 1.
RESNETS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


def resnet(depth, outputs):
    """The stem, four stages of 64 to 512 channels (four times as many where the blocks are bottlenecks), the mean."""
    blocks, bottleneck = RESNETS[depth]
    stem = ("conv1", Convolution(64, 7, stride=2, padding=3, normalized=True))
    return residual_rows(stem, (RELU, Pool(3, 2, (1, 1))), (64, 128, 256, 512), blocks, bottleneck, outputs)


def residual_rows(stem, before, widths, blocks, bottleneck, outputs):
    """A stem, stages of residual blocks, the mean over places and a dense readout.

    before : tuple of parts     what stands between the stem and the first block
    """
    lines, channels = [stem], widths[0] * (1 if not bottleneck else 0)
    for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        outside, stride = width * (4 if bottleneck else 1), 1 if number == 0 else 2
        shortcut = None if (channels, stride) == (outside, 1) else Convolution(outside, 1, stride, normalized=True)
        name, entry = f"stage{number + 1}", before if number == 0 else (RELU,)
        lines.append((f"{name}_first", *entry, _block(width, outside, stride, shortcut, bottleneck)))
        if count > 1:
            lines.append((f"{name}_rest", count - 1, RELU, _block(width, outside, 1, None, bottleneck)))
        channels = outside
    lines.append(("output", RELU, Mean(), Dense(outputs)))
    return rows(*lines)


def _block(width, outside, stride, shortcut, bottleneck):
    """shortcut(y) + F(y); the stride is that of the first convolution."""
    if bottleneck:
        sizes = ((width, 1, stride), (width, 3, 1), (outside, 1, 1))
    else:
        sizes = ((width, 3, stride), (outside, 3, 1))
    parts = []
    for name, (channels, window, step) in zip(("first", "second", "third"), sizes, strict=False):
        parts += [(name, Convolution(channels, window, step, window // 2, normalized=True)), RELU]
    around = Chain(()) if shortcut is None else Chain((("shortcut", shortcut),))
    return Merged((around, Chain(tuple(parts[:-1]))), "sum")
