"""evaluate --artifact NAME: score one artifact (base, adapter, merged, bf16 or a GGUF type) on the held-out rows.

Every artifact gets the same prompts as the same token ids, decodes greedily, and is scored by the same code; GGUF
files answer through llama-server, as they will when they are served. Writes metrics/NAME.json and
results/predictions/NAME.jsonl (each row's answer and scores).
"""

import argparse
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from stages import base_model, chat, hf_inference, models
from stages.console import Refusal, run_stage, summary
from stages.hf_inference import Answer, Score
from stages.llama_cpp import Server
from stages.outputs import write_json, write_text
from stages.params import Params, load_params
from stages.sql import verdict

TEST_ROWS = Path("data/prepared/test.jsonl")
SLOTS = 8  # requests that llama-server works on at once


def main() -> None:
    artifact = parse_arguments()
    params = load_params()
    folder = Path("models") / artifact
    if not (folder / base_model.RECORD).is_file():
        raise Refusal(f"{folder} is not there; run `dvc repro evaluate@{artifact}`, which makes it first")
    base = base_model.locate(folder)
    tokenizer = chat.load_tokenizer(base)
    stops = chat.stop_ids(tokenizer, base)
    rows = [json.loads(line) for line in TEST_ROWS.read_text(encoding="utf-8").splitlines()]
    encoded = [chat.cut(chat.encode(tokenizer, row["messages"], stops), params.train.max_length) for row in rows]
    prompts = [row.input_ids[: row.prompt_length] for row in encoded]

    if (folder / "model.gguf").is_file():
        answers, scores, seconds = run_gguf(folder / "model.gguf", encoded, params)
        size = (folder / "model.gguf").stat().st_size
    else:
        model = load(artifact, base)
        answers, scores, seconds = run_transformers(model, prompts, encoded, stops, tokenizer.pad_token_id, params)
        size = size_on_disk(artifact, base)
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in answers]

    predictions = [
        {"id": row["id"], "answer": text, "stopped": answer.stopped, "tokens": len(answer.ids)}
        | {"nll": round(score.nll, 4), "supervised": score.tokens, "top1": score.top1}
        for row, text, answer, score in zip(rows, texts, answers, scores, strict=True)
    ]
    metrics = language_metrics(answers, scores) | {
        "tokens_per_second": round(sum(len(answer.ids) for answer in answers) / seconds, 1),
        "size_mb": round(size / 1e6, 1),
    }
    if params.data.task == "text-to-sql":
        metrics = sql_metrics(rows, texts, predictions, params) | metrics
    lines = [json.dumps(prediction, ensure_ascii=False) for prediction in predictions]
    write_text(Path(f"results/predictions/{artifact}.jsonl"), "\n".join(lines) + "\n")
    write_json(Path(f"metrics/{artifact}.json"), metrics)
    summary(f"evaluate@{artifact}", metrics)


def parse_arguments() -> str:
    parser = argparse.ArgumentParser(description="Score one artifact on the held-out rows.")
    parser.add_argument("--artifact", required=True, help="base, adapter, merged, bf16 or one of gguf.types")
    return parser.parse_args().artifact


def load(artifact: str, base: Path):
    """The transformers model that `artifact` names, ready to answer."""
    if artifact == "adapter":
        adapter = Path("models/adapter")
        model = models.load_adapter(models.load_base(base, models.read_quantization(adapter)), adapter)
    else:
        folder = Path("models/merged") if artifact == "merged" else base
        model = models.load_plain(folder, torch.bfloat16)
    return model.eval()


def size_on_disk(artifact: str, base: Path) -> int:
    """Bytes of the artifact's own weights; the adapter's do not include the base model's."""
    return base_model.weights_bytes(base if artifact == "base" else Path("models") / artifact)


def run_transformers(
    model, prompts: list[list[int]], rows: list[chat.Encoded], stops: list[int], pad: int, params: Params
) -> tuple[list[Answer], list[Score], float]:
    """Answers, teacher-forced scores and the seconds that answering took."""
    settings = params.evaluate
    with tqdm(total=len(prompts), desc="answering", unit=" rows") as bar:
        answers, seconds = hf_inference.generate(
            model, prompts, stops, pad, settings.max_new_tokens, settings.batch_size, bar.update
        )
    with tqdm(total=len(rows), desc="scoring tokens", unit=" rows") as bar:
        return answers, hf_inference.score(model, rows, bar.update), seconds


def run_gguf(gguf: Path, rows: list[chat.Encoded], params: Params) -> tuple[list[Answer], list[Score], float]:
    """The same through llama-server: prompts as ids, and the scores that llama.cpp gives the same ids."""
    limit = params.evaluate.max_new_tokens
    context = max(max(row.prompt_length + limit, len(row.input_ids)) for row in rows) + 8

    def answer_and_score(row: chat.Encoded) -> tuple[Answer, Score, float]:
        # Together, because a thread keeps to one slot of the server and finds the prompt in its cache.
        prompt, gold = row.input_ids[: row.prompt_length], row.input_ids[row.prompt_length :]
        begin = time.monotonic()
        completion = server.complete(prompt, limit)
        seconds = time.monotonic() - begin
        log_probabilities, top1 = server.score(prompt, gold)
        return (
            Answer(completion.tokens, completion.stopped),
            Score(len(gold), -sum(log_probabilities), sum(top1)),
            seconds,
        )

    with Server(gguf, context=context, slots=SLOTS) as server, ThreadPoolExecutor(SLOTS) as pool:
        work = pool.map(answer_and_score, rows)
        results = list(tqdm(work, total=len(rows), desc="answering and scoring tokens", unit=" rows"))
    answers, scores, seconds = (list(column) for column in zip(*results, strict=True))
    return answers, scores, sum(seconds) / SLOTS


def language_metrics(answers: list[Answer], scores: list[Score]) -> dict:
    """What is measured of any task: loss on the gold answers (nats a token), and how the model's own answers end."""
    tokens = sum(score.tokens for score in scores)
    loss = sum(score.nll for score in scores) / tokens
    return {
        "loss": round(loss, 4),
        "perplexity": round(math.exp(loss), 4),
        "next_token_accuracy": round(sum(score.top1 for score in scores) / tokens, 4),
        "stop_rate": round(sum(answer.stopped for answer in answers) / len(answers), 4),
        "answer_tokens": round(sum(len(answer.ids) for answer in answers) / len(answers), 1),
        "rows": len(answers),
    }


def sql_metrics(rows: list[dict], texts: list[str], predictions: list[dict], params: Params) -> dict:
    """Judge the answers by execution on generated databases; each prediction gets its verdict."""
    settings = params.evaluate
    with tqdm(total=len(rows), desc="running SQL", unit=" rows") as bar:
        verdicts = verdict.score(
            rows,
            texts,
            seed=settings.seed,
            databases=settings.databases,
            dialect=params.data.dialect,
            progress=lambda done: bar.update(done - bar.n),
        )
    for prediction, judged in zip(predictions, verdicts, strict=True):
        prediction |= {"strict": judged.strict, "lenient": judged.lenient, "exact": judged.exact, "error": judged.error}
    totals = verdict.totals(verdicts)
    return {
        "execution_accuracy": totals["strict"],
        "execution_accuracy_lenient": totals["lenient"],
        "exact_match": totals["exact"],
        "valid_sql": totals["valid"],
        "gold_undetermined": totals["undetermined"],
        "gold_invalid": totals["gold_invalid"],
    }


if __name__ == "__main__":
    run_stage(main)
