"""The hub: a repository's files at one commit, or one sentence that says why they are not available."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from qlora.runtime.console import Refusal

COMMIT = re.compile(r"[0-9a-f]{40}")
Kind = Literal["model", "dataset", "adapter"]
COPIES = ["consolidated*"]  # the same weights again, in the maker's own format
SECTION = {"model": "model", "dataset": "data"}  # of params.yaml
FIELD = {"model": "model.id", "dataset": "data.source", "adapter": "lora.start_from"}
PIN = {"model": "model.revision", "dataset": "data.revision", "adapter": "lora.start_from"}
NOUN = {"model": "model", "dataset": "data set", "adapter": "adapter"}
REPOSITORY = {"model": "model", "dataset": "dataset", "adapter": "model"}  # the hub's kinds
LOCAL = {"model": "a local folder", "dataset": "a file under data/raw", "adapter": "a folder under data/adapters"}


def download(kind: Kind, name: str, revision: str | None, patterns: Sequence[str] | None = None) -> Path:
    """The folder with the files of exactly this commit that match `patterns`; from the cache if it has them.

    Raises:
        Refusal: as from `explained` and `check_pinned`; if the hub cannot be reached, with what the cache lacks.
    """
    import httpx
    from huggingface_hub import errors, snapshot_download

    check_pinned(kind, name, revision)
    files = {"repo_type": REPOSITORY[kind], "revision": revision, "allow_patterns": patterns, "ignore_patterns": COPIES}
    with explained(kind, name, revision):
        try:
            return Path(snapshot_download(name, **files))
        except (httpx.TransportError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
            folder = Path(
                snapshot_download(name, **files, local_files_only=True)
            )  # raises if the cache is known to lack some
    if kind == "model" and not any(folder.glob("*.safetensors")):
        raise _unreachable(kind, name, revision, "in the local cache without its weights,")
    # Fetched by an older huggingface_hub, or file by file.
    raise _unreachable(kind, name, revision, f"in the local cache ({folder}) without a list of all its files,")


def check_pinned(kind: Kind, name: str, revision: str | None) -> None:
    """Raise Refusal if `revision` is not a commit; it names the commit to pin, which the hub tells."""
    if COMMIT.fullmatch(revision or ""):
        return
    commit = commit_of(kind, name, revision)
    raise Refusal(
        f"{PIN[kind]}: must pin {name} by its commit, because a branch can move; "
        f"{revision or 'its main branch'} is now {commit}: set {PIN[kind]} to "
        + (f"{name}@{commit}" if kind == "adapter" else "that")
    )


def commit_of(kind: Kind, name: str, revision: str | None) -> str:
    """The commit that a branch or tag, or with None the main branch, is at now.

    Raises:
        Refusal: as from `explained`.
    """
    from huggingface_hub import HfApi

    with explained(kind, name, revision):
        return HfApi().repo_info(name, repo_type=REPOSITORY[kind], revision=revision).sha


@contextmanager
def explained(kind: Kind, name: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors inside the block into one sentence.

    Raises:
        Refusal: if the repository or commit does not exist, a licence or token is missing, or the hub is unreachable.
    """
    import httpx
    from huggingface_hub import errors

    field, noun = FIELD[kind], NOUN[kind]
    try:
        yield
    except errors.GatedRepoError:
        raise Refusal(
            f"{field}: {name} is gated: accept its licence on the hub's page of the {noun}, then give a token of that "
            "account in the environment variable HF_TOKEN (or run `hf auth login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise Refusal(
            f"{field}: the hub has no {noun} {name}, or it is private; check the spelling, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise Refusal(f"{PIN[kind]}: the hub has no commit {revision} of {name}") from None
    except errors.IncompleteSnapshotError as error:
        missing = str(error).partition(" are missing (")[2].partition("). ")[0]
        raise _unreachable(kind, name, revision, f"in the local cache without {missing},") from None
    except (httpx.TransportError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise _unreachable(kind, name, revision, "not in the local cache") from None
    except OSError as error:
        if "Consistency check failed" not in str(error):
            raise
        raise Refusal(
            f"{field}: a file of {name} ended before its end ({str(error).splitlines()[0].partition(': ')[2]}); run "
            "again, which fetches only what is missing, or try another mirror (HF_ENDPOINT)"
        ) from None
    except errors.HfHubHTTPError as error:
        raise Refusal(f"{field}: the hub answered {error.response.status_code} for {name}; try again later") from None


def _unreachable(kind: Kind, name: str, revision: str | None, cached: str) -> Refusal:
    where, local = FIELD[kind], LOCAL[kind]
    return Refusal(
        f"{where}: {name} at {revision or 'its main branch'} is {cached} and the hub cannot be reached; check the "
        f"network, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE, or name {local} in {where}"
    )
