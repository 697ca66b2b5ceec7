"""Gates: limits on an artifact's metrics (evaluate.gates in params.yaml), and whether they hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qlora.recipe.metrics import METRICS, parse_gate


@dataclass(frozen=True)
class Checked:
    """A gate and what was measured.

    Attributes:
        artifact: The artifact.
        name: ARTIFACT.METRIC, as in params.yaml.
        sign: ">=" or "<=".
        limit: As in params.yaml.
        value: None if it was not measured.
        holds: Whether the value is on the right side of the limit, or at it.
    """

    artifact: str
    name: str
    sign: str
    limit: float
    value: float | None
    holds: bool

    @property
    def margin(self) -> float:
        """How far the value is on the right side of the limit; negative if the gate is broken."""
        return _margin(self.sign, self.limit, self.value)


def check(gates: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Mapping[str, float]]) -> list[Checked]:
    """Check each gate (artifact -> name -> limit) against the artifacts' metrics (artifact -> metric -> value)."""
    checked = []
    for artifact, limits in gates.items():
        for name, limit in limits.items():
            metric, change, other = parse_gate(name)
            value = metrics[artifact].get(metric)
            if change:
                before = metrics[other].get(metric)
                value = (
                    None if value is None or before is None else value - before if change == "rise" else before - value
                )
            sign = ">=" if METRICS[metric].higher_is_better and not change else "<="
            # Decimal fractions: 0.57 - 0.56 may be a little below 0.01.
            holds = _margin(sign, limit, value) >= -1e-9
            checked.append(Checked(artifact, f"{artifact}.{name}", sign, limit, value, holds))
    return checked


def _margin(sign: str, limit: float, value: float | None) -> float:
    if value is None:
        return math.nan
    return value - limit if sign == ">=" else limit - value
