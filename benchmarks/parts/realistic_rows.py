"""Rows as people have them: whole schemas with dates, views and checks, and queries that compute.

`realistic_rows.sql` has them: each schema is followed by an empty line, its queries, one a line, and two empty lines.
"""

from pathlib import Path


def realistic_rows() -> list[dict]:
    """Rows with question, context and answer."""
    text = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    sets = (part.split("\n\n") for part in text.strip().split("\n\n\n"))
    return [
        {"question": "?", "context": schema, "answer": query}
        for schema, queries in sets
        for query in queries.splitlines()
    ]
