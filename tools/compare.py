"""compare: two experiments row by row, from what Git holds of them: no models, no answers, no cache.

python -m tools.compare origin/main              # what this workspace changes against a commit, branch or experiment
python -m tools.compare main my-experiment       # or one against the other
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.metrics import METRICS
from qlora.reporting import bootstrap, outcomes
from qlora.reporting.bootstrap import Interval
from qlora.reporting.outcomes import MEASURES, Outcomes
from qlora.reporting.tables import change, show, table
from qlora.runtime.console import Refusal, run_stage


@dataclass(frozen=True)
class Difference:
    """One metric of one artifact in two experiments; `change` is after - before on the same rows."""

    artifact: str
    metric: str
    before: float
    after: float
    change: Interval

    @property
    def verdict(self) -> str:
        """What the interval allows to say: "better", "worse", or "no difference seen"."""
        if not self.change.excludes_zero:
            return "no difference seen"
        return "better" if (self.change.value > 0) == METRICS[self.metric].higher_is_better else "worse"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="commit, branch, tag or experiment")
    parser.add_argument("after", nargs="?", help="another one; by default this workspace")
    options = parser.parse_args()
    print(difference_table(differences(load(options.before), load(options.after))))


def load(revision: str | None) -> Outcomes:
    """The test rows' outcomes at a commit, branch, tag or experiment; in the workspace for None.

    Raises:
        Refusal: if there is no such revision, or if it has no outcomes.
    """
    if revision is None:
        if not outcomes.PATH.is_file():
            raise Refusal(f"{outcomes.PATH} is missing; run `dvc repro`")
        return parse(outcomes.PATH.read_text(encoding="utf-8"), "the workspace")
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
    return parse(text, revision)


def parse(text: str, where: str) -> Outcomes:
    """The outcomes in a file's text. Raises Refusal if it holds something else, such as a merge conflict."""
    try:
        return outcomes.parse(text)
    except ValueError as error:
        raise Refusal(f"{where}: {outcomes.PATH} is not readable by this version ({error})") from None


def differences(before: Outcomes, after: Outcomes) -> list[Difference]:
    """Every metric of every artifact that both experiments have, with the paired interval of its change.

    Loss and next-token accuracy are left out if another tokenizer makes them means over other tokens.

    Raises:
        Refusal: if the experiments did not answer the same test rows, so that nothing can be paired.
    """
    old_rows, new_rows = before.rows, after.rows
    if list(old_rows["digest"]) != list(new_rows["digest"]):
        raise Refusal(
            f"the two experiments answered different test rows ({len(old_rows)} and {len(new_rows)}; data.* or its "
            "source changed), so no row of one can be compared with the same row of the other"
        )
    same_tokens = list(old_rows["supervised"]) == list(new_rows["supervised"])
    found = []
    for artifact in (name for name in after.artifacts if name in before.artifacts):
        for metric, (_, denominator) in MEASURES.items():
            if denominator == "supervised" and not same_tokens:
                continue
            if before.has(artifact, metric) and after.has(artifact, metric):
                old, weights = before.sums(artifact, metric)
                new, weights_after = after.sums(artifact, metric)
                both = (weights > 0) & (weights_after > 0)  # other databases (evaluate.*) may judge other rows
                old, new, weights = old[both], new[both], weights[both]
                interval = bootstrap.ratio(new - old, weights, new_rows["group"][both])
                values = (old.sum() / weights.sum(), new.sum() / weights.sum())
                found.append(Difference(artifact, metric, *map(float, values), interval))
    return found


def difference_table(found: list[Difference]) -> str:
    """The differences in Markdown; in brackets behind each change its 95 % interval."""
    rows = [
        [
            difference.artifact,
            METRICS[difference.metric].heading,
            show(difference.metric, difference.before),
            show(difference.metric, difference.after),
            change(difference.metric, difference.change),
            difference.verdict,
        ]
        for difference in found
    ]
    return table(["artifact", "metric", "before", "after", "change", ""], rows, left=2)


if __name__ == "__main__":
    run_stage(main)
