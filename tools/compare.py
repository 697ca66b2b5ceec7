"""compare: two experiments row by row, from what Git holds of them: no models, no answers, no cache.

python -m tools.compare origin/main              # what this workspace changes against a commit, branch or experiment
python -m tools.compare main my-experiment       # or one against the other
"""

import argparse
import json
from dataclasses import dataclass

from qlora.recipe.metrics import METRICS
from qlora.reporting import outcomes, summary
from qlora.reporting.bootstrap import Interval
from qlora.reporting.outcomes import MEASURES, OF_TOKENS, Outcomes
from qlora.reporting.tables import change, show, table
from qlora.runtime.console import Refusal, run_stage
from tools import git


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
    print(*environment_notes(load_summary(options.before), load_summary(options.after)), sep="\n")


def load_summary(revision: str | None) -> dict:
    """metrics/summary.json at a revision that `load` knows; in the workspace for None. Empty if there is none."""
    if revision is None:
        return summary.read()
    return json.loads(git.file_at(git.commit_of(revision) or experiment(revision), summary.PATH) or "{}")


def environment_notes(before: dict, after: dict) -> list[str]:
    """A line for each change of what artifacts were measured with, by two summaries: a score may have moved with it."""
    old, new = before.get("measured_with", {}), after.get("measured_with", {})
    changed: dict[tuple[str, str], list[str]] = {}
    for artifact in new:
        if artifact in old and old[artifact] != new[artifact]:
            changed.setdefault((old[artifact], new[artifact]), []).append(artifact)
    return [
        f"{', '.join(artifacts)} measured with something else: before {was}; after {now}"
        for (was, now), artifacts in changed.items()
    ]


def load(revision: str | None) -> Outcomes:
    """The test rows' outcomes at a commit, branch, tag or experiment; in the workspace for None.

    Raises:
        Refusal: if there is no such revision, or if it has no outcomes.
    """
    if revision is None:
        if not outcomes.PATH.is_file():
            raise Refusal(f"{outcomes.PATH} is missing; run `dvc repro`")
        return parse(outcomes.PATH.read_text(encoding="utf-8"), "the workspace")
    commit = git.commit_of(revision) or experiment(revision)
    text = git.file_at(commit, outcomes.PATH)
    if text is None:
        raise Refusal(f"{revision} has no {outcomes.PATH}: its `report` did not run, or is older than that file")
    return parse(text, revision)


def experiment(name: str) -> str:
    """The commit of the experiment with this name; of several, of the one that began at HEAD, as DVC has it.

    Raises:
        Refusal: if there is none, or several that began elsewhere.
    """
    refs = git.git("for-each-ref", "--format=%(refname) %(objectname)", f"refs/exps/??/*/{name}").splitlines()
    head = git.git("rev-parse", "HEAD").strip()
    found = {ref.removeprefix("refs/exps/").replace("/", "", 1)[: len(head)]: ref.split()[1] for ref in refs}
    if head in found:
        return found[head]
    if not found:
        raise Refusal(f"{name}: no commit, branch, tag or experiment has this name; `dvc exp list --all` lists them")
    if len(found) > 1:
        commits = ", ".join(commit[:7] for commit in found.values())
        raise Refusal(f"{name}: {len(found)} experiments have this name; name one by its commit: {commits}")
    (commit,) = found.values()
    return commit


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
        for metric in MEASURES:
            if OF_TOKENS.get(metric, ("", ""))[1] == "supervised" and not same_tokens:
                continue
            # Other databases (evaluate.*) may judge other rows.
            both = before.judged(artifact, metric) & after.judged(artifact, metric)
            if both.any():
                old, new = before.counts(artifact, metric)[both], after.counts(artifact, metric)[both]
                values = (float(outcomes.statistic(metric)(counts.sum(0))) for counts in (old, new))
                change = outcomes.paired(old, new, metric, new_rows["group"][both])
                found.append(Difference(artifact, metric, *values, change))
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
