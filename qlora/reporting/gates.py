"""Gates: limits on what an artifact may measure (evaluate.gates in params.yaml), held against what it measured."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qlora.recipe.params import AT_LEAST, parse_gate


@dataclass(frozen=True)
class Checked:
    """A gate and what was found.

    name: ARTIFACT.METRIC, as in params.yaml; sign: ">=" or "<="; value: None where it was not measured; margin: how far
    the value is on the right side of the limit, negative beyond it.
    """

    artifact: str
    name: str
    sign: str
    limit: float
    value: float | None

    @property
    def margin(self) -> float:
        if self.value is None:
            return math.nan
        return self.value - self.limit if self.sign == ">=" else self.limit - self.value

    @property
    def holds(self) -> bool:
        return self.margin >= -1e-9  # decimal fractions: 0.57 - 0.56 may be a hair below 0.01


def check(gates: Mapping[str, Mapping[str, float]], metrics: Mapping[str, Mapping[str, float]]) -> list[Checked]:
    """Hold each gate (artifact -> metric -> limit) against the artifacts' metrics (artifact -> metric -> value)."""
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
            sign = ">=" if metric in AT_LEAST and not change else "<="
            checked.append(Checked(artifact, f"{artifact}.{name}", sign, limit, value))
    return checked
