"""How long judging takes: python -m benchmarks.judging --rows 10000

Answers are made up: free text of 60 words, JSON of 6 fields, and labels, a third of them wrong. Prints the seconds of
each metric over all rows.
"""

import argparse
import json
import random
import time

from qlora.judging import labels, matches, overlap, tool_calls
from qlora.judging.json_fields import json_fields
from qlora.runtime.console import run_stage, summary

WORDS = [f"word{number}" for number in range(2000)]
WRONG = 0.3  # share of words and fields that an answer has wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rows", type=int, default=10_000)
    count = parser.parse_args().rows
    generator = random.Random(0)
    pairs = {
        "text": [(" ".join(one), " ".join(other)) for one, other in (words(generator, 60) for _ in range(count))],
        "json": [tuple(json.dumps(dict(enumerate(part))) for part in words(generator, 6)) for _ in range(count)],
        "label": [tuple(generator.choices(("yes", "no", "maybe"), k=2)) for _ in range(count)],
    }
    metrics = {
        "exact_match": ("text", matches.exact_match),
        "rouge_l": ("text", overlap.rouge_l),
        "chrf": ("text", overlap.chrf),
        "json_fields": ("json", lambda rows, answers: json_fields(rows, answers, None)),
        "tool_call": ("json", tool_calls.tool_call),
        "label_accuracy": ("label", labels.label_accuracy),
    }
    seconds = {}
    for name, (kind, metric) in metrics.items():
        rows = [{"messages": [{"role": "assistant", "content": gold}]} for gold, _ in pairs[kind]]
        begin = time.perf_counter()
        metric(rows, [answer for _, answer in pairs[kind]])
        seconds[name] = f"{time.perf_counter() - begin:.2f} s"
    summary(f"{count:,} answers", seconds)


def words(generator: random.Random, count: int) -> tuple[list[str], list[str]]:
    """The words of a gold answer, and those of an answer."""
    gold = generator.choices(WORDS, k=count)
    return gold, [generator.choice(WORDS) if generator.random() < WRONG else word for word in gold]


if __name__ == "__main__":
    run_stage(main)
