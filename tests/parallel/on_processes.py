"""One of several processes of four devices each: python on_processes.py ADDRESS COUNT RANK FOLDER STEPS KILLED_AT

Trains with parameters and examples over all processes, a checkpoint a step, and prints what it found as JSON.
"""

import json
import os
import signal
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={8 // int(sys.argv[2])}"

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numdl import parallel

jax.config.update("jax_enable_x64", True)


def loss(params, batch):
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["hidden"]) @ params["readout"] - y) ** 2)


@jax.jit
def step(params, memory, batch):
    value, slopes = jax.value_and_grad(loss)(params, batch)
    change, memory = OPTIMIZER.update(slopes, memory, params)
    return optax.apply_updates(params, change), memory, value


OPTIMIZER = optax.adam(1e-2)


def main():
    address, folder = sys.argv[1], sys.argv[4]
    count, rank, steps, killed_at = (int(sys.argv[place]) for place in (2, 3, 5, 6))
    me = parallel.connect(address, count=count, rank=rank, timeout=120) if count > 1 else parallel.Processes(0, 1)
    over, random = parallel.mesh(), np.random.default_rng(0)
    params = {"hidden": random.normal(size=(6, 16)) / 3, "readout": random.normal(size=(16, 2)) / 4}
    params = parallel.shard_parameters(params, over, least=0)
    batch = parallel.shard_batch((random.normal(size=(16, 6)), random.normal(size=(16, 2))), over)
    start, (params, memory) = parallel.restore(folder, (params, OPTIMIZER.init(params))) or (
        0,
        (params, OPTIMIZER.init(params)),
    )
    value = np.nan
    for now in range(start + 1, steps + 1):
        params, memory, value = step(params, memory, batch)
        parallel.save(folder, now, (params, memory))
        if now == killed_at and me.rank == me.count - 1:
            os.kill(os.getpid(), signal.SIGKILL)
    found = {"start": start, "loss": float(value), "params": parallel.gather(params)["hidden"].tolist()}
    found["whole"] = params["hidden"].addressable_shards[0].data.shape == (6, 16)
    noise = parallel.over_seeds(jax.random.normal, jax.random.split(jax.random.key(0), 5), mesh=over)
    found["noise"] = noise.tolist()
    found["wrote"] = parallel.first(lambda: "written") == "written"
    if steps > 2:  # the rest of the suite has it on one process
        from numdl.analysis import curvature

        found["top"] = curvature.top_eigenvalues(loss, params, batch, key=jax.random.key(1), k=2).values.tolist()
        found["trace"] = float(curvature.trace(loss, params, batch, key=jax.random.key(2), num_matvecs=4).value)
    print(json.dumps(found), flush=True)


main()
