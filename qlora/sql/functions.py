"""The functions of PostgreSQL and MySQL that SQLite lacks, in Python, for `sqlite3.Connection.create_function`.

`translate` calls them by the names below. Each gives NULL for a NULL argument unless it is in NULLABLE. A value that
the server would refuse (a date that is none, a division by zero) raises an error, which ends the query.
"""

import hashlib
import math
import sqlite3
import unicodedata
from collections.abc import Callable

from qlora.sql import dialect_aggregates as aggregates
from qlora.sql import dialect_documents as documents
from qlora.sql import dialect_formats as formats
from qlora.sql import dialect_numbers as numbers
from qlora.sql import dialect_texts as texts
from qlora.sql import moments, moments_read

FUNCTIONS: dict[str, Callable] = {
    "x_divide": numbers.divide,
    "x_divide_exactly": numbers.divide_exactly,
    "x_modulo": numbers.modulo,
    "x_add": numbers.add,
    "x_subtract": numbers.subtract,
    "x_scale": numbers.scale,
    "x_round": numbers.round_exactly,
    "x_round_float": numbers.round_float,
    "x_truncate": numbers.truncate_number,
    "x_power": numbers.power,
    "x_cbrt": lambda value: math.copysign(abs(value) ** (1 / 3), value),
    "x_exp": lambda value: math.exp(value),
    "x_sqrt": lambda value: math.sqrt(value),
    "x_ln": lambda value: math.log(value),
    "x_log": lambda base, value: math.log(value) / math.log(base),
    "x_log10": lambda value: math.log10(value),
    "x_pi": lambda: math.pi,
    "x_radians": lambda value: math.radians(value),
    "x_degrees": lambda value: math.degrees(value),
    "x_sin": lambda value: math.sin(value),
    "x_cos": lambda value: math.cos(value),
    "x_floor": lambda value: math.floor(numbers.number(value)),
    "x_ceil": lambda value: math.ceil(numbers.number(value)),
    "x_sign": lambda value: (value > 0) - (value < 0),
    "x_integer": numbers.as_integer,
    "x_float_integer": numbers.float_as_integer,
    "x_number": numbers.as_number,
    "x_decimal": numbers.as_decimal,
    "x_boolean": numbers.as_boolean,
    "x_boolean_text": numbers.boolean_text,
    "x_text": numbers.text,
    "x_date": moments.as_date,
    "x_timestamp": moments.as_timestamp,
    "x_time": moments.time_of,
    "x_interval": lambda value, unit="": moments.interval(*moments.parse_interval(value, unit)),
    "x_interval_text": lambda value: moments.interval_text(value) if moments.is_interval(value) else value,
    "x_mysql_integer": numbers.mysql_integer,
    "x_mysql_decimal": numbers.mysql_decimal,
    "x_is_true": texts.is_true,
    "x_extract": lambda name, value: moments.extract(name, value),
    "x_date_trunc": moments.truncate,
    "x_age": moments.age,
    "x_to_char": lambda value, pattern: moments.to_char(value, pattern),
    "x_date_format": moments.date_format,
    "x_days_between": lambda one, other: (moments.moment(one).date() - moments.moment(other).date()).days,
    "x_difference": moments.difference,
    "x_last_day": moments.last_day,
    "x_week": moments.week,
    "x_shift": lambda value, amount, sign, keep: _shifted(value, amount, sign, keep),
    "x_make_date": lambda year, month, day: moments.as_date(f"{year:04}-{month:02}-{day:02}"),
    "x_epoch": lambda value: int(moments.extract("epoch", value)),
    "x_from_epoch": lambda value: moments.shift("1970-01-01", moments.interval(0, 0, round(value * 1e6)), 1).isoformat(
        " "
    ),
    "x_left": texts.left,
    "x_right": texts.right,
    "x_mysql_left": texts.mysql_left,
    "x_substring": texts.substring,
    "x_mysql_substring": texts.mysql_substring,
    "x_concat": texts.concat,
    "x_mysql_concat": texts.mysql_concat,
    "x_concat_ws": texts.concat_ws,
    "x_split_part": texts.split_part,
    "x_substring_index": texts.substring_index,
    "x_initcap": texts.initcap,
    "x_lpad": texts.pad_left,
    "x_rpad": texts.pad_right,
    "x_repeat": texts.repeat,
    "x_reverse": lambda value: numbers.text(value)[::-1],
    "x_translate": texts.translate,
    "x_position": texts.position,
    "x_mysql_position": texts.mysql_position,
    "x_ascii": lambda value: ord(numbers.text(value)[0]) if numbers.text(value) else 0,
    "x_md5": lambda value: hashlib.md5(numbers.text(value).encode(), usedforsecurity=False).hexdigest(),
    "x_bytes": lambda value: len(numbers.text(value).encode()),
    "x_starts_with": lambda value, start: int(numbers.text(value).startswith(start)),
    "x_overlay": texts.overlay,
    "x_field": texts.field,
    "x_find_in_set": texts.find_in_set,
    "x_elt": texts.elt,
    "x_format": texts.format_number,
    "x_matches": texts.matches,
    "x_similar": texts.similar,
    "x_regexp_replace": texts.regexp_replace,
    "x_regexp_substring": texts.regexp_substring,
    "x_regexp_group": texts.regexp_group,
    "x_regexp_count": texts.regexp_count,
    "x_regexp_place": texts.regexp_place,
    "x_like_exactly": formats.like_exactly,
    "x_number_to_char": formats.number_to_char,
    "x_format_text": formats.format_text,
    "x_quoted": formats.quoted,
    "x_soundex": formats.soundex,
    "x_hexadecimal": formats.hexadecimal,
    "x_to_base": formats.to_base,
    "x_digest": formats.digest,
    "x_address_number": formats.address_number,
    "x_replaced_part": formats.replaced_part,
    "x_order": formats.order,
    "x_bucket": formats.bucket,
    "x_bits": formats.bits,
    "x_tan": lambda value: math.tan(value),
    "x_asin": lambda value: math.asin(value),
    "x_acos": lambda value: math.acos(value),
    "x_atan": lambda value: math.atan(value),
    "x_atan2": lambda one, other: math.atan2(one, other),
    "x_cot": lambda value: 1 / math.tan(value),
    "x_gcd": lambda one, other: math.gcd(one, other),
    "x_lcm": lambda one, other: math.lcm(one, other),
    "x_factorial": lambda value: math.factorial(value) if value < 20 else None,
    "x_nulls": lambda *values: sum(value is None for value in values),
    "x_not_nulls": lambda *values: sum(value is not None for value in values),
    "x_is_finite": lambda _: 1,  # no made-up value is infinite
    "x_read_moment": moments_read.read,
    "x_series": moments_read.series,
    "x_series_of_moments": moments_read.series_of_moments,
    "x_clock": moments_read.clock,
    "x_seconds": moments_read.seconds,
    "x_time_between": moments_read.time_between,
    "x_add_time": moments_read.add_time,
    "x_day_of_year": moments_read.day_of_year,
    "x_day_number": moments_read.day_number,
    "x_day_of_number": moments_read.day_of_number,
    "x_period_add": moments_read.period_add,
    "x_period_diff": lambda one, other: moments_read.month_number(one) - moments_read.month_number(other),
    "x_year_week": moments_read.year_week,
    "x_make_interval": moments_read.interval_of,
    "x_make_time": lambda hour, minute, second: moments_read.clock(3600 * hour + 60 * minute + second),
    "x_json": documents.document,
    "x_json_valid": documents.is_valid,
    "x_json_get": documents.get,
    "x_json_text": documents.get_text,
    "x_mysql_json_value": documents.mysql_get_value,
    "x_mysql_json_text": documents.mysql_get_text,
    "x_json_contains": documents.contains,
    "x_mysql_json_contains": documents.mysql_contains,
    "x_json_has_key": documents.has_key,
    "x_json_size": documents.size,
    "x_json_list_size": documents.list_size,
    "x_json_type": documents.type_name,
    "x_json_elements": documents.list_elements,
    "x_json_keys": documents.keys,
    "x_array": documents.array,
    "x_array_has": documents.has_element,
    "x_contains_all": documents.contains_all,
    "x_array_overlaps": documents.overlaps,
    "x_array_length": documents.length,
    "x_array_cardinality": documents.cardinality,
    "x_array_joined": documents.joined,
    "x_array_element": documents.element,
    "x_array_place": documents.place,
    "x_array_without": documents.without,
    "x_array_with": documents.with_element,
    "x_array_split": documents.split,
    "x_array_list": documents.as_list,
    "lower": lambda value: numbers.text(value).lower(),
    "upper": lambda value: numbers.text(value).upper(),
}
NULLABLE = frozenset({
    texts.concat, texts.mysql_concat, texts.concat_ws, texts.field, texts.elt, formats.format_text, documents.array,
    documents.with_element,
    FUNCTIONS["x_nulls"], FUNCTIONS["x_not_nulls"],
})  # fmt: skip
AGGREGATES: dict[str, type] = {
    "x_text_agg": aggregates.TextAggregate,
    "x_array_agg": aggregates.ArrayAggregate,
    "x_var_samp": aggregates.VarianceSample,
    "x_var_pop": aggregates.VariancePopulation,
    "x_stddev_samp": aggregates.DeviationSample,
    "x_stddev_pop": aggregates.DeviationPopulation,
    "x_percentile": aggregates.Percentile,
    "x_percentile_disc": aggregates.PercentileDiscrete,
    "x_mode": aggregates.Mode,
    "x_corr": aggregates.Correlation,
    "x_slope": aggregates.Slope,
    "x_intercept": aggregates.Intercept,
    "x_bit_or": aggregates.BitOr,
    "x_bit_and": aggregates.BitAnd,
    "x_bit_xor": aggregates.BitXor,
    "x_avg_interval": aggregates.IntervalAverage,
    "x_sum_interval": aggregates.IntervalSum,
}


def _shifted(value: object, amount: str, sign: int, keep: int) -> str:
    """A date or timestamp plus or minus an interval; with `keep`, a date stays one if the interval has whole days."""
    moved = moments.shift(value, amount, sign)
    if keep and moments.is_date(value) and moments.parts(amount)[2] == 0:
        return moved.date().isoformat()
    return moved.isoformat(" ")


def fold(value: str) -> str:
    """A text as MySQL's usual collation compares it: without case, accents and trailing blanks."""
    if value.isascii():
        return value.lower().rstrip(" ")
    return "".join(one for one in unicodedata.normalize("NFD", value.lower()) if not unicodedata.combining(one)).rstrip(
        " "
    )


def _compare(one: str, other: str) -> int:
    one, other = fold(one), fold(other)
    return (one > other) - (one < other)


def register(connection: sqlite3.Connection, dialect: str) -> None:
    """Make the functions known to a connection. An error gives NULL in MySQL, and ends the query in PostgreSQL."""

    def guarded(function: Callable) -> Callable:
        def call(*values: object) -> object:
            if None in values and function not in NULLABLE:
                return None
            try:
                return function(*values)
            except (ValueError, ArithmeticError, OverflowError):
                if dialect == "mysql":
                    return None
                raise

        return call

    for name, function in FUNCTIONS.items():
        connection.create_function(name, -1, guarded(function), deterministic=True)
    for name, aggregate in AGGREGATES.items():
        connection.create_aggregate(name, -1, aggregate)
    connection.create_collation("dialect", _compare)
