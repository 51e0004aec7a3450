"""Networks that can be run backwards: Verlet, leapfrog and additive coupling; and the antisymmetric one beside them.

    hamiltonian    p_{1/2} = p + h/2 g(q),   q' = q + h f(p_{1/2}),   p' = p_{1/2} + h/2 g(q')       Verlet
    leapfrog       q_{1/2} = q + h/2 v,      v' = v + h F(q_{1/2}),   q' = q_{1/2} + h/2 v'          y'' = F(y)
    coupling       q' = q + h F_1(p),        p' = p + h F_2(q')
    antisymmetric  y' = y + h f(y (A - A^T - damping I) + b)                        stable, but without an inverse

A state holds both halves side by side, [N, 2 n]; the width of a stage is 2 n. `inverse` undoes all steps of a stage by
algebra, to rounding. By default `apply` is differentiated that way, in memory that does not grow with depth: gradients
are the direct ones up to the rounding of the reconstruction. With connector="pad" the new half starts at zero.

Sources: Haber & Ruthotto 2017, arXiv:1705.03341; Chang et al. 2018, arXiv:1709.03698; Gomez et al. 2017,
arXiv:1707.04585.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Unpack

from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl.networks import _stage_options, fields, residual, stages
from numdl.networks.stages import Options
from numdl.ode import adjoints, integrate, schemes, tableaus
from numdl.ode.tableaus import Tableau

BLOCKS = ("one_layer", "two_layer", "symmetric")


def hamiltonian(
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    block: str = "one_layer",
    adjoint: Callable = adjoints.reversible,
    **options: Unpack[Options],
) -> stages.StagedNetwork:
    """A Hamiltonian network by Verlet's scheme.

        one_layer    q' = f(p K + b),  p' = -f(q K^T + b)                    Haber & Ruthotto
        symmetric    q' = f(p K_1 + b_1) K_1^T,  p' = -f(q K_2 + b_2) K_2^T  Chang et al.

    The second conserves H(q, p) = sum F(q K_2 + b_2) + F(p K_1 + b_1), F' = f, while theta does not change.

    Parameters
    ----------
    widths : sequence of int    input, one for each stage (even, q and p), outputs
    depth, activation, bias_variance : as for `residual.network`
    block : str                 one_layer or symmetric
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    **options : Options         as for `residual.network`
    Returns
    -------
    stages.StagedNetwork
    Raises
    ------
    ValueError, TypeError       an odd width of a stage, another block, what `residual.network` refuses
    Source: Haber & Ruthotto 2017, arXiv:1705.03341; Chang et al. 2018, arXiv:1709.03698.
    """
    checks.one_of("block", block, ("one_layer", "symmetric"))
    field = fields.hamiltonian(block, checks.accepts("activation", activation, 1, "activation(x)"))
    motion = stages.Motion(schemes.verlet, field, _layout(block, None, twice=block == "symmetric"), pair=True)
    return stages.build(motion, widths=widths, depth=depth, bias_variance=bias_variance, adjoint=adjoint, **options)


def leapfrog(
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    block: str = "symmetric",
    hidden: int | None = None,
    adjoint: Callable = adjoints.reversible,
    **options: Unpack[Options],
) -> stages.StagedNetwork:
    """A second-order network y'' = F(y; theta) by leapfrog, state (y, v).

    With the symmetric block, y'' = -f(y K + b) K^T, it is a nonlinear wave equation ("hyperbolic"). Positions at half
    steps m_l = y_l + h/2 v_l follow the scheme in two steps.

        m_{l+1} = 2 m_l - m_{l-1} + h^2 F(m_l; theta_l)

    Parameters
    ----------
    widths : sequence of int    input, one for each stage (even, y and v), outputs
    depth, activation, bias_variance : as for `residual.network`
    block : str                 one_layer, two_layer or symmetric
    hidden : int                width inside a two_layer or symmetric block, half of the stage's if None
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    **options : Options         as for `residual.network`
    Returns
    -------
    stages.StagedNetwork
    Raises
    ------
    ValueError, TypeError       an odd width of a stage, another block, what `residual.network` refuses
    Source: Ruthotto & Haber 2018, arXiv:1804.04272.
    """
    checks.one_of("block", block, BLOCKS)
    field = fields.single(block, checks.accepts("activation", activation, 1, "activation(x)"))
    motion = stages.Motion(schemes.leapfrog, field, _layout(block, hidden, twice=False), pair=True)
    return stages.build(motion, widths=widths, depth=depth, bias_variance=bias_variance, adjoint=adjoint, **options)


def coupling(
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    block: str = "two_layer",
    hidden: int | None = None,
    adjoint: Callable = adjoints.reversible,
    **options: Unpack[Options],
) -> stages.StagedNetwork:
    """Additive coupling, a RevNet (reversible residual network).

        q' = q + h F_1(p),    p' = p + h F_2(q')

    Parameters
    ----------
    widths : sequence of int    input, one for each stage (even, q and p), outputs
    depth, activation, bias_variance : as for `residual.network`
    block : str                 one_layer, two_layer or symmetric
    hidden : int                width inside a two_layer or symmetric block, half of the stage's if None
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    **options : Options         as for `residual.network`
    Returns
    -------
    stages.StagedNetwork
    Raises
    ------
    ValueError, TypeError       an odd width of a stage, another block, what `residual.network` refuses
    Source: Gomez, Ren, Urtasun & Grosse 2017, arXiv:1707.04585.
    """
    checks.one_of("block", block, BLOCKS)
    field = fields.coupling(block, checks.accepts("activation", activation, 1, "activation(x)"))
    motion = stages.Motion(schemes.coupling, field, _layout(block, hidden, twice=True), pair=True)
    return stages.build(motion, widths=widths, depth=depth, bias_variance=bias_variance, adjoint=adjoint, **options)


def antisymmetric(
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    damping: ScalarLike,
    tableau: Tableau = tableaus.euler,
    adjoint: Callable = adjoints.checkpointed,
    **options: Unpack[Options],
) -> stages.StagedNetwork:
    """The antisymmetric network with damping, forward Euler by default: `residual.network(block="antisymmetric")`.

        y' = y + h f(y (A - A^T - damping I) + b)

    The linear part A - A^T - damping I has eigenvalues -damping +- i omega, and Euler's step is stable where
    h <= 2 damping / (damping**2 + omega**2), so never without damping.

    Parameters
    ----------
    widths, depth, activation, bias_variance : as for `residual.network`
    damping : scalar            >= 0
    tableau : Tableau           explicit
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    **options : Options         as for `residual.network`
    Returns
    -------
    stages.StagedNetwork
    Raises
    ------
    ValueError, TypeError       as `residual.network`
    Source: Haber & Ruthotto 2017, arXiv:1705.03341.
    """
    return residual.network(
        widths=widths,
        depth=depth,
        activation=activation,
        bias_variance=bias_variance,
        block="antisymmetric",
        damping=damping,
        tableau=tableau,
        adjoint=adjoint,
        **options,
    )


def inverse(
    network: stages.StagedNetwork, params: PyTree, y: Float[ArrayLike, "N ..."], *, stage: int = -1
) -> Float[Array, "N ..."]:
    """The state before a stage from the state after it, by the scheme's exact inverse, step by step.

    Without a connector the state before the first stage is x. What a connector did is not undone.

    Parameters
    ----------
    network : Network           of this module, not antisymmetric
    params : pytree             of `network.init`
    y : array [N, ...]          the stage's last state
    stage : int                 from 0, or from the end; the last one by default
    Returns
    -------
    array [N, ...]
    Raises
    ------
    ValueError, TypeError       a scheme without inverse, params or y that do not fit, no such stage
    """
    settings, params = stages.admitted(network, params)
    count = len(settings.depths)
    stage = checks.whole("stage", stage, least=-count, most=count - 1) % count
    y = checks.floating("y", y, least_ndim=1)
    if y.shape[-1] != settings.widths[stage + 1]:
        raise checks.BadValue(f"y must have {settings.widths[stage + 1]} entries in its last axis; got shape {y.shape}")
    theta, options = stages.flow(settings, params, stage)
    before = integrate.invert(settings.field, stages.split(settings, y), theta, **options)
    return stages.merge(settings, before)


def _layout(block, hidden, *, twice):
    return functools.partial(_leaves, block, _stage_options.inner_width(block, hidden), twice)


def _leaves(block, hidden, twice, width, window):
    one = fields.layout(block, width // 2, hidden, window)
    return {"first": one, "second": one} if twice else one
