"""What PPO adapts from one iteration to the next: the KL coefficient, the scale of the scores."""

import math
from typing import NamedTuple, Self

import numpy as np


def adapted_kl_coef(
    kl_coef: float, kl: float, *, target: float, horizon: float, responses: int
) -> float:
    """The coefficient for the next iteration (Ziegler et al. 2019, section 2.2).

    It grows where the policy is further from the reference than `target`, and falls where it is
    closer: multiplied by 1 + responses / horizon x clip(kl / target - 1, -0.2, 0.2).

    Args:
        kl_coef: of this iteration, above 0: it is the controller's whole state.
        kl: mean KL of this iteration's responses, nats a response.
        target: for it, above 0.
        horizon: in responses: how slowly the coefficient changes.
        responses: of this iteration.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * responses / horizon)


class Moments(NamedTuple):
    """Mean and spread of all numbers seen so far (Chan et al. 1983), in float64."""

    seen: int = 0  # how many
    mean: float = 0.0
    squares: float = 0.0  # the sum of squared differences from the mean

    def updated(self, x: np.ndarray) -> Self:
        """With the numbers of `x` [n], n at least 1, seen too."""
        x = np.asarray(x, np.float64)
        seen = self.seen + x.size
        shift = float(x.mean()) - self.mean
        squares = float(np.sum((x - x.mean()) ** 2))
        return self._replace(
            seen=seen,
            mean=self.mean + shift * x.size / seen,
            squares=self.squares + squares + shift**2 * self.seen * x.size / seen,
        )

    @property
    def deviation(self) -> float:
        """The standard deviation (divided by n - 1); 1 where all numbers are the same."""
        return math.sqrt(self.squares / (self.seen - 1)) if self.squares > 0 else 1.0
