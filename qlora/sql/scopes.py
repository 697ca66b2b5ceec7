"""Which column a name in a query stands for, by the rules of the dialect, and of what kind an expression is."""

from dataclasses import dataclass

from qlora.sql.schema import Schema, Table

from sqlglot import exp

NUMBERS = ("integer", "real", "float", "year")
MOMENTS = ("date", "timestamp")


@dataclass(frozen=True)
class RowValue:
    """The column of a function in FROM that gives rows. `alias`: the name of the source."""

    alias: str
    function: exp.Expression


Source = tuple[str, dict[str, object] | None]  # (alias, name -> (Table, column) or the expression behind it)


class Scopes:
    """Looks up the columns of a query. `exact`: whether quoted names must be spelled as in the schema (PostgreSQL)."""

    def __init__(self, schema: Schema, dialect: str):
        self.schema, self.dialect, self.exact = schema, dialect, dialect == "postgres"
        self.known: dict[int, dict[str, object] | None] = {}
        self.kinds: dict[int, str] = {}
        self.alive: list = []  # ids are those of living objects only

    def name(self, identifier: exp.Expression | str) -> str:
        """A name as the server stores it."""
        if isinstance(identifier, exp.Identifier):
            return identifier.this if self.exact and identifier.quoted else identifier.this.lower()
        return str(identifier).lower()

    def sources(self, select: exp.Select) -> list[Source]:
        """The sources in FROM and the joins of `select`; None for the columns that cannot be known."""
        found = []
        start = select.args.get("from_")
        joins = [join.this for join in select.args.get("joins") or ()]
        joins += [one.this if isinstance(one, exp.Lateral) else one for one in select.args.get("laterals") or ()]
        for node in [*([start.this] if start is not None else []), *joins]:
            found += self._flat(node)
        return found

    def _flat(self, node: exp.Expression) -> list[Source]:
        """A source, or the sources of a join in parentheses."""
        if isinstance(node, (exp.Paren, exp.Subquery)) and isinstance(node.this, exp.Table) and not node.alias:
            inner = [one for join in node.this.args.get("joins") or () for one in self._flat(join.this)]
            more = [one for join in node.args.get("joins") or () for one in self._flat(join.this)]
            return [*self._one(node.this), *inner, *more]
        return [*self._one(node), *(one for join in node.args.get("joins") or () for one in self._flat(join.this))]

    def _one(self, node: exp.Expression) -> list[Source]:
        alias = node.args.get("alias")
        if self.is_row_function(node):
            name, columns = self.row_function(node)
            inner = node.this if isinstance(node, (exp.Table, exp.Lateral)) else node
            return [(name, dict.fromkeys(columns, RowValue(name, inner)))]
        if isinstance(node, exp.Lateral):
            name = self.name(alias.this) if alias and alias.this else ""
            return [(name, self._renamed(self.outputs(node.this), alias))]
        if isinstance(node, exp.Values):
            rows = [one.expressions for one in node.expressions]
            columns = {f"column{number}": value for number, value in enumerate(rows[0] if rows else (), start=1)}
            name = self.name(alias.this) if alias and alias.this else ""
            return [(name, self._renamed(columns, alias))]
        if isinstance(node, exp.Table):
            name = self.name(alias.this if alias and alias.this else node.this)
            return [(name, self._renamed(self._table(node), alias))]
        if isinstance(node, exp.Subquery):
            name = self.name(alias.this) if alias and alias.this else ""
            return [(name, self._renamed(self.outputs(node.this), alias))]
        name = self.name(alias.this) if alias and alias.this else ""
        return [(name, None)]

    @staticmethod
    def is_row_function(node: exp.Expression) -> bool:
        """Whether a source is a function that gives rows of one column."""
        inner = node.this if isinstance(node, (exp.Table, exp.Lateral)) else node
        return isinstance(inner, (exp.Func, exp.Unnest)) and not isinstance(inner, exp.Values)

    def row_function(self, node: exp.Expression) -> tuple[str, tuple[str, ...]]:
        """The name of such a source and those of its column: all that of the function unless others are given."""
        inner = node.this if isinstance(node, (exp.Table, exp.Lateral)) else node
        usual = {exp.Unnest: "unnest", exp.ExplodingGenerateSeries: "generate_series"}
        own = usual.get(type(inner)) or (inner.name if isinstance(inner, exp.Anonymous) else inner.sql_name()).lower()
        alias = node.args.get("alias")
        name = self.name(alias.this) if alias and alias.this else own
        columns = alias.args.get("columns") if alias else None
        if columns:
            one = columns[0]
            return name, (self.name(one if isinstance(one, exp.Identifier) else one.this),)
        return name, ("value", name) if own.endswith(("_elements", "_elements_text")) else (name,)

    def _renamed(self, columns: dict | None, alias: exp.Expression | None) -> dict | None:
        given = alias.args.get("columns") if alias else None
        if not given or columns is None:
            return columns
        names = [self.name(one if isinstance(one, exp.Identifier) else one.this) for one in given]
        return dict(zip(names, columns.values(), strict=False)) | dict(list(columns.items())[len(names) :])

    def _table(self, node: exp.Table) -> dict | None:
        if not isinstance(node.this, exp.Identifier):
            return None  # a function
        common = self._common(node)
        if common is not None:
            self.known.setdefault(id(common), None)  # within a recursive one
            return self._renamed(self.outputs(common.this), common.args.get("alias"))
        table = self.schema.tables.get(node.name.lower())
        if table is None or (self.exact and self.name(node.this) != table.spelled.get(table.name, table.name)):
            return None
        return {
            table.spelled.get(column, column) if self.exact else column: (table, column) for column in table.columns
        }

    def _common(self, table: exp.Table) -> exp.CTE | None:
        node = table.parent
        while node is not None:
            clause = node.args.get("with_")
            for common in clause.expressions if clause else ():
                if self.name(common.args["alias"].this) == self.name(table.this):
                    return common
            node = node.parent
        return None

    def is_known(self, table: exp.Table) -> bool:
        """Whether there is such a table or common table expression."""
        return (
            not isinstance(table.this, exp.Identifier)
            or self._common(table) is not None
            or self._table(table) is not None
        )

    def outputs(self, query: exp.Expression) -> dict[str, object] | None:
        """Name -> the column or expression, of the outputs of a query. None if they cannot be known."""
        while isinstance(query, (exp.SetOperation, exp.Subquery, exp.Paren)):
            query = query.this
        if not isinstance(query, exp.Select):
            return None
        if id(query) in self.known:
            return self.known[id(query)]
        self.known[id(query)] = None
        self.alive.append(query)
        found: dict[str, object] | None = {}
        for number, projection in enumerate(query.selects):
            if isinstance(projection, exp.Star) or (isinstance(projection, exp.Column) and projection.is_star):
                for alias, columns in self.sources(query):
                    if isinstance(projection, exp.Star) or self.name(projection.args["table"]) == alias:
                        if columns is None:
                            return None
                        found = columns | found
                continue
            if isinstance(projection, exp.Alias):
                name = self.name(projection.args["alias"])
            elif isinstance(projection, exp.Column):
                name = self.name(projection.this)
            else:
                name = self._unnamed(projection, number)
            found.setdefault(name, projection.unalias())
        self.known[id(query)] = found
        return found

    def _unnamed(self, node: exp.Expression, number: int) -> str:
        if isinstance(node, exp.Cast) and isinstance(node.this, exp.Column):
            return self.name(node.this.this)
        if isinstance(node, exp.Func) and not isinstance(node, (exp.Cast, exp.And, exp.Or)):
            return (node.name if isinstance(node, exp.Anonymous) else node.sql_name()).lower()
        return f"?column? {number}"

    def find(self, column: exp.Column, *, local: bool = False) -> tuple[object, int] | None:
        """What a column stands for, and how many sources have it; None if none has. The object may be None: unknown.

        With `local`, only the sources of its own query count.
        """
        select = column.parent_select
        name = self.name(column.this)
        qualifier = self.name(column.args["table"]) if column.table else ""
        while select is not None:
            matching, opaque = [], False
            for alias, columns in self.sources(select):
                if qualifier and alias != qualifier:
                    continue
                if columns is None:
                    opaque = True
                elif name in columns:
                    matching.append(columns[name])
            if matching:
                return matching[0], len(matching)
            if opaque:
                return None, 1
            select = None if local else select.parent_select
        return None

    def kind(self, node: exp.Expression | None) -> str:
        """The kind of an expression's values, as `schema.Table.kinds`; "float" for double precision; "" if unknown."""
        if node is None:
            return ""
        if id(node) not in self.kinds:
            self.kinds[id(node)] = ""  # within a recursive query
            self.alive.append(node)
            self.kinds[id(node)] = self._kind(node)
        return self.kinds[id(node)]

    def _kind(self, node: exp.Expression) -> str:
        kind = self.kind
        if isinstance(node, exp.Column):
            found = self.find(node)
            if found is None or found[0] is None:
                return ""
            return self.kind_of(found[0])
        if isinstance(node, exp.Literal):
            return "literal" if node.is_string else "integer" if node.is_int else "real"
        if isinstance(node, exp.Cast):
            return _cast_kind(node.to)
        if isinstance(node, _SAME):
            if isinstance(node, exp.WithinGroup):
                ordered = node.expression.expressions[0].this
                return "float" if isinstance(node.this, exp.PercentileCont) else kind(ordered)
            inner = node.expressions[0] if isinstance(node, exp.Distinct) else node.this
            return kind(inner)
        if isinstance(node, (exp.Coalesce, exp.Greatest, exp.Least)):
            return self._common_kind([node.this, *node.expressions])
        if isinstance(node, exp.Case):
            return self._common_kind([one.args["true"] for one in node.args["ifs"]] + [node.args.get("default")])
        if isinstance(node, exp.If):
            return self._common_kind([node.args.get("true"), node.args.get("false")])
        if isinstance(node, exp.Subquery):
            outputs = self.outputs(node.this)
            value = next(iter(outputs.values()), None) if outputs else None
            return self.kind_of(value)
        if isinstance(node, (exp.Add, exp.Sub)):
            return self._sum_kind(node)
        if isinstance(node, (exp.Mul, exp.Div, exp.Mod, exp.IntDiv)):
            one, other = kind(node.this), kind(node.expression)
            if "interval" in (one, other):
                return "interval"
            if self.dialect == "mysql" and isinstance(node, exp.Div):
                return "real"
            return self._common_kind([node.this, node.expression])
        if isinstance(node, exp.Avg):
            inner = kind(node.this)
            return "interval" if inner == "interval" else "float" if inner == "float" else "real"
        if isinstance(node, exp.Sum):
            # PostgreSQL's SUM of bigint is numeric, and so are its quotients.
            return "real" if kind(node.this) == "integer" and self._is_big(node.this) else kind(node.this)
        if isinstance(node, exp.Round):
            return "float" if kind(node.this) == "float" else "real" if node.args.get("decimals") else kind(node.this)
        return next((kind for kinds, kind in _RESULTS if isinstance(node, kinds)), "") or self._named(node)

    def kind_of(self, output: object) -> str:
        """The kind of what `find` and `outputs` give: a column of a table or of a function, or an expression."""
        if isinstance(output, RowValue):
            start = output.function.args.get("start")
            if start is None:
                return ""
            return "timestamp" if self.kind(start) in (*MOMENTS, "literal") else self.kind(start)
        return self._declared(*output) if isinstance(output, tuple) else self.kind(output)

    def _is_big(self, node: exp.Expression) -> bool:
        """Whether an integer expression is a bigint of PostgreSQL's."""
        for one in node.find_all(exp.Column, exp.Count, exp.Sum):
            found = self.find(one) if isinstance(one, exp.Column) else None
            behind = found[0] if found else None
            if isinstance(behind, tuple):
                if behind[0].columns[behind[1]].startswith(("BIGINT", "INT8", "BIGSERIAL")):
                    return True
            elif isinstance(one, exp.Count) or (isinstance(behind, exp.Expression) and self._is_big(behind)):
                return True
        return False

    def _named(self, node: exp.Expression) -> str:
        if not isinstance(node, exp.Anonymous):
            return ""
        name = node.name.lower()
        if name in ("age", "justify_interval", "make_interval"):
            return "interval"
        if name == "now":
            return "timestamp"
        if name in ("make_date", "makedate", "adddate", "subdate"):
            return "date"
        if name in _INTEGER_NAMES:
            return "integer"
        if name in ("sec_to_time", "timediff", "maketime", "addtime", "subtime"):
            return "time"
        return "boolean" if name == "every" else ""

    def _declared(self, table: Table, column: str) -> str:
        kind = table.kinds[column]
        if kind == "json":
            return ""  # what a text is compared with decides
        declared = table.columns[column]
        if kind == "real" and declared.startswith(("DOUBLE", "REAL", "FLOAT")):
            return "float"
        return kind

    def _sum_kind(self, node: exp.Expression) -> str:
        one, other = self.kind(node.this), self.kind(node.expression)
        minus = isinstance(node, exp.Sub)
        if other == "interval":
            if one == "interval":
                return "interval"
            whole = self.dialect == "mysql" and one == "date"
            return "date" if whole else "timestamp" if one in (*MOMENTS, "literal") else one
        if one == "interval":
            return "timestamp" if other in MOMENTS else other
        if one in MOMENTS and other in (*MOMENTS, "literal") and minus:
            return "integer" if one == other == "date" else "interval"
        if one in MOMENTS:
            return one
        if other in MOMENTS:
            return other if not minus else ""
        return self._common_kind([node.this, node.expression])

    def _common_kind(self, nodes: list) -> str:
        found = [kind for node in nodes if (kind := self.kind(node)) not in ("", "literal")]
        if any(self.kind(node) == "" and not isinstance(node, exp.Null) for node in nodes if node is not None):
            return "" if not found else found[0] if len(set(found)) == 1 else ""
        for wide in ("timestamp", "float", "real"):
            if wide in found and all(kind in (*NUMBERS, *MOMENTS) for kind in found):
                return wide
        return found[0] if found else "literal" if any(node is not None for node in nodes) else ""


# Of the kind of their argument.
_SAME = (
    exp.Paren, exp.Alias, exp.Distinct, exp.Neg, exp.Filter, exp.Window, exp.WithinGroup, exp.Order, exp.Abs, exp.Min,
    exp.Max, exp.FirstValue, exp.LastValue, exp.Lag, exp.Lead, exp.NthValue, exp.AnyValue, exp.Nullif,
)  # fmt: skip
_BOOLEAN = (
    exp.Boolean, exp.Predicate, exp.And, exp.Or, exp.Not, exp.Xor, exp.LogicalAnd, exp.LogicalOr, exp.Between, exp.In,
    exp.Exists, exp.Is, exp.Like, exp.ILike, exp.RegexpLike, exp.RegexpILike, exp.SimilarTo, exp.StartsWith,
    exp.NullSafeEQ, exp.NullSafeNEQ, exp.Escape,
)  # fmt: skip
_TEXT = (
    exp.Lower, exp.Upper, exp.Concat, exp.ConcatWs, exp.DPipe, exp.Substring, exp.Left, exp.Right, exp.Trim,
    exp.Replace, exp.SplitPart, exp.Initcap, exp.Pad, exp.Repeat, exp.Reverse, exp.TimeToStr, exp.ToChar,
    exp.GroupConcat, exp.Translate, exp.MD5, exp.RegexpReplace, exp.RegexpExtract, exp.SubstringIndex, exp.Dayname,
    exp.Chr, exp.Overlay, exp.NumberToStr, exp.Format, exp.ArrayToString, exp.Hex, exp.SHA, exp.SHA2, exp.Stuff,
    exp.Soundex, exp.RegexpSubstr,
)  # fmt: skip
_INTEGER = (
    exp.Count, exp.Length, exp.StrPosition, exp.RowNumber, exp.Rank, exp.DenseRank, exp.Ntile, exp.Year, exp.Month,
    exp.Day, exp.DayOfMonth, exp.DayOfWeek, exp.DayOfYear, exp.Week, exp.Quarter, exp.Hour, exp.Minute, exp.Second,
    exp.DateDiff, exp.TimestampDiff, exp.Ascii, exp.Sign, exp.WeekOfYear, exp.ArraySize, exp.ArrayPosition,
    exp.WidthBucket, exp.Grouping, exp.BitwiseCount, exp.RegexpCount, exp.RegexpInstr,
)  # fmt: skip
_INTEGER_NAMES = frozenset({
    "weekday", "yearweek", "field", "find_in_set", "strcmp", "unix_timestamp", "period_diff", "period_add", "to_days",
    "cardinality", "json_array_length", "jsonb_array_length", "json_length", "num_nulls", "num_nonnulls", "gcd", "lcm",
    "time_to_sec", "inet_aton", "microsecond", "ord", "factorial",
})  # fmt: skip
_FLOAT = (exp.PercentRank, exp.CumeDist, exp.Rand, exp.Corr, exp.RegrSlope, exp.RegrIntercept, exp.RegrR2)
_REAL = (
    exp.Extract, exp.Ceil, exp.Floor, exp.Trunc, exp.Pow, exp.Sqrt, exp.Exp, exp.Ln, exp.Log, exp.Stddev,
    exp.StddevPop, exp.StddevSamp, exp.Variance, exp.VariancePop,
)  # fmt: skip
_RESULTS = (
    (_BOOLEAN, "boolean"),
    (_TEXT, "text"),
    (_INTEGER, "integer"),
    (_FLOAT, "float"),
    (_REAL, "real"),
    ((exp.CurrentDate, exp.StrToDate, exp.TsOrDsToDate, exp.LastDay, exp.DateAdd, exp.DateSub, exp.Date), "date"),
    ((exp.CurrentTimestamp, exp.TimestampTrunc, exp.UnixToTime, exp.StrToTime, exp.CurrentDatetime), "timestamp"),
    ((exp.Interval, exp.MakeInterval), "interval"),
    ((exp.TimeFromParts,), "time"),
    ((exp.Array, exp.ArrayAgg, exp.ArrayRemove, exp.ArrayAppend, exp.StringToArray), "array"),
)


def _cast_kind(to: exp.DataType) -> str:
    name = to.this.value if hasattr(to.this, "value") else str(to.this)
    if name in ("INT", "BIGINT", "SMALLINT", "TINYINT", "UINT", "UBIGINT"):
        return "integer"
    if name in ("DOUBLE", "FLOAT"):
        return "float"
    if name in ("DECIMAL", "MONEY", "BIGDECIMAL"):
        return "real"
    if name.startswith("TIMESTAMP") or name == "DATETIME":
        return "timestamp"
    plain = {"DATE": "date", "TIME": "time", "BOOLEAN": "boolean", "INTERVAL": "interval", "ARRAY": "array"}
    return "text" if name in ("TEXT", "VARCHAR", "CHAR") else plain.get(name, "")
