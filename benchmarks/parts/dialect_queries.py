"""Queries as analysts write them for PostgreSQL and MySQL, of 20 kinds, over one schema."""

SCHEMAS = {
    "postgres": """
CREATE TABLE public.customers (id serial PRIMARY KEY, name character varying(60) NOT NULL, email text, city text,
  country character varying(2), born date, active boolean NOT NULL DEFAULT true, created timestamp without time zone);
CREATE TABLE public.orders (id integer PRIMARY KEY, customer_id integer REFERENCES customers(id), placed date NOT NULL,
  shipped timestamp, status text CHECK (status IN ('new', 'paid', 'sent')),
  total numeric(10,2), weight double precision);
CREATE TABLE public.items (order_id integer REFERENCES orders(id), product text, quantity integer, price numeric(8,2));
""",
    "mysql": """
CREATE TABLE `customers` (`id` int NOT NULL AUTO_INCREMENT,
  `name` varchar(60) NOT NULL, `email` varchar(100),
  `city` varchar(60), `country` char(2), `born` date, `active` tinyint(1) NOT NULL DEFAULT 1, `created` datetime,
  PRIMARY KEY (`id`), KEY `city` (`city`)) ENGINE=InnoDB;
CREATE TABLE `orders` (`id` int PRIMARY KEY, `customer_id` int, `placed` date NOT NULL, `shipped` datetime,
  `status` enum('new','paid','sent'), `total` decimal(10,2), `weight` double,
  CONSTRAINT `fk` FOREIGN KEY (`customer_id`) REFERENCES `customers` (`id`));
CREATE TABLE `items` (`order_id` int, `product` varchar(60), `quantity` int, `price` decimal(8,2),
  FOREIGN KEY (`order_id`) REFERENCES `orders` (`id`));
""",
}

# dialect -> kind -> queries
QUERIES = {
    "postgres": {
        "extract": [
            "SELECT COUNT(*) FROM orders WHERE EXTRACT(YEAR FROM placed) = 2023",
            "SELECT EXTRACT(MONTH FROM placed) AS m, SUM(total) FROM orders GROUP BY m ORDER BY m",
            "SELECT name FROM customers WHERE DATE_PART('month', born) = 5 AND DATE_PART('day', born) > 10",
            "SELECT id FROM orders WHERE EXTRACT(DOW FROM placed) IN (0, 6)",
        ],
        "truncate": [
            "SELECT DATE_TRUNC('month', placed) AS month, COUNT(*) FROM orders GROUP BY 1 ORDER BY 1",
            "SELECT DATE_TRUNC('week', shipped), AVG(total) FROM orders WHERE shipped IS NOT NULL GROUP BY 1",
            "SELECT COUNT(*) FROM customers WHERE DATE_TRUNC('year', created) = '2022-01-01'",
        ],
        "interval": [
            "SELECT id FROM orders WHERE placed >= CURRENT_DATE - INTERVAL '90 days'",
            "SELECT id FROM orders WHERE shipped > placed + INTERVAL '3 days'",
            "SELECT id, placed + INTERVAL '1 month' FROM orders WHERE status = 'new'",
            "SELECT name FROM customers WHERE created < NOW() - INTERVAL '2 years'",
        ],
        "difference": [
            "SELECT id, shipped::date - placed AS days FROM orders WHERE shipped IS NOT NULL",
            "SELECT AVG(shipped::date - placed) FROM orders",
            "SELECT id FROM orders WHERE shipped - placed > INTERVAL '5 days'",
            "SELECT name FROM customers WHERE EXTRACT(YEAR FROM AGE(born)) >= 40",
            "SELECT EXTRACT(EPOCH FROM (shipped - placed)) / 3600 FROM orders WHERE status = 'sent'",
        ],
        "to_char": [
            "SELECT TO_CHAR(placed, 'YYYY-MM') AS month, COUNT(*) FROM orders GROUP BY month ORDER BY month",
            "SELECT DISTINCT TO_CHAR(placed, 'FMDay') FROM orders",
            "SELECT name, TO_CHAR(created, 'HH24:MI') FROM customers WHERE active",
        ],
        "text": [
            "SELECT CONCAT(name, ' (', city, ')') FROM customers",
            "SELECT name || ', ' || country FROM customers WHERE country IS NOT NULL",
            "SELECT SPLIT_PART(email, '@', 2) AS host, COUNT(*) FROM customers GROUP BY host",
            "SELECT LEFT(name, 3), RIGHT(name, 2) FROM customers WHERE LENGTH(name) > 4",
            "SELECT INITCAP(city), UPPER(country) FROM customers WHERE POSITION('a' IN city) > 0",
            "SELECT SUBSTRING(name FROM 2 FOR 3), REPLACE(city, 'a', 'o') FROM customers",
        ],
        "pattern": [
            "SELECT name FROM customers WHERE city ILIKE '%ber%'",
            "SELECT name FROM customers WHERE name LIKE 'A%' AND email NOT LIKE '%.org'",
            "SELECT name FROM customers WHERE name ~ '^[A-M]'",
            "SELECT id FROM customers WHERE email ~* '@example'",
        ],
        "string_agg": [
            "SELECT city, STRING_AGG(name, ', ' ORDER BY name) FROM customers GROUP BY city",
            "SELECT STRING_AGG(DISTINCT status, '/' ORDER BY status) FROM orders",
        ],
        "cast": [
            "SELECT SUM(quantity)::numeric / COUNT(*) FROM items",
            "SELECT id::text || '-' || status FROM orders",
            "SELECT ROUND(AVG(total)::numeric, 1) FROM orders",
            "SELECT created::date, COUNT(*) FROM customers GROUP BY created::date",
        ],
        "division": [
            "SELECT quantity / 2, quantity % 2 FROM items WHERE quantity IS NOT NULL",
            "SELECT total / 3 FROM orders WHERE total > 10",
            "SELECT COUNT(*) FILTER (WHERE active) * 100 / COUNT(*) FROM customers",
        ],
        "filter": [
            "SELECT country, COUNT(*) FILTER (WHERE active) FROM customers GROUP BY country",
            "SELECT SUM(total) FILTER (WHERE status = 'paid'), SUM(total) FROM orders",
        ],
        "boolean": [
            "SELECT name FROM customers WHERE active AND city = 'Bern'",
            "SELECT name FROM customers WHERE NOT active OR born IS NULL",
            "SELECT country, BOOL_OR(active) FROM customers GROUP BY country",
            "SELECT name FROM customers WHERE active = TRUE AND country = 'DE'",
        ],
        "distinct on": [
            "SELECT DISTINCT ON (customer_id) customer_id, id FROM orders ORDER BY customer_id, placed DESC, id",
        ],
        "window": [
            "SELECT id, ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY placed, id) FROM orders",
            "SELECT id, SUM(total) OVER (PARTITION BY status) FROM orders",
            "SELECT name FROM (SELECT c.name, RANK() OVER (ORDER BY COUNT(*) DESC) AS r FROM customers c JOIN orders o "
            "ON o.customer_id = c.id GROUP BY c.id, c.name) AS ranked WHERE r = 1",
        ],
        "null": [
            "SELECT COALESCE(city, 'none'), COUNT(*) FROM customers GROUP BY 1",
            "SELECT name FROM customers ORDER BY born DESC NULLS LAST, id LIMIT 3",
            "SELECT name FROM customers ORDER BY born, id",
            "SELECT name FROM customers WHERE city IS DISTINCT FROM 'Bern'",
        ],
        "any": [
            "SELECT name FROM customers WHERE country = ANY(ARRAY['DE', 'CH'])",
            "SELECT GREATEST(quantity, 5), LEAST(price, 10) FROM items",
        ],
        "join": [
            "SELECT c.name, COALESCE(SUM(o.total), 0) FROM customers c LEFT JOIN orders o ON o.customer_id = c.id "
            "GROUP BY c.id",
            "SELECT c.city, SUM(i.quantity * i.price) FROM customers c JOIN orders o ON o.customer_id = c.id "
            "JOIN items i ON i.order_id = o.id WHERE o.status <> 'new' GROUP BY c.city",
        ],
        "cte": [
            "WITH m AS (SELECT DATE_TRUNC('month', placed) AS month, SUM(total) AS s FROM orders GROUP BY 1) "
            "SELECT AVG(s) FROM m",
            "WITH big AS (SELECT customer_id FROM orders GROUP BY customer_id HAVING SUM(total) > 100) "
            "SELECT name FROM customers WHERE id IN (SELECT customer_id FROM big)",
        ],
        "statistics": [
            "SELECT PERCENTILE_CONT(0.5) WITHIN GROUP (ORDER BY total) FROM orders",
            "SELECT STDDEV(weight) FROM orders",
        ],
        "case": [
            "SELECT name FROM customers WHERE city = 'Bern'",
            "SELECT LOWER(city), COUNT(*) FROM customers GROUP BY LOWER(city)",
            "SELECT CASE WHEN total >= 100 THEN 'high' ELSE 'low' END AS size, COUNT(*) FROM orders GROUP BY size",
        ],
    },
    "mysql": {
        "extract": [
            "SELECT COUNT(*) FROM orders WHERE YEAR(placed) = 2023",
            "SELECT MONTH(placed) AS m, SUM(total) FROM orders GROUP BY m ORDER BY m",
            "SELECT id FROM orders WHERE DAYOFWEEK(placed) IN (1, 7)",
            "SELECT QUARTER(placed), COUNT(*) FROM orders WHERE EXTRACT(YEAR FROM placed) > 2000 GROUP BY 1",
        ],
        "truncate": [
            "SELECT DATE(created), COUNT(*) FROM customers GROUP BY DATE(created)",
            "SELECT LAST_DAY(placed), SUM(total) FROM orders GROUP BY LAST_DAY(placed)",
        ],
        "interval": [
            "SELECT id FROM orders WHERE placed >= DATE_SUB(CURDATE(), INTERVAL 90 DAY)",
            "SELECT id FROM orders WHERE shipped > DATE_ADD(placed, INTERVAL 3 DAY)",
            "SELECT id, placed + INTERVAL 1 MONTH FROM orders WHERE status = 'new'",
        ],
        "difference": [
            "SELECT id, DATEDIFF(shipped, placed) FROM orders WHERE shipped IS NOT NULL",
            "SELECT name FROM customers WHERE TIMESTAMPDIFF(YEAR, born, CURDATE()) >= 40",
            "SELECT AVG(TIMESTAMPDIFF(HOUR, placed, shipped)) FROM orders",
        ],
        "to_char": [
            "SELECT DATE_FORMAT(placed, '%Y-%m') AS month, COUNT(*) FROM orders GROUP BY month ORDER BY month",
            "SELECT DISTINCT DAYNAME(placed) FROM orders",
            "SELECT name, DATE_FORMAT(created, '%H:%i') FROM customers WHERE active = 1",
        ],
        "text": [
            "SELECT CONCAT(name, ' (', city, ')') FROM customers",
            "SELECT CONCAT_WS(', ', name, city) FROM customers",
            "SELECT SUBSTRING_INDEX(email, '@', -1) AS host, COUNT(*) FROM customers GROUP BY host",
            "SELECT LEFT(name, 3), CHAR_LENGTH(city) FROM customers WHERE LOCATE('a', city) > 0",
        ],
        "pattern": [
            "SELECT name FROM customers WHERE city LIKE '%ber%'",
            "SELECT name FROM customers WHERE name REGEXP '^[a-m]'",
        ],
        "string_agg": [
            "SELECT city, GROUP_CONCAT(name ORDER BY name SEPARATOR '; ') FROM customers GROUP BY city",
        ],
        "cast": [
            "SELECT CAST(total AS SIGNED) FROM orders",
            "SELECT CAST(id AS CHAR) FROM orders WHERE status = 'paid'",
        ],
        "division": [
            "SELECT quantity / 2, quantity DIV 2, quantity MOD 2 FROM items",
            "SELECT ROUND(SUM(total) / COUNT(*), 2) FROM orders",
        ],
        "filter": [
            "SELECT country, SUM(IF(active = 1, 1, 0)) FROM customers GROUP BY country",
            "SELECT SUM(status = 'paid') FROM orders",
        ],
        "boolean": [
            "SELECT name FROM customers WHERE active AND city = 'Bern'",
            "SELECT name FROM customers WHERE active = TRUE OR country = 'DE'",
        ],
        "window": [
            "SELECT id, ROW_NUMBER() OVER (PARTITION BY customer_id ORDER BY placed, id) FROM orders",
            "SELECT id, SUM(total) OVER (PARTITION BY status) FROM orders",
        ],
        "null": [
            "SELECT IFNULL(city, 'none'), COUNT(*) FROM customers GROUP BY IFNULL(city, 'none')",
            "SELECT name FROM customers ORDER BY born DESC, id LIMIT 3",
            "SELECT name FROM customers WHERE NOT city <=> 'Bern'",
        ],
        "join": [
            "SELECT c.name, IFNULL(SUM(o.total), 0) FROM customers c LEFT JOIN orders o ON o.customer_id = c.id "
            "GROUP BY c.id, c.name",
        ],
        "cte": [
            "WITH m AS (SELECT DATE_FORMAT(placed, '%Y-%m') AS month, SUM(total) AS s FROM orders GROUP BY month) "
            "SELECT AVG(s) FROM m",
        ],
        "having": [
            "SELECT city, COUNT(*) AS n FROM customers GROUP BY city HAVING n > 2",
            "SELECT status, SUM(total) AS s FROM orders GROUP BY status HAVING s > 100 ORDER BY s DESC, status",
        ],
        "case": [
            "SELECT name FROM customers WHERE city = 'bern'",
            'SELECT COUNT(*) FROM orders WHERE status = "paid"',
            "SELECT UPPER(city), COUNT(*) FROM customers GROUP BY UPPER(city)",
        ],
    },
}
