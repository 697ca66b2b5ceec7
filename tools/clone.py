"""What keeps DVC's experiments, above all those in a temporary copy (`--temp`, the queue, a sweep), from working here.

DVC itself loses a shallow clone's results in silence, and ends with an unexpected error on the others.
"""

import os
from collections.abc import Iterator

from qlora.runtime.console import Refusal
from tools import git

from dvc.exceptions import NotDvcRepoError
from dvc.repo import Repo


def obstacles() -> Iterator[str]:
    """Yield a sentence for each obstacle, with what to do about it.

    Raises:
        Refusal: if this is no Git repository with a commit, or no DVC project.
    """
    git.git("rev-parse", "--verify", "HEAD")
    if git.is_shallow():
        yield (
            "this clone is shallow, from which DVC cannot take experiments that run in a copy: run `git fetch "
            "--unshallow` first"
        )
    if not is_identified():
        yield (
            "Git does not know who you are, and DVC keeps experiments as commits: run `git config user.name NAME` and "
            "`git config user.email ADDRESS`"
        )
    try:
        with Repo() as repo:
            cache = repo.cache.local_cache_dir
    except NotDvcRepoError:
        raise Refusal("this folder is no DVC project: work in a clone of the repository, which has .dvc") from None
    if not cache.isascii():
        yield (
            f"DVC's cache is {cache}, and DVC cannot run experiments in a copy where that path holds letters beyond "
            "ASCII: move the repository, or copy the cache and run `dvc cache dir --local /other/folder`"
        )


def is_identified() -> bool:
    """Whether DVC finds a name and an address for its commits; unlike Git it makes none from the host's name."""
    return all(
        os.environ.get(f"GIT_{who}_{what}") or git.setting(f"user.{what.lower()}")
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    )
