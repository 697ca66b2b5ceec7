import sqlite3

from qlora.sql.judge import Judge
from qlora.sql.schema import SchemaError, read_schema

import pytest

POSTGRES_DUMP = r"""
SET statement_timeout = 0;
SELECT pg_catalog.set_config('search_path', '', false);
\restrict xyz
CREATE TYPE public.mood AS ENUM (
    'sad',
    'it''s ok'
);
ALTER TYPE public.mood OWNER TO admin;
CREATE DOMAIN public.posint AS integer
	CONSTRAINT posint_check CHECK ((VALUE > 0));
CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN NEW.name := 'x;'; RETURN NEW; END; $$;
CREATE TABLE public.owners (
    id integer NOT NULL,
    name character varying(50) DEFAULT 'x'::character varying NOT NULL,
    email text,
    feeling public.mood DEFAULT 'sad'::public.mood,
    tags text[] DEFAULT '{}'::text[],
    extra jsonb DEFAULT '{}'::jsonb,
    kind text NOT NULL,
    age integer,
    made timestamp with time zone DEFAULT now(),
    born date,
    active boolean DEFAULT true,
    price numeric(10,2) DEFAULT 0.0,
    uid uuid DEFAULT gen_random_uuid(),
    n public.posint,
    span interval,
    "userId" integer,
    CONSTRAINT owners_age_check CHECK (((age >= 0) AND (age <= 150))),
    CONSTRAINT owners_kind_check CHECK ((kind = ANY (ARRAY['a'::text, 'b'::text])))
);
COMMENT ON TABLE public.owners IS 'the; owner''s';
CREATE SEQUENCE public.owners_id_seq AS integer START WITH 1 NO MINVALUE CACHE 1;
ALTER TABLE public.owners_id_seq OWNER TO admin;
ALTER SEQUENCE public.owners_id_seq OWNED BY public.owners.id;
CREATE TABLE public.pets (
    id bigint NOT NULL,
    owner_id integer,
    weight real,
    height real,
    area real GENERATED ALWAYS AS ((weight * height)) STORED
);
ALTER TABLE public.pets ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (START WITH 1 CACHE 1);
CREATE VIEW public.v_owners AS
 SELECT o.id, o.name, count(p.id) AS pets
   FROM (public.owners o LEFT JOIN public.pets p ON ((p.owner_id = o.id)))
  GROUP BY o.id;
CREATE TABLE public.logs (id integer, at timestamp without time zone NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE public.logs_1 PARTITION OF public.logs FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
ALTER TABLE ONLY public.owners ALTER COLUMN id SET DEFAULT nextval('public.owners_id_seq'::regclass);
COPY public.owners (id, name, email, kind, made, born, active, "userId") FROM stdin;
1	A\tnn; O'x	a@x	a	2026-12-01 01:47:16.265308+00	2001-02-03	t	7
2	Bob	\N	b	\N	\N	f	\N
\.
ALTER TABLE ONLY public.owners
    ADD CONSTRAINT owners_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.pets
    ADD CONSTRAINT pets_pkey PRIMARY KEY (id);
CREATE INDEX i1 ON public.pets USING btree (owner_id);
CREATE UNIQUE INDEX i2 ON public.owners USING btree (lower(email));
CREATE UNIQUE INDEX i3 ON public.owners USING btree (email);
CREATE TRIGGER t1 BEFORE INSERT ON public.owners FOR EACH ROW EXECUTE FUNCTION public.f();
ALTER TABLE ONLY public.pets
    ADD CONSTRAINT pets_owner_id_fkey FOREIGN KEY (owner_id) REFERENCES public.owners(id) ON DELETE CASCADE;
"""
MYSQL_DUMP = r"""
/*!40101 SET NAMES utf8mb4 */;
# a comment
DROP TABLE IF EXISTS `owners`;
CREATE TABLE `owners` (
  `id` int(10) unsigned NOT NULL AUTO_INCREMENT,
  `name` varchar(50) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL DEFAULT '' COMMENT 'the; name, it\'s',
  `status` enum('new','it''s') DEFAULT 'new',
  `active` tinyint(1) NOT NULL DEFAULT 1,
  `born` year(4) DEFAULT NULL,
  `price` decimal(10,2) DEFAULT 0.00 CHECK (`price` >= 0),
  `made` timestamp NOT NULL DEFAULT current_timestamp() ON UPDATE current_timestamp(),
  `key` text DEFAULT NULL,
  `js` longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin DEFAULT NULL CHECK (json_valid(`js`)),
  `total` double GENERATED ALWAYS AS (`price` * 2) STORED,
  PRIMARY KEY (`id`),
  UNIQUE KEY `u` (`name`(20)),
  KEY `k1` (`status`,`active`),
  FULLTEXT KEY `ft` (`key`)
) ENGINE=InnoDB AUTO_INCREMENT=5 DEFAULT CHARSET=utf8mb4 COLLATE=utf8mb4_general_ci COMMENT='x;';
CREATE TABLE `pets` (`id` int NOT NULL, `owner_id` int unsigned, `w` double, KEY (`owner_id`),
  CONSTRAINT `fk` FOREIGN KEY (`owner_id`) REFERENCES `owners` (`id`) ON DELETE SET NULL ON UPDATE CASCADE);
ALTER TABLE `pets` ADD PRIMARY KEY (`id`), ADD KEY `w` (`w`);
ALTER TABLE `pets` MODIFY `id` int NOT NULL AUTO_INCREMENT, AUTO_INCREMENT=3;
LOCK TABLES `owners` WRITE;
INSERT INTO `owners` (id, name, active) VALUES (1,'Ann\'s',1),(2,'B;ob',0);
UNLOCK TABLES;
/*!50001 CREATE ALGORITHM=UNDEFINED */
/*!50013 DEFINER=`root`@`localhost` SQL SECURITY DEFINER */
/*!50001 VIEW `v` AS select `o`.`name` AS `name`,`p`.`w` AS `w` from (`owners` `o` join `pets` `p` on
(`p`.`owner_id` = `o`.`id`)) */;
DELIMITER ;;
CREATE TRIGGER tr BEFORE INSERT ON pets FOR EACH ROW BEGIN IF NEW.w < 0 THEN SET NEW.w = 0; END IF; END ;;
CREATE PROCEDURE p() BEGIN SELECT 1; SELECT CASE WHEN 1 THEN 2 END; END ;;
DELIMITER ;
CREATE TABLE last_one (a int);
"""
SQLITE_DUMP = """
PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE IF NOT EXISTS "t" ("Given Name" TEXT COLLATE NOCASE, n INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  kind TEXT CHECK(kind IN ('a','b')) DEFAULT 'a', twice AS (n*2), [key] text, "order" INT REFERENCES t2(id));
INSERT INTO t VALUES('Ann',1,'a',NULL,1);
CREATE TABLE t2 (id INTEGER PRIMARY KEY, y NUMERIC DEFAULT (1+2), unique(y)) WITHOUT ROWID
CREATE TABLE t3 (a,b,c, primary key(a,b))
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('t',1);
CREATE VIEW v AS SELECT n FROM t;
CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT CASE WHEN 1 THEN 2 END; UPDATE t SET n = 1; END;
CREATE INDEX i ON t (n);
COMMIT;
"""
SQL_SERVER = """
USE [shop]
GO
SET ANSI_NULLS ON
GO
CREATE TABLE [dbo].[Orders](
    [OrderID] [int] IDENTITY(1,1) NOT NULL,
    [Customer Name] [nvarchar](50) NULL,
    [Placed] [datetime2](7) NOT NULL DEFAULT (getdate()),
    [Paid] [bit] NULL,
    [Total] [money] NULL,
 CONSTRAINT [PK_Orders] PRIMARY KEY CLUSTERED ([OrderID] ASC) WITH (PAD_INDEX = OFF) ON [PRIMARY]
) ON [PRIMARY]
GO
CREATE TABLE dbo.Lines (LineID uniqueidentifier NOT NULL, OrderID int NOT NULL)
GO
ALTER TABLE [dbo].[Lines]  WITH CHECK ADD  CONSTRAINT [FK] FOREIGN KEY([OrderID])
REFERENCES [dbo].[Orders] ([OrderID])
GO
"""


def keys(schema):
    return {(key.table, key.column, key.parent, key.parent_column) for key in schema.foreign_keys}


def test_reads_a_dump_of_postgres():
    schema = read_schema(POSTGRES_DUMP, "postgres")
    assert list(schema.tables) == ["owners", "pets", "logs", "logs_1"]
    owners, pets = schema.tables["owners"], schema.tables["pets"]
    assert owners.kinds == {
        "id": "integer", "name": "text", "email": "text", "feeling": "text", "tags": "array", "extra": "json",
        "kind": "text", "age": "integer", "made": "timestamp", "born": "date", "active": "boolean", "price": "real",
        "uid": "text", "n": "integer", "span": "interval", "userid": "integer",
    }  # fmt: skip
    assert owners.choices == {"feeling": ("sad", "it's ok"), "kind": ("a", "b")}
    assert owners.primary_key == ("id",)
    assert owners.unique == (("id",), ("email",))
    assert owners.not_null == {"id", "name", "kind"}
    assert owners.spelled == {"userid": "userId"}
    assert len(owners.checks) == 2
    assert pets.generated["area"].sql() == "(weight * height)"
    assert keys(schema) == {("pets", "owner_id", "owners", "id")}
    assert schema.tables["logs_1"].columns == schema.tables["logs"].columns
    first = dict(zip(owners.columns, schema.rows["owners"][0], strict=True))
    assert (first["name"], first["made"], first["active"], first["userid"]) == (
        "A\tnn; O'x", "2026-12-01 01:47:16", 1, 7,
    )  # fmt: skip
    assert schema.skipped == {"CREATE FUNCTION": 1, "CREATE TRIGGER": 1}


def test_reads_a_dump_of_mysql():
    schema = read_schema(MYSQL_DUMP, "mysql")
    assert list(schema.tables) == ["owners", "pets", "last_one"]
    owners = schema.tables["owners"]
    assert owners.kinds == {
        "id": "integer", "name": "text", "status": "text", "active": "boolean", "born": "year", "price": "real",
        "made": "timestamp", "key": "text", "js": "text", "total": "real",
    }  # fmt: skip
    assert owners.choices == {"status": ("new", "it's")}
    assert owners.unique == (("id",), ("name",))
    assert schema.tables["pets"].primary_key == ("id",)
    assert keys(schema) == {("pets", "owner_id", "owners", "id")}
    assert [row[:4] for row in schema.rows["owners"]] == [(1, "Ann's", "new", 1), (2, "B;ob", "new", 0)]
    assert list(schema.views) == ["v"]
    assert schema.skipped == {"CREATE TRIGGER": 1, "CREATE PROCEDURE": 1}


def test_reads_a_dump_of_sqlite():
    schema = read_schema(SQLITE_DUMP)
    assert list(schema.tables) == ["t", "t2", "t3"]
    assert schema.tables["t"].columns == {
        "given name": "TEXT", "n": "INTEGER", "kind": "TEXT", "twice": "", "key": "TEXT", "order": "INT",
    }  # fmt: skip
    assert schema.tables["t"].choices == {"kind": ("a", "b")}
    assert schema.tables["t3"].primary_key == ("a", "b")
    assert schema.rows == {"t": [("Ann", 1, "a", None, None, 1)]}
    assert keys(schema) == {("t", "order", "t2", "id")}


def test_reads_what_sql_server_writes():
    schema = read_schema(SQL_SERVER)
    assert schema.tables["orders"].kinds == {
        "orderid": "integer", "customer name": "text", "placed": "timestamp", "paid": "boolean", "total": "real",
    }  # fmt: skip
    assert schema.tables["orders"].primary_key == ("orderid",)
    assert keys(schema) == {("lines", "orderid", "orders", "orderid")}
    assert schema.skipped == {}


PLAIN = (
    "CREATE TABLE Dept (dept_id INTEGER PRIMARY KEY, name VARCHAR(20) UNIQUE, budget REAL NOT NULL)",
    "CREATE TABLE c (a int, b, d decimal(10, 2), primary key (a, b), foreign key (a) references dept, unique (b, d))",
    "CREATE TABLE `x y` (`select` TEXT, 'quoted' INT, \"key\" TEXT, index_ INT, check_ BIGINT UNSIGNED)",
    "CREATE TABLE s (id INTEGER PRIMARY KEY, boss INTEGER REFERENCES s(id) ON DELETE SET NULL, t TEXT DEFAULT 'a,b)')",
    "CREATE TABLE k (key TEXT, type CHARACTER VARYING(3) NOT NULL, value DOUBLE PRECISION DEFAULT -1.5 NOT NULL)",
)


@pytest.mark.parametrize("context", PLAIN)
def test_reads_plain_statements_as_sqlite_does(context):
    connection = sqlite3.connect(":memory:")
    connection.executescript(PLAIN[0] + ";" + (context if context != PLAIN[0] else ""))
    schema = read_schema(PLAIN[0] + ";" + (context if context != PLAIN[0] else ""))
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        table = schema.tables[name.lower()]
        columns = connection.execute("SELECT * FROM pragma_table_info(?)", (name,)).fetchall()
        assert list(table.columns.items()) == [(column[1].lower(), column[2].upper()) for column in columns]
        assert table.not_null == {column[1].lower() for column in columns if column[3]}
        by_place = sorted((column[5], column[1].lower()) for column in columns if column[5])
        assert table.primary_key == tuple(name for _, name in by_place)
        foreign = connection.execute("SELECT * FROM pragma_foreign_key_list(?)", (name,)).fetchall()
        assert {(key.column, key.parent) for key in schema.foreign_keys if key.table == table.name} == {
            (row[3].lower(), row[2].lower()) for row in foreign
        }


@pytest.mark.parametrize(
    ("clause", "dialect"),
    [
        ("DEFAULT 'x'::text", "postgres"),
        ("GENERATED BY DEFAULT AS IDENTITY (START WITH 5)", "postgres"),
        ("DEFAULT nextval('s'::regclass) NOT NULL", "postgres"),
        ("DEFAULT (now() AT TIME ZONE 'utc'::text)", "postgres"),
        ("COLLATE pg_catalog.\"C\" DEFAULT '{1,2}'::int[] CHECK (length(name) > 0)", "postgres"),
        ("REFERENCES t (id) MATCH FULL ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED", "postgres"),
        ("CHARACTER SET latin1 COLLATE latin1_bin DEFAULT 'a' COMMENT 'b, c'", "mysql"),
        ("NULL DEFAULT NULL ON UPDATE CURRENT_TIMESTAMP(6)", "mysql"),
        ("DEFAULT b'0' INVISIBLE", "mysql"),
        ("COLLATE NOCASE ON CONFLICT REPLACE", "sqlite"),
        ("WHATEVER THIS IS (1, 2) NOT NULL", "sqlite"),
    ],
)
def test_no_clause_refuses_a_schema(clause, dialect):
    context = f"CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT {clause}, n INTEGER)"
    schema = read_schema(context, dialect)
    assert list(schema.tables["t"].columns.items())[::2] == [("id", "INTEGER"), ("n", "INTEGER")]
    gold = "SELECT id FROM t WHERE n = 3"
    assert Judge(context, gold, dialect=dialect).judge("SELECT id FROM t WHERE n >= 3 AND n <= 3").strict


@pytest.mark.parametrize(
    ("text", "dialect", "skipped"),
    [
        ("CREATE TABLE t (a INT); GRANT ALL ON t TO me; VACUUM", "postgres", {}),
        ("CREATE TABLE t (a INT); CREATE AGGREGATE x (y); REINDEX", "postgres", {"CREATE AGGREGATE": 1, "REINDEX": 1}),
        ("CREATE TABLE t (a INT UNFAMILIAR CLAUSE)", "sqlite", {}),
        ("CREATE TABLE t (a INT DEFAULT 0 UNFAMILIAR CLAUSE)", "sqlite", {}),
        ("CREATE TABLE t (a INT NOT NULL UNFAMILIAR CLAUSE)", "sqlite", {"clause of a column": 1}),
        ("CREATE TABLE t (a INT); CREATE TABLE u AS SELECT * FROM t", "sqlite", {"CREATE TABLE without columns": 1}),
        ("CREATE TABLE t (a INT); CREATE TABLE t (b INT)", "sqlite", {"second table of a name": 1}),
    ],
)
def test_counts_what_it_skips(text, dialect, skipped):
    assert read_schema(text, dialect).skipped == skipped


@pytest.mark.parametrize(
    ("context", "dialect", "gold", "prediction"),
    [
        (POSTGRES_DUMP, "postgres", "SELECT name FROM v_owners WHERE pets > 1",
         "SELECT name FROM public.v_owners AS v WHERE v.pets >= 2"),
        (POSTGRES_DUMP, "postgres", "SELECT public.owners.name FROM public.owners WHERE public.owners.age > 1",
         "SELECT name FROM owners WHERE age >= 2"),
        (MYSQL_DUMP, "mysql", "SELECT name FROM v WHERE w > 3",
         "SELECT o.name FROM owners o JOIN `pets` p ON p.owner_id = o.id WHERE w > 3"),
        (SQLITE_DUMP, "sqlite", "SELECT COUNT(*) FROM v", "SELECT COUNT(*) FROM t"),
        (SQLITE_DUMP, "sqlite", 'SELECT n FROM "t" WHERE kind = \'a\'', "SELECT x.n FROM (SELECT * FROM v) AS x "
         "JOIN t ON t.n = x.n WHERE t.kind = 'a'"),
        (SQL_SERVER, "sqlite", "SELECT COUNT(*) FROM [dbo].[Orders] WHERE [Total] > 4",
         "SELECT COUNT(*) FROM orders WHERE Total > 4"),
    ],
)  # fmt: skip
def test_queries_may_read_views_and_qualify_tables(context, dialect, gold, prediction):
    judge = Judge(context, gold, dialect=dialect)
    assert judge.gold is None
    assert judge.judge(prediction).strict


def test_an_unknown_qualifier_is_an_unknown_table():
    judge = Judge("CREATE TABLE public.t (a INT)", "SELECT a FROM t", dialect="postgres")
    assert judge.judge("SELECT a FROM public.t").strict
    assert judge.judge("SELECT a FROM other.t").error == "unknown_table"


def test_inserted_rows_are_rows_of_one_database():
    context = "CREATE TABLE t (id INT, owner VARCHAR(50)); INSERT INTO t (id, owner) VALUES (1, 'Ann'), (2, 'Bob')"
    judge = Judge(context, "SELECT owner FROM t WHERE id > 1")
    assert judge.gold is None
    assert [("Bob",)] in [gold.rows for _, gold in judge.suites["strict"].instances()]


def test_reads_a_hundred_tables_without_a_semicolon():
    table = "CREATE TABLE t{0} (id integer NOT NULL, name character varying(50) DEFAULT 'x'::character varying, " + (
        ", ".join(f"c{number} numeric(10,2)" for number in range(20)) + ", CHECK ((c1 > (0)::numeric)))\n"
    )
    schema = read_schema("".join(table.format(number) for number in range(100)), "postgres")
    assert len(schema.tables) == 100
    assert {len(table.columns) for table in schema.tables.values()} == {22}


@pytest.mark.parametrize("context", ["", "SELECT 1", "CREATE TABLE t (a", "CREATE TABLE t (a); DROP TABLE t", "no"])
def test_refuses_what_creates_no_table(context):
    with pytest.raises(SchemaError):
        read_schema(context)
