"""The schemas of the built-in text-to-SQL rows, read from `domains.txt`, which explains its notation."""

import re
from dataclasses import dataclass, field
from pathlib import Path

FILE = Path(__file__).with_name("domains.txt")


def plural(phrase: str) -> str:
    """The plural of a noun phrase: "year of hire" -> "years of hire"."""
    head, of, rest = phrase.partition(" of ")
    irregular = {
        "series": "series",
        "person": "people",
        "species": "species",
        "sales": "sales",
        "child": "children",
    }
    word = head.split()[-1]
    if word in irregular:
        head = head.removesuffix(word) + irregular[word]
    elif word.endswith("y") and word[-2] not in "aeiou":
        head = head[:-1] + "ies"
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        head += "es"
    else:
        head += "s"
    return head + of + rest


def article(phrase: str) -> str:
    """A noun phrase after "a" or "an"."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "use", "eu"))
    return f"{'an' if vowel or phrase.startswith('hour') else 'a'} {phrase}"


@dataclass(frozen=True)
class Column:
    """A column: its declaration, its values and the words that a question uses for it."""

    name: str
    role: str  # label, category, number, count, year, date or optional
    type: str
    phrases: tuple[str, ...]
    values: tuple = ()  # the texts, or the lowest and the highest number
    says: tuple[str, ...] = ()  # ways to state a category: "from {}"
    verb: str = ""  # of a year or a date: "published"
    adjective: bool = False
    summable: bool = False
    extremes: tuple[str, str] = ("highest", "lowest")


@dataclass
class Table:
    """A table, the tables it refers to and the words between them."""

    singular: str
    person: bool
    columns: list[Column] = field(default_factory=list)
    parents: list[tuple["Table", str]] = field(default_factory=list)  # with the words between: "written by"
    link: str = ""  # the words between the two parents of a linking table: "enrolled in"
    pairs: list[tuple[Column, str, Column]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return plural(self.singular)

    @property
    def label(self) -> Column | None:
        """The column that names a row."""
        return next((column for column in self.columns if column.role == "label"), None)

    def having(self, *roles: str) -> list[Column]:
        """The columns of these roles."""
        return [column for column in self.columns if column.role in roles]

    def ddl(self, referenced: bool) -> str:
        """The CREATE TABLE statement. Only a table that others refer to has an id."""
        fields = ["id INTEGER PRIMARY KEY"] if referenced else []
        fields += [f"{column.name} {column.type}" for column in self.columns]
        fields += [f"{p.singular}_id INTEGER NOT NULL REFERENCES {p.name}(id)" for p, _ in self.parents]
        return f"CREATE TABLE {self.name} ({', '.join(fields)})"


@dataclass
class Schema:
    """The tables of one domain. A split keeps the rows of a schema together."""

    name: str
    tables: list[Table] = field(default_factory=list)

    @property
    def context(self) -> str:
        """The CREATE TABLE statements, on one line."""
        referenced = [parent.name for table in self.tables for parent, _ in table.parents]
        return "; ".join(table.ddl(table.name in referenced) for table in self.tables)


def read_column(line: str, pools: dict[str, tuple[str, ...]]) -> Column:
    """Read one column. Its values may come from a pool."""
    head, _, rest = line.partition(" = ")
    spec, _, options = rest.partition(" ; ")
    name, phrases = re.fullmatch(r"(\w+)(?: \((.*)\))?", head).groups()
    words = {"phrases": tuple(phrases.split(", ")) if phrases else (name.replace("_", " "),)}
    role, kind, values = "category", "TEXT", tuple(spec.split(", "))
    if spec == "?":
        role, values = "optional", ()
    elif spec.startswith("@"):
        values = pools[spec]
    elif bounds := re.fullmatch(r"(-?[\d.]+?)\.\.(-?[\d.]+)", spec):
        role, kind = "number", "REAL" if "." in bounds[1] else "INTEGER"
        values = tuple(float(bound) if kind == "REAL" else int(bound) for bound in bounds.groups())
    if name in ("name", "title") and role == "category":
        role = "label"
    for option in options.split(", ") if options else ():
        first, _, second = option.partition(" ")
        if "{}" in option:
            words["says"] = (option,)
        elif first in ("year", "date"):
            role, words["verb"], words["extremes"] = first, second, ("latest", "earliest")
            kind = "DATE" if first == "date" else kind
        elif option == "adj":
            words["adjective"] = True
        elif option == "sum":
            words["summable"] = True
        elif option == "label":
            role = "label"
        elif option == "count":
            role, words["summable"], words["extremes"] = "count", True, ("most", "fewest")
        else:
            words["extremes"] = tuple(option.split("/"))
    return Column(name, role, kind, values=values, **words)


def read_schemas() -> list[Schema]:
    """Read the schemas of `domains.txt`, in the order of the file."""
    pools: dict[str, tuple[str, ...]] = {}
    schemas: list[Schema] = []
    for line in filter(str.strip, FILE.read_text().splitlines()):
        if line.startswith("#"):
            continue
        if line.startswith("@"):
            name, _, values = line.partition(" = ")
            pools[name] = tuple(values.split(", "))
            continue
        if line.startswith("["):
            schemas.append(Schema(line.strip("[]")))
            continue
        tables = {table.singular: table for table in schemas[-1].tables}
        if not line.startswith(" "):
            head, _, link = line.partition(" = ")
            name = re.match(r"\w+", head)[0]
            parents = [(tables[parent], words) for parent, words in re.findall(r"> (\w+) \(([^)]*)\)", head)]
            person = head[len(name) :].startswith("*")
            schemas[-1].tables.append(Table(name, person, parents=parents, link=link))
        elif line.startswith("  ~ "):
            left, sign, right = line.split()[1:]
            table = schemas[-1].tables[-1]
            columns = {column.name: column for column in table.columns}
            table.pairs.append((columns[left], sign, columns[right]))
        else:
            schemas[-1].tables[-1].columns.append(read_column(line.strip(), pools))
    return schemas
