"""Gates: limits on an artifact's metrics (evaluate.gates in params.yaml), and whether they hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from qlora.recipe.metrics import METRICS, parse_gate

OF_ALL_ROWS = ("exact_match", "valid_sql")
FEW_ROWS = 30  # an accuracy of fewer has a 95 % interval of more than 0.3


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
        note: What the reader must know of the value: why it is missing, or on how few rows it rests.
    """

    artifact: str
    name: str
    sign: str
    limit: float
    value: float | None
    holds: bool
    note: str = ""

    @property
    def shown(self) -> str:
        """The value as it is compared with the limit: a table's three digits could hide on which side it is."""
        return "-" if self.value is None else f"{self.value:g}"

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
            note = _note(metric, value, metrics[artifact])
            checked.append(Checked(artifact, f"{artifact}.{name}", sign, limit, value, holds, note))
    return checked


def _note(metric: str, value: float | None, measured: Mapping[str, float]) -> str:
    judged = measured.get("judged") if METRICS[metric].kinds else None
    if judged is not None and metric not in OF_ALL_ROWS:
        if judged == 0:
            return f"not measured: none of the {measured['rows']} test rows can be judged"
        if judged < FEW_ROWS:
            return f"of {judged} judged rows: fewer than {FEW_ROWS} say little"
    if value is None and METRICS[metric].kinds and metric not in measured:
        return "not measured: name it in evaluate.metrics"
    return "not measured" if value is None else ""


def _margin(sign: str, limit: float, value: float | None) -> float:
    if value is None:
        return math.nan
    return value - limit if sign == ">=" else limit - value
