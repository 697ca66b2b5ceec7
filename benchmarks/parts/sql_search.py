"""Search for a database that tells two queries apart, apart from the scorer: random rows within what is declared.

Rows have the declared types, keys and CHECKs (SQLite itself enforces them), and values of and near all literals of the
queries. A database counts only if the gold query's result stays the same when its rows are stored in another order.
"""

import re
import sqlite3
from collections import Counter
from datetime import date, timedelta
from random import Random

_ORDER = re.compile(r"\border\s+by\b(?![^()]*\))", re.IGNORECASE)
_LITERAL = re.compile(r"'((?:[^']|'')*)'|\b(\d+(?:\.\d+)?)\b")
_WORDS = ("Ann", "bo", "Cy D", "El-Fa", " gus ", "Hal", "ida Jo", "kim", "Lu", "", "A", "x@y.org")


def different(schema: str, gold: str, others: list[str], *, databases: int = 60, seed: int = 0) -> set[str]:
    """Those of `others` that give another result than `gold` on some database."""
    random, found = Random(f"{seed}|{gold}"), set()
    for number in range(databases):
        if len(found) == len(others):
            break
        connection = _filled(schema, [gold, *others], random, number)
        if connection is None:
            continue
        try:
            expected = _run(connection, gold)
            stable = all(_same(expected, _run(_stored_again(connection, random), gold), gold) for _ in range(2))
        except sqlite3.Error:
            return found
        if not stable:
            continue
        for other in others:
            if other in found:
                continue
            try:
                result = _run(connection, other)
            except sqlite3.Error:
                found.add(other)
                continue
            if not _same(expected, result, gold):
                found.add(other)
        connection.close()
    return found


def _run(connection: sqlite3.Connection, query: str) -> list[tuple]:
    return connection.execute(query).fetchall()


def _same(expected: list[tuple], result: list[tuple], gold: str) -> bool:
    left, right = ([tuple(map(_value, row)) for row in rows] for rows in (expected, result))
    if len(left) != len(right):
        return False
    width = len(left[0]) if left else 0
    if left and len(right[0]) != width:
        return False
    ordered = _ORDER.search(gold) is not None
    if left == right or (not ordered and Counter(left) == Counter(right)):
        return True
    columns = [sorted(map(repr, column)) for column in zip(*left, strict=True)]
    others = [sorted(map(repr, column)) for column in zip(*right, strict=True)]
    if width < 2 or sorted(columns) != sorted(others):
        return False
    order = [others.index(column) for column in columns]  # the same columns in another order
    moved = [tuple(row[place] for place in order) for row in right]
    return left == moved or (not ordered and Counter(left) == Counter(moved))


def _value(value: object) -> object:
    return value.lower() if isinstance(value, str) else float(f"{value:.9g}") if isinstance(value, float) else value


def _filled(schema: str, queries: list[str], random: Random, number: int) -> sqlite3.Connection | None:
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA foreign_keys = ON")
    try:
        connection.executescript(schema)
    except sqlite3.Error:
        return None
    literals = [a.replace("''", "'") if a else b for query in queries for a, b in _LITERAL.findall(query)]
    literals = list(dict.fromkeys(literals))
    size = (1, 2, 3, 6, 12, 30)[number % 6]
    nulls = (0.0, 0.15, 0.4)[number % 3]
    few = {}
    for table in _tables(connection):
        columns = connection.execute(f'PRAGMA table_info("{table}")').fetchall()
        parents = {key[3]: (key[2], key[4]) for key in connection.execute(f'PRAGMA foreign_key_list("{table}")')}
        for _ in range(size * random.choice((1, 1, 2))):
            row = []
            for _, name, kind, required, _, key in columns:
                if name in parents:
                    parent, column = parents[name]
                    column = column or name
                    known = [value for (value,) in connection.execute(f'SELECT "{column}" FROM "{parent}"')]
                    value = random.choice(known) if known else None
                else:
                    pool = few.setdefault((table, name), [_made(kind, name, literals, random) for _ in range(size + 2)])
                    value = random.choice(pool) if random.random() < 0.7 else _made(kind, name, literals, random)
                row.append(None if not (required or key) and random.random() < nulls else value)
            try:
                connection.execute(f'INSERT INTO "{table}" VALUES ({",".join("?" * len(row))})', row)
            except sqlite3.IntegrityError:
                continue
    return connection


def _tables(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    return [name for (name,) in names]


def _stored_again(connection: sqlite3.Connection, random: Random) -> sqlite3.Connection:
    """The same rows in another order."""
    copy = sqlite3.connect(":memory:")
    for (statement,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"):
        copy.execute(statement)
    for table in _tables(connection):
        rows = connection.execute(f'SELECT * FROM "{table}"').fetchall()
        random.shuffle(rows)
        if rows:
            copy.executemany(f'INSERT INTO "{table}" VALUES ({",".join("?" * len(rows[0]))})', rows)
    return copy


def _made(kind: str, name: str, literals: list[str], random: Random) -> object:
    kind = kind.upper()
    numbers = [float(one) for one in literals if re.fullmatch(r"\d+(\.\d+)?", one)]
    if "BOOL" in kind:
        return random.randint(0, 1)
    if "INT" in kind:
        if numbers and random.random() < 0.6:
            return int(random.choice(numbers)) + random.choice((0, 0, 1, -1, 5, -5))
        return random.choice((random.randint(0, 4), random.randint(-5, 20), random.randint(0, 3000)))
    if any(part in kind for part in ("REAL", "NUM", "DEC", "FLO", "DOUB")):
        if numbers and random.random() < 0.6:
            return random.choice(numbers) + random.choice((0, 0, 1, -1, 0.5, 0.01, -0.01))
        return random.choice((random.randint(0, 4), round(random.uniform(-50, 500), 2), random.randint(-9, 2000)))
    dated = any(word in name.lower() for word in ("date", "time", "dob")) and random.random() < 0.8
    if "DATE" in kind or "TIME" in kind or (dated and "time" not in name.lower()):
        day = date(random.choice((random.randint(1940, 2026), *(int(n) for n in numbers if 1900 < n < 2100))), 1, 1)
        days = [one for one in literals if re.fullmatch(r"\d{4}-\d\d-\d\d", one)]
        if days and random.random() < 0.5:
            day = date.fromisoformat(random.choice(days))
        shown = (day + timedelta(days=random.choice((0, 0, 1, -1, 3, 30, random.randrange(365))))).isoformat()
        clock = random.choice(("00:00:00", f"{random.randrange(24):02}:{random.randrange(60):02}:00"))
        return f"{shown} {clock}" if "TIME" in kind else shown
    if literals and random.random() < 0.6:
        text = random.choice(literals)
        word = random.choice(_WORDS)
        filled = text.replace("%", random.choice(("", word))).replace("_", "k")
        parts = text.split(" ")
        return random.choice((text, text, filled, filled + word, word + filled, text[:-1], random.choice(parts)))
    return random.choice(_WORDS) + random.choice(("", "", str(random.randint(0, 30))))
