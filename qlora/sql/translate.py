"""Translate queries of PostgreSQL and MySQL to SQLite, with the same results.

sqlglot writes what means the same in both. The rules are for the rest: they call `functions`, whose names start with
x_, and convert literals to the type that they are compared with. What has no rule is refused.
"""

from qlora.sql import translate_common, translate_documents, translate_mysql, translate_postgres
from qlora.sql.schema import Schema
from qlora.sql.translator import Translator

from sqlglot import exp

DIALECTS = {"postgres": translate_postgres, "mysql": translate_mysql}


def to_sqlite(tree: exp.Expression, dialect: str, schema: Schema) -> str:
    """The text with which SQLite gives the result of the query. Raises Untranslated."""
    own = DIALECTS[dialect]
    rules = translate_common.RULES | translate_documents.RULES | own.RULES
    named = translate_common.NAMED | translate_documents.NAMED | own.NAMED
    return Translator(dialect, schema, rules, named).convert(tree).sql("sqlite")
