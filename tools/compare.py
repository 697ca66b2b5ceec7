"""Compare two experiments row by row, from what Git holds of them: no models, no answers, no cache.

python -m tools.compare origin/main              # what this workspace changes against a commit, branch or experiment
python -m tools.compare main my-experiment       # or one against the other
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora.recipe.params import AT_LEAST
from qlora.reporting import bootstrap, outcomes
from qlora.reporting.bootstrap import Interval
from qlora.reporting.markdown import table
from qlora.reporting.outcomes import MEASURES, Outcomes
from qlora.runtime.console import Refusal, run_stage
from stages.report import change, show


@dataclass(frozen=True)
class Difference:
    """One measure of one artifact in two experiments; `change` is after - before on the same rows."""

    artifact: str
    measure: str
    before: float
    after: float
    change: Interval

    @property
    def verdict(self) -> str:
        """What the interval allows to say: "better", "worse", or "no difference seen"."""
        if not self.change.excludes_zero:
            return "no difference seen"
        return "better" if (self.change.value > 0) == (self.measure in AT_LEAST) else "worse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit, branch, tag or experiment")
    parser.add_argument("after", nargs="?", help="another one; this workspace if not given")
    options = parser.parse_args()
    print(difference_table(differences(load(options.before), load(options.after))))


def load(revision: str | None) -> Outcomes:
    """What the test rows' outcomes were at a commit, branch, tag or experiment; in the workspace for None.

    Raises:
        Refusal: if there is no such revision, or if it has no outcomes.
    """
    if revision is None:
        if not outcomes.PATH.is_file():
            raise Refusal(f"{outcomes.PATH} is missing; run `dvc repro`")
        return outcomes.parse(outcomes.PATH.read_text(encoding="utf-8"))
    import dvc.api  # takes a second
    from dvc.exceptions import DvcException, PathMissingError
    from scmrepo.exceptions import SCMError

    try:
        text = dvc.api.read(str(outcomes.PATH), repo=str(Path.cwd()), rev=revision, encoding="utf-8")
    except (PathMissingError, FileNotFoundError):
        raise Refusal(
            f"{revision} has no {outcomes.PATH}: its `report` did not run, or is older than that file"
        ) from None
    except (DvcException, SCMError, OSError) as error:
        raise Refusal(f"{revision}: {outcomes.PATH} cannot be read there ({error})") from None
    try:
        return outcomes.parse(text)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise Refusal(
            f"{revision}: {outcomes.PATH} was written by another version of this project ({error!r})"
        ) from None


def differences(before: Outcomes, after: Outcomes) -> list[Difference]:
    """Every measure of every artifact that both experiments have, with the paired interval of its change.

    Loss and next-token accuracy are left out where another tokenizer makes them means over other tokens.

    Raises:
        Refusal: if the experiments did not answer the same test rows, so that nothing can be paired.
    """
    if before.test_set != after.test_set:
        raise Refusal(
            f"the two experiments answered different test rows ({len(before.ids)} and {len(after.ids)}; data.* or its "
            "source changed), so no row of one can be held against the same row of the other"
        )
    found = []
    for artifact in after.artifacts:
        for measure, (_, weight) in MEASURES.items():
            if weight == "tokens" and before.tokens != after.tokens:
                continue
            if before.has(artifact, measure) and after.has(artifact, measure):
                old, weights = before.sums(artifact, measure)
                new, weights_after = after.sums(artifact, measure)
                both = (weights > 0) & (weights_after > 0)  # other databases (evaluate.*) may judge other rows
                old, new, weights = old[both], new[both], weights[both]
                interval = bootstrap.ratio(new - old, weights, np.array(after.groups)[both])
                values = (old.sum() / weights.sum(), new.sum() / weights.sum())
                found.append(Difference(artifact, measure, *map(float, values), interval))
    return found


def difference_table(found: list[Difference]) -> str:
    """The differences in Markdown; in brackets behind each change its 95 % interval."""
    rows = [
        [
            difference.artifact,
            difference.measure.replace("_", " "),
            show(difference.measure, difference.before),
            show(difference.measure, difference.after),
            change(difference.measure, difference.change),
            difference.verdict,
        ]
        for difference in found
    ]
    return table(["artifact", "measure", "before", "after", "change", ""], rows, left=2)


if __name__ == "__main__":
    run_stage(main)
