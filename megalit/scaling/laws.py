"""Scaling laws: what a loss is as a function of parameters, tokens, members or generations.

Losses are in nats per token. ``N`` counts parameters, ``D`` training tokens, ``U`` unique tokens among them.
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from megalit.errors import UserError

Array = npt.NDArray[np.float64]
# One number or an array of them: what comes out has the shape of what goes in.
Values = TypeVar("Values", float, Array)


@dataclass(frozen=True)
class PowerLaw:
    """A power law with an asymptote, L(x) = A / x^B + C ("Pre-training under infinite compute", arXiv 2509.14786).

    Attributes:
        A: height of the part that falls, at x = 1.
        B: exponent.
        C: the asymptote: the loss as x goes to infinity.
    """

    A: float
    B: float
    C: float

    def predict(self, x: Values) -> Values:
        """Loss at ``x`` > 0."""
        return self.A / x**self.B + self.C

    def invert(self, loss: float) -> float:
        """The x that has this loss, (A / (L - C))^(1 / B): infinite for a loss at the asymptote or below.

        Raises:
            UserError: the loss is not a number, or the law is flat (A or B is 0).
        """
        if math.isnan(loss):
            raise UserError("the loss to invert the law at is not a number: leave that run out")
        if self.A <= 0 or self.B <= 0:
            raise UserError(f"{self} does not fall, so no x belongs to a loss: fit it to points that fall")
        if loss <= self.C:
            return math.inf
        try:
            return float((self.A / (loss - self.C)) ** (1 / self.B))
        except OverflowError:
            return math.inf

    def __str__(self) -> str:
        return f"{self.A:.5g} / x^{self.B:.4g} + {self.C:.5g}"


@dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta (Hoffmann et al., arXiv 2203.15556, section 3.3).

    Attributes:
        A, alpha: of the parameters.
        B, beta: of the training tokens, each of them read once.
        E: irreducible loss.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float

    def predict(self, N: Values, D: Values) -> Values:
        """Loss of ``N`` parameters after ``D`` tokens."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta

    def optimal_parameters(self, D: Values) -> Values:
        """Parameters that are compute-optimal for ``D`` tokens, at 6 N D FLOPs."""
        G = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return G * (G * D) ** (self.beta / self.alpha)

    def __str__(self) -> str:
        return f"{self.E:.5g} + {self.A:.5g} / N^{self.alpha:.4g} + {self.B:.5g} / D^{self.beta:.4g}"


@dataclass(frozen=True)
class DataConstrained:
    """The law of repeated epochs (Muennighoff et al., arXiv 2305.16264, section 3).

    Repeated tokens, and parameters beyond those that are optimal for the unique tokens, are worth less and less:
    r repetitions count as R* (1 - exp(-r / R*)).

    Attributes:
        base: the law of tokens that are read once.
        R_D: repetitions after which another one is worth 1/e of a new token.
        R_N: the same for excess parameters.
    """

    base: Chinchilla
    R_D: float
    R_N: float

    def predict(self, N: Values, D: Values, U: Values) -> Values:
        """Loss of ``N`` parameters after ``D`` tokens, of which ``U`` are unique."""
        unique = np.minimum(U, D)
        fitting = np.minimum(N, self.base.optimal_parameters(unique))
        tokens = unique * (1 + _worth(D / unique - 1, self.R_D))
        parameters = fitting * (1 + _worth(N / fitting - 1, self.R_N))
        loss: Any = self.base.predict(parameters, tokens)
        return loss if isinstance(loss, np.ndarray) and loss.ndim else float(loss)

    def __str__(self) -> str:
        return f"{self.base}, with R_D* = {self.R_D:.5g} and R_N* = {self.R_N:.5g}"


def _worth(repetitions: Any, scale: float) -> Any:
    return -scale * np.expm1(-repetitions / scale)


# What Muennighoff et al. publish (huggingface/datablations): logarithms of A, B and E.
MUENNIGHOFF = DataConstrained(
    Chinchilla(math.exp(6.255414), math.exp(7.3049974), math.exp(0.6254804), 0.3526596, 0.3526596),
    R_D=15.387756,
    R_N=5.309743,
)
