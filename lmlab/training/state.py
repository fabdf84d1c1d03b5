"""What training carries from step to step."""

from typing import Any

import flax.struct


@flax.struct.dataclass
class State:
    """step: updates done. params: what the gradient moves. collections: what the task keeps besides
    (statistics, codebooks, a recurrent carry). ema: averaged parameters, or None."""

    step: Any
    params: Any
    opt_state: Any
    collections: Any
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """What is evaluated and sampled from: the average of the parameters where there is one."""
        return {"params": self.params if self.ema is None else self.ema, **self.collections}
