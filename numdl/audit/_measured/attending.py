"""MEASURED: attention's logits and entropies at the start and at the end of each training of the trial."""

import jax
import numpy as np

from numdl.audit._measured import cases
from numdl.audit.evidence import Attention

MOST = 64  # examples


class Watch:
    """Called as the trial's `watch`; `record()` is the Attention of all that was seen, or None."""

    def __init__(self, case, logits, signal):
        self.case, self.rows, self.logits = case, {}, logits
        x = case.x
        self.x = cases.take(x, slice(0, MOST)) if case.separate and case.examples > MOST else x
        has_any = signal is not None and "attention" in signal.kinds
        self.start = self._seen(case.moving) if has_any else None

    def __call__(self, rate, moving):
        if self.start is not None and self.start.names:
            self.rows.setdefault(rate, []).append(self._seen(moving))

    def record(self):
        if self.start is None or not self.start.names:
            return None
        rows = [self.rows[rate] for rate in sorted(self.rows)]
        wide = lambda name, one: np.asarray(getattr(one, name), np.float64)  # noqa: E731
        logits = [np.max([wide("logit_max", one) for one in row], axis=0) for row in rows]
        entropy = [np.mean([wide("entropy", one) for one in row], axis=0) for row in rows]
        blank = np.zeros((0, len(self.start.names)))
        return Attention(
            names=self.start.names,
            logit_max=wide("logit_max", self.start),
            entropy=wide("entropy", self.start),
            end_logit_max=np.stack(logits) if rows else blank,
            end_entropy=np.stack(entropy) if rows else blank,
        )

    def _seen(self, moving):
        return jax.device_get(self.case.run(_look, moving, self.x, logits=self.logits))


def _look(form, moving, x, *, logits):
    return logits(form.plain, moving, x)
