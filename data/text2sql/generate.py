"""Write the built-in text-to-SQL rows, `data/raw/text2sql.jsonl`: the same bytes on every machine.

    python -m data.text2sql.generate           write the file
    python -m data.text2sql.generate --check   verify that the file is what this program writes

A row holds a question, the context (CREATE TABLE statements), the answer (SQL), the schema (the group that a split
keeps together) and the kind of query. Within a schema no two rows differ in their literals alone.
"""

import argparse
import json
import random
import re
import string
import sys
from pathlib import Path

from data.text2sql.domains import Schema, read_schemas
from data.text2sql.kinds import aggregates, filters, joins, nested
from data.text2sql.kinds.kind import Kind
from data.text2sql.phrases import NotHereError, Picker

FILE = Path(__file__).parents[1] / "raw" / "text2sql.jsonl"
SEED = 20240611
ATTEMPTS = 12  # at each wanted row, as a query may be impossible in a schema or repeat one of its rows

# In the order of these modules and of their functions: the random numbers of a schema are drawn kind after kind.
KINDS = [
    kind for module in (filters, aggregates, nested, joins) for kind in vars(module).values() if type(kind) is Kind
]


def skeleton(text: str) -> str:
    """A text with each literal, a number or a quoted text, replaced by a question mark."""
    return re.sub(r"'[^']*'|\b\d[\d.]*", "?", text.lower())


def fields(wording: str) -> set[str]:
    """The names of the words that a wording needs."""
    return {name for _, name, _, _ in string.Formatter().parse(wording) if name}


def usable(kind: Kind, words: dict[str, str]) -> list[str]:
    """The wordings of a kind that need no other words than these."""
    return [wording for wording in kind.wordings if fields(wording) <= words.keys()]


def sentence(wording: str, words: dict[str, str]) -> str:
    """The wording, filled in, with a capital letter at its start."""
    text = wording.format(**words)
    return text[0].upper() + text[1:]


def make_row(kind: Kind, pick: Picker) -> dict[str, str] | None:
    """One row of a kind, or None if the schema has no columns for it."""
    try:
        words, answer = kind.make(pick)
    except NotHereError:
        return None
    wordings = usable(kind, words)
    if not wordings:
        return None
    question = sentence(pick.rng.choice(wordings), words)
    schema = pick.schema
    return {
        "question": question,
        "context": schema.context,
        "answer": answer,
        "schema": schema.name,
        "kind": kind.name,
    }


def schema_rows(schema: Schema) -> list[dict[str, str]]:
    """The rows of one schema. Their queries differ in more than literals."""
    rng = random.Random(f"{SEED} {schema.name}")
    pick = Picker(schema, rng)
    rows, seen = [], set()
    for kind in KINDS:
        wanted = int(kind.rows + rng.random())
        for _ in range(ATTEMPTS * wanted):
            if not wanted:
                break
            row = make_row(kind, pick)
            if row is None or skeleton(row["answer"]) in seen:
                continue
            seen.add(skeleton(row["answer"]))
            rows.append(row)
            wanted -= 1
    return rows


def generate() -> str:
    """The text of the whole file."""
    rows = [row for schema in read_schemas() for row in schema_rows(schema)]
    random.Random(SEED).shuffle(rows)
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="verify that the file is what this program writes")
    text = generate()
    if parser.parse_args().check:
        if not FILE.exists() or FILE.read_text() != text:
            print(f"{FILE} is not what data.text2sql.generate writes: run it without --check", file=sys.stderr)
            return 1
        print(f"{FILE}: up to date")
        return 0
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text, newline="\n")
    print(f"{FILE}: {text.count(chr(10))} rows, {len(text) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
