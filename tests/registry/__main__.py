"""The rows that are not refused as they should be: python -m tests.registry theory. analysis.jacobian"""

import os
import sys
import warnings

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
warnings.simplefilter("error")

from tests import registry, test_doors_registry  # noqa: E402

rows = failures = 0
for name, function in test_doors_registry.FUNCTIONS.items():
    if name in test_doors_registry.REGISTERED[0] and name.startswith(tuple(sys.argv[1:]) or ""):
        found = test_doors_registry.wrong(name)
        rows += sum(1 for _ in registry.bad_calls(name, function, test_doors_registry.REGISTERED))
        failures += len(found)
        for row, answer in found.items():
            print(f"{row}\t{answer}".replace("\n", " "))
print(f"{rows} rows, {failures} not refused")
