"""publish: one artifact and its model card to a repository on the hub, private unless you say otherwise.

python -m tools.publish --type Q4_K_M --to owner/name [--public] [--dry-run]

All files appear in one commit or none. Interrupted, the same command goes on: what was uploaded is not sent again.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qlora.recipe.artifacts import ADAPTER_GGUF, BASE_RECORD, PROJECTOR, Artifact, find
from qlora.recipe.schema import EMBEDDED_SOURCE, Model
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.source import base_model
from qlora.weights.made import check_made
from tools import secrets_scan

CARD = Path("results/model_card.md")
LEFT_OUT = {BASE_RECORD, "quantization.json", "Modelfile"}  # of this repository: paths in it, and names of its files
RELATIONS = {"adapter": "adapter", ADAPTER_GGUF: "adapter", "merged": "finetune"}
NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class File:
    """What is uploaded under `name`: a file of this repository, or a text that is made of one."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


def main() -> None:
    options = parse_arguments()
    artifact = find_artifact(options.type)
    files = collect(artifact, options.to)
    check_secrets(files)
    listing = {file.name: f"{file.size / 1e6:,.3f} MB" for file in files}
    if options.dry_run:
        summary(f"would upload {artifact.name} to {options.to}, {'public' if options.public else 'private'}", listing)
        return
    check_token()
    if options.public and not agreed(f"{options.to} will be public: anybody can see and download it."):
        raise Refusal("nothing was uploaded; leave --public out to keep it private")
    url = upload(files, options.to, options.public)
    summary(f"uploaded {artifact.name}", listing | {"is at": url})


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--type", required=True, help="adapter, merged, or one of gguf.types, gguf.adapters, vllm.types"
    )
    parser.add_argument("--to", required=True, metavar="OWNER/NAME", help="the repository; made if there is none")
    parser.add_argument("--public", action="store_true", help="make it public in the end; asks before")
    parser.add_argument("--dry-run", action="store_true", help="only list the files")
    options = parser.parse_args()
    if not NAME.fullmatch(options.to):
        raise Refusal(f"TO={options.to}: name the repository on the hub as owner/name")
    return options


def find_artifact(name: str) -> Artifact:
    """Raises Refusal unless it is an artifact that is made here, and can be published."""
    artifact = find(name)
    if artifact is None or name in ("base", "bf16"):
        raise Refusal(
            f"TYPE={name}: publish adapter, merged, or one of gguf.types, gguf.adapters or vllm.types (params.yaml)"
        )
    check_made(artifact)
    if not CARD.is_file():
        raise Refusal(f"{CARD} is not there; run `dvc repro report`, which writes it")
    return artifact


def collect(artifact: Artifact, repository: str) -> list[File]:
    """The files to upload, with the names that the hub's and LM Studio's users look for."""
    model = base_model.recorded(artifact.folder)
    stem = repository.partition("/")[2].removesuffix("-GGUF")
    files = [File("README.md", card(artifact, repository, stem).encode())]
    for path in sorted(artifact.folder.iterdir()):
        if path.name in LEFT_OUT:
            continue
        name, content = path.name, path
        if path == artifact.folder / "model.gguf":
            name = f"{stem}-{artifact.name}.gguf"
        elif path.name == PROJECTOR:
            name = f"mmproj-{stem}.gguf"
        elif path.name == "adapter_config.json":
            content = on_the_hub(path, model)
        files.append(File(name, content))
    return files


def card(artifact: Artifact, repository: str, stem: str) -> str:
    """The model card, with how this artifact is run from the hub."""
    from huggingface_hub import ModelCard

    text = ModelCard(CARD.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    text.data.base_model_relation = RELATIONS.get(artifact.name, "quantized")
    if artifact.name == ADAPTER_GGUF:
        run = [
            f"hf download {repository} --local-dir .",
            f"llama-server --model BASE.gguf --lora {stem}-{ADAPTER_GGUF}.gguf",
        ]
    elif artifact.answered_by == "llama.cpp":
        run = [f"llama-server -hf {repository}:{artifact.name} --jinja"]
    elif artifact.name == "adapter":
        run = [f"vllm serve {text.data.base_model or 'BASE'} --enable-lora --lora-modules tuned={repository}"]
    else:
        run = [f"vllm serve {repository}"]
    commands = "## Run it\n\n```bash\n" + "\n".join(run) + "\n```\n"
    text.text = re.sub(r"## Run it\n\n```bash\n.*?```\n", lambda _: commands, text.text, count=1, flags=re.DOTALL)
    text.text = re.sub(r"(?m)^- files: .*\n", "", text.text, count=1)
    return f"---\n{text.data}\n---\n{text.text}"


def on_the_hub(path: Path, model: Model) -> bytes:
    """An adapter's config that names the base model as the hub does. A folder of this machine is nobody's business."""
    config = json.loads(path.read_text(encoding="utf-8"))
    name = EMBEDDED_SOURCE if model.is_embedded else None if model.is_local else model.id
    return json.dumps(config | {"base_model_name_or_path": name}, indent=2).encode()


def check_secrets(files: list[File]) -> None:
    """Raise Refusal if a pattern of keys matches a file."""
    for file in files:
        if isinstance(file.content, bytes):
            wrong = secrets_scan.of_content(file.content)
        else:
            wrong = secrets_scan.of_file(file.content)
        if wrong:
            raise Refusal(
                f"{file.name}: {wrong}; nothing was uploaded. Take it out where it comes from, and make it anew"
            )


def check_token() -> None:
    """Raise Refusal without a token; in CI only one that was given to this job counts."""
    from huggingface_hub import get_token

    if os.environ.get("CI") and not os.environ.get("HF_TOKEN"):
        raise Refusal("in CI a token must be given to the job: set HF_TOKEN, with the right to write")
    token = get_token()
    if not token:
        raise Refusal("there is no token for the hub: run `hf auth login`, or set HF_TOKEN, with the right to write")
    if not re.fullmatch(r"[!-~]+", token):
        raise Refusal("the token for the hub holds a character that no token has: run `hf auth login`, or set HF_TOKEN")


def agreed(consequence: str) -> bool:
    """Whether a person says yes; where nobody can be asked, nobody does."""
    print(f"{consequence} Go on? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def upload(files: list[File], repository: str, public: bool) -> str:
    """Make the repository, private, if there is none, and commit the files at once; then make it public, if asked.

    Returns:
        The commit's address.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    with explained(repository):
        api.whoami()
        made = api.create_repo(repository, private=True, exist_ok=True)
        if not (public or api.repo_info(repository).private) and not agreed(f"{repository} is public already."):
            raise Refusal("nothing was uploaded; name a private repository, or make this one private on the hub")
        content = [
            CommitOperationAdd(file.name, file.content if isinstance(file.content, bytes) else str(file.content))
            for file in files
        ]
        commit = api.create_commit(made.repo_id, content, commit_message="Upload the model and its card")
        if public:
            api.update_repo_settings(repository, private=False)
    return commit.commit_url


@contextmanager
def explained(repository: str) -> Iterator[None]:
    """Turn the hub's errors inside the block into one sentence."""
    import httpx
    from huggingface_hub import errors

    again = "the same command goes on where it stopped"
    try:
        yield
    except KeyboardInterrupt:
        raise Refusal(f"interrupted; {again}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status == 401:
            reason = "the hub does not know this token: run `hf auth login` again, or correct HF_TOKEN"
        elif status in (403, 404):
            reason = f"this token may not write to {repository}: take one of its owner that has the right to write"
        else:
            reason = f"the hub answered {status}; {again}"
        raise Refusal(f"nothing was published: {reason}") from None
    except (httpx.TransportError, errors.OfflineModeIsEnabled, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "uploading" not in str(error):
            raise
        raise Refusal(f"nothing was published: the connection to the hub broke or cannot be made; {again}") from None


if __name__ == "__main__":
    run_stage(main)
