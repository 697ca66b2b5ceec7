"""Metrics by overlap with the gold answer: ROUGE-L by words, chrF by letters. Both are means over rows, from 0 to 1."""

from collections.abc import Sequence

from qlora.judging.texts import gold, without_reasoning

import regex
from rapidfuzz.distance import LCSseq
from sacrebleu.metrics import CHRF

# In English these are rouge-score's words: runs of letters and digits. Other scripts are kept, too; the letters of
# scripts without spaces stand alone.
ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}"
WORD = regex.compile(rf"[{ALONE}]|[[\p{{L}}\p{{M}}\p{{N}}]--[{ALONE}]]+", regex.V1)


def rouge_l(rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """F1 of the longest common subsequence of words (Lin 2004), without stemming."""
    records = []
    for row, answer in zip(rows, answers, strict=True):
        right, found = (WORD.findall(text.lower()) for text in (gold(row), without_reasoning(answer)))
        if not right:
            records.append({"rouge_l": None})
            continue
        common = LCSseq.similarity(right, found)
        records.append({"rouge_l": 2 * common / (len(right) + len(found))})
    return records


def chrf(rows: Sequence[dict], answers: Sequence[str]) -> list[dict]:
    """The sentence-level F2 of letters in runs of up to six (chrF2, Popović 2015)."""
    metric = CHRF()
    records = []
    for row, answer in zip(rows, answers, strict=True):
        right = gold(row)
        score = metric.sentence_score(without_reasoning(answer), [right]).score / 100 if right else None
        records.append({"chrf": score})
    return records
