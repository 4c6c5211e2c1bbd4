"""The clock of SpIEL: when statistics of candidates are gathered, and when how much of the support is replaced.

With t steps done, the support changes where t mod R = gamma: after gamma, R + gamma, 2R + gamma, ... steps. The gamma
steps before gather the gradients of the candidates. The share that is replaced is all at the first change, and then
xi (1 - t / T) of a run of T steps, or always xi (1 + cos(pi t / T)) / 2 under `cosine` (Ansell et al. 2024, and their
code, `SftSelector`).
"""

import dataclasses
import math

from jaxsft.config import SpIELConfig


@dataclasses.dataclass(frozen=True)
class Clock:
    """When what is due.

    Attributes:
      every: R.
      phase: gamma.
      rate: xi.
      policy: "linear" or "cosine".
      steps: T, the length of the run.
      parity: phases as the authors' code has them: all but the first begin a step earlier, and have gamma + 1.
    """

    every: int
    phase: int
    rate: float
    policy: str
    steps: int
    parity: bool = False

    @classmethod
    def of(cls, config: SpIELConfig, steps: int) -> "Clock":
        """Of a run of `steps` steps."""
        return cls(config.reselect_every, config.phase, config.rate, config.policy, steps, config.parity)

    def selects(self, done: int) -> bool:
        """Whether the support changes after so many steps."""
        return done % self.every == self.phase and done <= self.steps

    @property
    def selections(self) -> list[int]:
        """All such numbers of steps; number i is gamma + i R."""
        return list(range(self.phase, self.steps + 1, self.every))

    def proportion(self, done: int) -> float:
        """p, the share of the support that may be replaced after so many steps."""
        return POLICIES[self.policy](self, done)

    def gathers(self, step: int) -> bool:
        """Whether step number `step` (from 1) gathers statistics, for a selection that the run lives to see."""
        place = step % self.every
        if self.parity and place == 0:
            return self.selects(step + self.phase)
        return 1 <= place <= self.phase and self.selects(step - place + self.phase)

    def opens(self, step: int) -> bool:
        """Whether it is the first of them, which finds the candidates."""
        return self.gathers(step) and not (step > 1 and self.gathers(step - 1))


POLICIES = {
    "linear": lambda clock, done: 1.0 if done == clock.phase else clock.rate * (1 - done / clock.steps),
    "cosine": lambda clock, done: clock.rate * (1 + math.cos(math.pi * done / clock.steps)) / 2,
}
