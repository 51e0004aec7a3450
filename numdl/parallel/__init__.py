"""More than one device, process or machine, on engines that exist: jax's own for arrays, any executor for sweeps.

    mesh, shard_batch, shard_parameters, replicate      arrays over devices, as every analysis takes them
    over_seeds                                          a function of a key for many keys, divided among devices
    gather                                              arrays whole, as NumPy's
    connect, is_first, first                            several processes: how they meet, who writes
    save, restore                                       checkpoints of trees that lie over processes
    sweep, Cell                                         a function at many configs, on any executor, resumed
    needs, Memory                                       the memory of a call before it is made

    >>> import jax, jax.numpy as jnp
    >>> from numdl import parallel
    >>> over = parallel.mesh()                          # of all devices, here one
    >>> batch = parallel.shard_batch(jnp.ones((8, 3)), over)
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> noise = parallel.over_seeds(jax.random.normal, keys, mesh=over)
    >>> batch.shape, noise.shape
    ((8, 3), (3,))

docs/scaling.md says what to run where, and what it costs.
"""

from numdl.parallel._checkpoints import restore, save
from numdl.parallel._farm import Cell, sweep
from numdl.parallel._mesh import gather, mesh, over_seeds, replicate, shard_batch, shard_parameters
from numdl.parallel._needs import Memory, needs
from numdl.parallel._processes import Processes, connect, first, is_first

__all__ = [
    "Cell",
    "Memory",
    "Processes",
    "connect",
    "first",
    "gather",
    "is_first",
    "mesh",
    "needs",
    "over_seeds",
    "replicate",
    "restore",
    "save",
    "shard_batch",
    "shard_parameters",
    "sweep",
]
