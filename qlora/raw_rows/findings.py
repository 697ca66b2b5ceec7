"""What a look at the accepted rows finds: nothing is dropped for it, all of it is counted and shown."""

import heapq
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qlora.rows.chat import Chat
from qlora.rows.prepared import SPLITS, evenly, split_file

import numpy as np

EXAMPLES = 3  # rows of a finding that are named
TEST_ROWS = 1000  # that training rows are compared with, at most
COMMON = 50  # test rows with the same three words: these words tell nothing
SIMILAR = 0.7  # of the triples of words of two near duplicates are in both
COPIED = 20  # characters of an answer that counts as held by its prompt, at least
LONG = 10  # times the median
MAJORITY = 0.9  # of the rows, whose script makes another one an outlier
MARKS = re.compile(
    r"<\|im_start\|>|<\|im_end\|>|<\|start_header_id\|>|<\|eot_id\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]|<</?SYS>>"
    r"|### (?:Human|Assistant|Instruction|Response):|</s>"
)
SCRIPTS = (
    ("Greek", 0x370, 0x400),
    ("Cyrillic", 0x400, 0x530),
    ("Hebrew", 0x590, 0x600),
    ("Arabic", 0x600, 0x700),
    ("Devanagari", 0x900, 0x980),
    ("Thai", 0xE00, 0xE80),
    ("kana", 0x3040, 0x3100),
    ("Han", 0x3400, 0xA000),
    ("Hangul", 0xAC00, 0xD7B0),
)


class Findings:
    """Kinds of finding, each with its number of rows and a few examples."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(example)

    def report(self) -> dict[str, dict]:
        """For data/prepared/report.json."""
        return {kind: {"rows": count, "examples": self.examples[kind]} for kind, count in self.counts.most_common()}


def find(folder: Path, chat: Chat) -> Findings:
    """What is noteworthy in the prepared rows in `folder`. Takes about 40 bytes a row in memory."""
    found = Findings()
    specials = [str(token) for token in chat.tokenizer.added_tokens_decoder.values() if token.special]
    special = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)")
    prompts: set[int] = set()
    lengths, longest = array("i"), []
    scripts, of_script = Counter(), {}
    test = _Triples(folder)
    for split, row in _rows(folder):
        *prompt, answer = row["messages"]
        name, text = f"{split} {row['id']}", answer["content"]
        contents = [message["content"] for message in row["messages"]]
        if any(map(special.search, contents)):
            found.add("a message holds a special token of this model as text", name)
        elif any(map(MARKS.search, contents)):
            found.add("a message holds marks of a chat template", name)
        if len(text) >= COPIED and any(text in message["content"] for message in prompt):
            found.add("the prompt holds the answer", name)
        key = hash(tuple(contents[:-1]))
        if prompt and key in prompts:
            found.add("the same prompt has another answer in another row", name)
        prompts.add(key)
        if row.get("unlearned"):
            found.add("an earlier answer is context only, because the template renders it otherwise later", name)
        lengths.append(row["supervised"])
        heapq.heappush(longest, (row["supervised"], name))
        if len(longest) > EXAMPLES:
            heapq.heappop(longest)
        script = script_of(text)
        scripts[script] += 1
        of_script.setdefault(script, name)
        if split != "test":
            test.compare(row, name)
    _long_answers(found, lengths, sorted(longest, reverse=True))
    _rare_scripts(found, scripts, of_script)
    for example in test.examples():
        found.add(f"a test row has a near duplicate in training (of {test.compared} test rows compared)", example)
    return found


def script_of(text: str) -> str:
    """The script of most letters in the first 200 characters."""
    if text.isascii():
        return "Latin"
    counts = Counter(
        next((name for name, first, end in SCRIPTS if first <= ord(letter) < end), "Latin")
        for letter in text[:200]
        if letter.isalpha()
    )
    return counts.most_common(1)[0][0] if counts else "Latin"


def _long_answers(found: Findings, lengths: array, longest: list[tuple[int, str]]) -> None:
    tokens = np.array(lengths)
    limit = LONG * float(np.median(tokens)) if len(tokens) else 0
    count = int((tokens > limit).sum())
    for at, (length, name) in enumerate(longest):
        if length > limit:
            found.add(f"more than {LONG} times as many learned tokens as the median row", name, count if at == 0 else 0)


def _rare_scripts(found: Findings, scripts: Counter, examples: dict[str, str]) -> None:
    if not scripts:
        return
    usual, count = scripts.most_common(1)[0]
    if count < MAJORITY * scripts.total():
        return
    for script, count in scripts.items():
        if script != usual:
            found.add(f"the answer is in {script}, and most are in {usual}", examples[script], count)


def _rows(folder: Path) -> Iterator[tuple[str, dict]]:
    for split in SPLITS:
        with split_file(split, folder).open(encoding="utf-8") as lines:
            for line in lines:
                yield split, json.loads(line)


class _Triples:
    """The test rows by their triples of words, to be compared with one training row after another."""

    def __init__(self, folder: Path):
        rows = evenly("test", TEST_ROWS, folder)
        self.compared = len(rows)
        self.names = [f"test {row['id']}" for row in rows]
        triples = [_triples(row) for row in rows]
        frequency = Counter(triple for row in triples for triple in row)
        self.common = {triple for triple, count in frequency.items() if count > COMMON}
        self.sizes = [len(row - self.common) for row in triples]
        self.rows_with: dict[int, list[int]] = {}
        for at, row in enumerate(triples):
            for triple in row - self.common:
                self.rows_with.setdefault(triple, []).append(at)
        self.best: dict[int, tuple[float, str]] = {}

    def compare(self, row: dict, name: str) -> None:
        triples = _triples(row)
        shared = Counter(at for triple in triples for at in self.rows_with.get(triple, ()))
        if not shared:
            return
        size = len(triples - self.common)
        for at, count in shared.items():
            similarity = count / (size + self.sizes[at] - count)
            if similarity >= SIMILAR and similarity > self.best.get(at, (0.0, ""))[0]:
                self.best[at] = (similarity, name)

    def examples(self) -> Iterator[str]:
        for at, (similarity, name) in sorted(self.best.items(), key=lambda item: -item[1][0]):
            yield f"{self.names[at]} is {similarity:.0%} like {name}"


def _triples(row: dict) -> set[int]:
    """Hashes of the triples of words in the row's last question and answer, without case and numbers."""
    *_, question, answer = "", *(message["content"] for message in row["messages"])
    text = f"{row.get('question') or question}\n{answer}"
    words = re.findall(r"\w+", re.sub(r"\d+(\.\d+)?", "0", text.casefold()))
    return {hash(tuple(words[at : at + 3])) for at in range(max(1, len(words) - 2))}
