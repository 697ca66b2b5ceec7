"""ask: one question from the shell to any artifact; prints the answer while it is generated.

python -m tools.ask "How many users are there?" --schema schema.sql
python -m tools.ask "Why is the sky blue?" --artifact merged          (a chat recipe has no schema)
"""

import argparse
import sys
from pathlib import Path

from qlora.recipe.artifacts import find
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data, Params
from qlora.runtime.console import Refusal, run_stage
from tools import serving


def main() -> None:
    options = parse_arguments()
    params = load_params()
    artifact = options.artifact or serving.default_artifact(params)
    conversation = messages(params.data, options.question, read_schema(options.schema, params.data))
    if artifact in (*params.gguf.types, "bf16"):
        ask_gguf(artifact, params, conversation, options.max_tokens)
    else:
        ask_transformers(artifact, conversation, options.max_tokens)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("question")
    parser.add_argument("--schema", type=Path, help="text-to-SQL: a file of CREATE TABLE statements, or - to read them")
    parser.add_argument("--artifact", help="base, adapter, merged, bf16, a GGUF or vLLM type; if not the GGUF to ship")
    parser.add_argument("--max-tokens", type=int, default=512, help="of the answer, 512 by default")
    return parser.parse_args()


def read_schema(path: Path | None, data: Data) -> str:
    """The text of the schema that a text-to-SQL recipe needs and a chat recipe does not. Raises Refusal."""
    if (data.task == "text-to-sql") != (path is not None):
        raise Refusal(
            "this recipe writes SQL for a schema: give its CREATE TABLE statements in a file, --schema FILE"
            if path is None
            else "this recipe chats (data.task is chat): leave --schema out"
        )
    try:
        return "" if path is None else sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"--schema: cannot read {path} as UTF-8 text ({error})") from None


def messages(data: Data, question: str, schema: str = "") -> list[dict[str, str]]:
    """The prompt for a question: the recipe's system prompt, and the question in the form of its rows.

    Raises:
        Refusal: if question or schema is empty.
    """
    from qlora.raw_rows.conversations import conversation  # imports transformers, which takes seconds
    from qlora.raw_rows.layouts import Layout
    from qlora.raw_rows.rejected import Rejected

    if data.task == "text-to-sql":
        row = {"question": question, "context": schema, "answer": "-"}
    else:
        row = {"prompt": question, "completion": "-"}
    try:
        return conversation(row, Layout(data.task, {part: part for part in row}), data)[:-1]
    except Rejected as reason:
        raise Refusal(f"nothing to ask: {reason}") from None


def ask_gguf(artifact: str, params: Params, conversation: list[dict[str, str]], max_tokens: int) -> None:
    """Answer through llama-server, as the GGUF is served."""
    gguf = serving.find_gguf(artifact, params)
    room = serving.room(gguf, params, slots=1)
    with serving.serve(artifact, gguf, params, room) as server:
        for piece in serving.stream(server, conversation, max_tokens):
            print(piece, end="", flush=True)
    print()


def ask_transformers(name: str, conversation: list[dict[str, str]], max_tokens: int) -> None:
    """Answer greedily through transformers, as `evaluate` does."""
    from qlora.rows.chat import Unusable
    from qlora.scoring import transformers_run
    from qlora.source import base_model
    from qlora.weights.made import check_made

    import torch
    import transformers
    from transformers import GenerationConfig, TextStreamer

    artifact = find(name)
    if artifact is None or artifact.answered_by != "transformers":
        raise Refusal(f"{name!r} is no artifact; choose base, adapter, merged, bf16 or one of gguf.types or vllm.types")
    check_made(artifact)
    transformers.utils.logging.disable_progress_bar()
    base = base_model.locate(artifact.folder)
    chat = base_model.load_chat(artifact.folder)
    try:
        ids = chat.prompt_ids(conversation)
    except Unusable as reason:
        raise Refusal(str(reason)) from None
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=chat.stops, pad_token_id=chat.pad
    )
    model = transformers_run.load(artifact, base)
    prompt = torch.tensor([ids], device=model.device)
    streamer = TextStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
    with torch.inference_mode():
        model.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), generation_config=settings, streamer=streamer
        )


if __name__ == "__main__":
    run_stage(main)
