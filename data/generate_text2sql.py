"""Write the built-in text-to-SQL rows, `data/raw/text2sql.jsonl`: the same bytes on every machine.

    python data/generate_text2sql.py           writes the file
    python data/generate_text2sql.py --check   verifies that the file is what this program makes

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

from text2sql_domains import Schema, parse
from text2sql_kinds import KINDS, Kind
from text2sql_phrases import NotHereError, Picker

FILE = Path(__file__).parent / "raw" / "text2sql.jsonl"
SEED = 20240611
ATTEMPTS = 12  # at a row of a kind that a schema has already asked for


def skeleton(text: str) -> str:
    """A text without its literals: quoted words and numbers."""
    return re.sub(r"'[^']*'|\b\d[\d.]*", "?", text.lower())


def fields(wording: str) -> set[str]:
    """The words that a wording needs."""
    return {name for _, name, _, _ in string.Formatter().parse(wording) if name}


def usable(kind: Kind, words: dict[str, str]) -> list[str]:
    """The wordings of a kind that these words fill."""
    return [wording for wording in kind.wordings if fields(wording) <= words.keys()]


def sentence(wording: str, words: dict[str, str]) -> str:
    """The question."""
    text = wording.format(**words)
    return text[0].upper() + text[1:]


def make_row(kind: Kind, pick: Picker) -> dict[str, str] | None:
    """One row of a kind, or nothing where the schema does not allow it."""
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
    """The rows of one schema, each with a query of its own."""
    rng = random.Random(f"{SEED} {schema.name}")
    pick = Picker(schema, rng)
    rows, seen = [], set()
    for kind in KINDS.values():
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
    """The whole file."""
    rows = [row for schema in parse() for row in schema_rows(schema)]
    random.Random(SEED).shuffle(rows)
    return "".join(json.dumps(row) + "\n" for row in rows)


def main() -> int:
    """Write the file, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the file with what this program makes")
    text = generate()
    if parser.parse_args().check:
        if not FILE.exists() or FILE.read_text() != text:
            print(f"{FILE} is not what data/generate_text2sql.py makes: run it without --check", file=sys.stderr)
            return 1
        print(f"{FILE}: up to date")
        return 0
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(text, newline="\n")
    print(f"{FILE}: {text.count(chr(10))} rows, {len(text) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
