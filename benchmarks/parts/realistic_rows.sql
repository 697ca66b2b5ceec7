CREATE TABLE patients (patient_id INTEGER PRIMARY KEY, full_name TEXT NOT NULL, sex TEXT CHECK (sex IN ('F', 'M')),
  birth_date DATE, city TEXT, email TEXT, first_seen DATE, insured BOOLEAN);
CREATE TABLE doctors (doctor_id INTEGER PRIMARY KEY, full_name TEXT, specialty TEXT, hired DATE, fee REAL);
CREATE TABLE visits (visit_id INTEGER PRIMARY KEY, patient_id INTEGER NOT NULL REFERENCES patients(patient_id),
  doctor_id INTEGER REFERENCES doctors(doctor_id), started TIMESTAMP, ended TIMESTAMP, cost REAL, notes TEXT);
CREATE TABLE tests (test_id INTEGER PRIMARY KEY, visit_id INTEGER REFERENCES visits(visit_id), kind TEXT, value REAL,
  taken DATE, flagged BOOLEAN);
CREATE TABLE rooms (room_id INTEGER PRIMARY KEY, floor INTEGER, beds INTEGER CHECK (beds BETWEEN 1 AND 8));
CREATE VIEW adults AS SELECT patient_id, full_name, city FROM patients WHERE birth_date < '2006-01-01';

SELECT COUNT(*) FROM patients WHERE strftime('%Y', birth_date) > '1980' AND sex = 'F'
SELECT full_name FROM patients WHERE LOWER(city) = 'bern' AND insured = 1
SELECT full_name FROM patients WHERE email LIKE '%@example.org'
SELECT SUBSTR(email, INSTR(email, '@') + 1), COUNT(*) FROM patients GROUP BY SUBSTR(email, INSTR(email, '@') + 1)
SELECT p.full_name FROM patients AS p JOIN visits AS v ON p.patient_id = v.patient_id WHERE v.cost > 200 AND p.sex = 'M'
SELECT d.specialty, AVG(v.cost) FROM doctors AS d JOIN visits AS v ON v.doctor_id = d.doctor_id GROUP BY d.specialty HAVING COUNT(*) > 5
SELECT CAST(SUM(CASE WHEN t.flagged = 1 THEN 1 ELSE 0 END) AS REAL) * 100 / COUNT(*) FROM tests AS t WHERE t.kind = 'GLU'
SELECT d.full_name FROM doctors AS d JOIN visits AS v ON v.doctor_id = d.doctor_id GROUP BY d.doctor_id ORDER BY SUM(v.cost) DESC LIMIT 1
SELECT full_name FROM patients WHERE strftime('%Y', 'now') - strftime('%Y', birth_date) BETWEEN 30 AND 40
SELECT COUNT(DISTINCT patient_id) FROM visits WHERE started BETWEEN '2020-01-01' AND '2020-12-31'
SELECT visit_id FROM visits WHERE julianday(ended) - julianday(started) > 2
SELECT strftime('%m', started), COUNT(*) FROM visits WHERE strftime('%Y', started) = '2021' GROUP BY strftime('%m', started)
SELECT full_name FROM patients WHERE patient_id NOT IN (SELECT patient_id FROM visits WHERE cost > 50)
SELECT kind, MAX(value) - MIN(value) FROM tests GROUP BY kind
SELECT p.full_name, v.cost, RANK() OVER (PARTITION BY p.city ORDER BY v.cost DESC) FROM patients p JOIN visits v ON v.patient_id = p.patient_id
SELECT full_name FROM adults WHERE city = 'Basel'
SELECT TRIM(full_name), LENGTH(city) FROM patients WHERE LENGTH(city) > 6
SELECT COUNT(*) FROM tests WHERE kind IN ('GLU', 'HDL') AND value NOT BETWEEN 40 AND 60
SELECT doctor_id FROM doctors WHERE specialty = 'Cardiology' INTERSECT SELECT doctor_id FROM visits WHERE cost >= 100
SELECT floor, SUM(beds) FROM rooms WHERE beds >= 4 GROUP BY floor
SELECT full_name FROM doctors WHERE hired = (SELECT MIN(hired) FROM doctors WHERE specialty = 'Surgery')
SELECT COALESCE(notes, 'none'), COUNT(*) FROM visits GROUP BY COALESCE(notes, 'none')
SELECT p.city, COUNT(v.visit_id) FROM patients p LEFT JOIN visits v ON v.patient_id = p.patient_id AND v.cost > 300 GROUP BY p.city


CREATE TABLE circuits (circuit_id INTEGER PRIMARY KEY, name TEXT, country TEXT, lat REAL, lng REAL, alt INTEGER);
CREATE TABLE races (race_id INTEGER PRIMARY KEY, year INTEGER, round INTEGER, circuit_id INTEGER REFERENCES circuits(circuit_id), name TEXT, date TEXT, start_time TEXT);
CREATE TABLE drivers (driver_id INTEGER PRIMARY KEY, code TEXT, forename TEXT, surname TEXT, dob DATE, nationality TEXT);
CREATE TABLE results (result_id INTEGER PRIMARY KEY, race_id INTEGER REFERENCES races(race_id), driver_id INTEGER REFERENCES drivers(driver_id), grid INTEGER, position INTEGER, points REAL, laps INTEGER, fastest_lap_time TEXT, status TEXT);
CREATE TABLE pit_stops (race_id INTEGER, driver_id INTEGER, stop INTEGER, lap INTEGER, milliseconds INTEGER, PRIMARY KEY (race_id, driver_id, stop));
CREATE TABLE seasons (year INTEGER PRIMARY KEY, url TEXT);

SELECT forename || ' ' || surname FROM drivers WHERE nationality = 'British' AND strftime('%Y', dob) = '1985'
SELECT COUNT(*) FROM drivers WHERE forename || ' ' || surname = 'Ann Lee'
SELECT r.name FROM races r JOIN circuits c ON r.circuit_id = c.circuit_id WHERE c.country = 'Italy' AND r.year > 2005
SELECT d.surname FROM results r JOIN drivers d ON d.driver_id = r.driver_id WHERE r.position = 1 AND r.grid > 3
SELECT d.surname, SUM(r.points) FROM results r JOIN drivers d ON d.driver_id = r.driver_id GROUP BY d.driver_id ORDER BY SUM(r.points) DESC LIMIT 3
SELECT AVG(milliseconds) / 1000.0 FROM pit_stops WHERE lap < 10
SELECT driver_id FROM pit_stops GROUP BY driver_id HAVING COUNT(*) >= 3 AND MIN(milliseconds) < 25000
SELECT SUM(IIF(status = 'Finished', 1, 0)) * 100.0 / COUNT(*) FROM results WHERE race_id = 18
SELECT race_id FROM results WHERE fastest_lap_time IS NOT NULL GROUP BY race_id HAVING COUNT(*) > 2
SELECT name FROM circuits WHERE lat > 40.5 AND lng < -3.25
SELECT name, CASE WHEN alt > 500 THEN 'high' WHEN alt > 100 THEN 'middle' ELSE 'low' END FROM circuits
SELECT driver_id, points, LAG(points) OVER (PARTITION BY driver_id ORDER BY race_id) FROM results
SELECT driver_id, SUM(points) OVER (PARTITION BY driver_id) FROM results
SELECT name FROM races WHERE strftime('%w', date) = '0'
SELECT name FROM races WHERE start_time > '14:00:00' AND date LIKE '2009-%'
SELECT REPLACE(name, ' Grand Prix', '') FROM races WHERE name LIKE '%Grand Prix'
SELECT code FROM drivers WHERE code IS NULL OR LENGTH(code) <> 3
SELECT year FROM seasons EXCEPT SELECT year FROM races WHERE round = 1
SELECT COUNT(*) FROM results WHERE laps * points > 500
SELECT d.surname FROM drivers d WHERE EXISTS (SELECT 1 FROM results r WHERE r.driver_id = d.driver_id AND r.position > r.grid + 5)
SELECT ROUND(AVG(points), 1), status FROM results GROUP BY status HAVING AVG(points) > 2.5
SELECT nationality, COUNT(*) FROM drivers WHERE dob < date('now', '-30 years') GROUP BY nationality
SELECT c.name FROM circuits c LEFT JOIN races r ON r.circuit_id = c.circuit_id WHERE r.race_id IS NULL


CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, first_name TEXT, last_name TEXT, country TEXT, joined DATE, vip BOOLEAN, credit REAL);
CREATE TABLE products (product_id INTEGER PRIMARY KEY, title TEXT, category TEXT, price REAL CHECK (price > 0), weight_g INTEGER);
CREATE TABLE orders (order_id INTEGER PRIMARY KEY, customer_id INTEGER REFERENCES customers(customer_id), placed TIMESTAMP, shipped TIMESTAMP, state TEXT CHECK (state IN ('new', 'paid', 'sent', 'lost')), amount REAL);
CREATE TABLE lines (order_id INTEGER REFERENCES orders(order_id), product_id INTEGER REFERENCES products(product_id), quantity INTEGER CHECK (quantity > 0), unit_price REAL, PRIMARY KEY (order_id, product_id));
CREATE TABLE returns (return_id INTEGER PRIMARY KEY, order_id INTEGER REFERENCES orders(order_id), reason TEXT, amount REAL, at DATE);
CREATE VIEW paid_orders AS SELECT * FROM orders WHERE state = 'paid';

SELECT SUM(l.quantity * l.unit_price) FROM lines l JOIN orders o ON o.order_id = l.order_id WHERE o.state = 'paid'
SELECT c.last_name FROM customers c JOIN orders o ON o.customer_id = c.customer_id GROUP BY c.customer_id HAVING SUM(o.amount) > 1000
SELECT strftime('%Y-%m', placed), SUM(amount) FROM orders GROUP BY strftime('%Y-%m', placed)
SELECT title FROM products WHERE UPPER(category) = UPPER('garden') AND price * 1.2 < 30
SELECT order_id FROM orders WHERE date(shipped) > date(placed, '+7 days')
SELECT COUNT(*) FROM paid_orders WHERE amount >= 99.5
SELECT country, COUNT(*) FROM customers WHERE vip GROUP BY country ORDER BY COUNT(*) DESC
SELECT title, price, DENSE_RANK() OVER (PARTITION BY category ORDER BY price) FROM products
SELECT category FROM products GROUP BY category HAVING COUNT(*) > 60
SELECT o.order_id FROM orders o LEFT JOIN returns r ON r.order_id = o.order_id WHERE r.return_id IS NULL AND o.state = 'sent'
SELECT SUM(amount) FROM returns WHERE reason LIKE '%broken%' AND at >= '2022-06-01'
SELECT first_name || ' ' || last_name AS name FROM customers WHERE credit < 0
SELECT ABS(credit) FROM customers WHERE country = 'Chile'
WITH big AS (SELECT customer_id, SUM(amount) AS total FROM orders GROUP BY customer_id) SELECT c.last_name FROM big b JOIN customers c ON c.customer_id = b.customer_id WHERE b.total > 500
SELECT p.title FROM products p WHERE p.price > (SELECT AVG(q.price) FROM products q WHERE q.category = p.category)
SELECT CAST(COUNT(CASE WHEN state = 'lost' THEN 1 END) AS REAL) / COUNT(*) FROM orders WHERE strftime('%H', placed) < '12'
SELECT COUNT(DISTINCT product_id) FROM lines WHERE quantity BETWEEN 5 AND 12
SELECT last_name FROM customers WHERE SUBSTR(last_name, 1, 1) IN ('A', 'B') ORDER BY last_name
SELECT DISTINCT c.country FROM customers c JOIN orders o ON c.customer_id = o.customer_id WHERE o.amount > 100 AND strftime('%Y', o.placed) = '2023'
SELECT state, COUNT(*) AS n FROM orders GROUP BY state HAVING n >= 3 ORDER BY n DESC, state
SELECT title FROM products WHERE weight_g / 1000.0 > 1.5 OR title LIKE 'Set of%'
SELECT customer_id FROM customers WHERE joined BETWEEN '2019-03-01' AND '2019-05-31' UNION SELECT customer_id FROM orders WHERE amount > 750


CREATE TABLE schools (code TEXT PRIMARY KEY, school TEXT, county TEXT, open_date DATE, closed_date DATE, charter INTEGER, phone TEXT, zip TEXT);
CREATE TABLE scores (code TEXT PRIMARY KEY REFERENCES schools(code), takers INTEGER, avg_read INTEGER, avg_math INTEGER);
CREATE TABLE meals (code TEXT REFERENCES schools(code), year TEXT, enrolled REAL, free REAL, low_grade TEXT, PRIMARY KEY (code, year));

SELECT school FROM schools WHERE county = 'Alameda' AND closed_date IS NULL
SELECT s.school FROM schools s JOIN scores t ON t.code = s.code WHERE t.avg_math > 560 AND s.charter = 1
SELECT MAX(free / enrolled) FROM meals WHERE year = '2014-2015'
SELECT s.phone FROM schools s JOIN meals m ON m.code = s.code ORDER BY m.free DESC LIMIT 1
SELECT COUNT(*) FROM scores WHERE avg_read + avg_math >= 1100
SELECT county, COUNT(*) FROM schools WHERE strftime('%Y', open_date) BETWEEN '1980' AND '1989' GROUP BY county
SELECT school FROM schools WHERE SUBSTR(zip, 1, 5) = '94501'
SELECT s.school FROM schools s JOIN meals m ON s.code = m.code WHERE m.enrolled - m.free > 100
SELECT school, CASE WHEN closed_date IS NULL THEN 'open' ELSE 'closed' END FROM schools
SELECT county FROM schools GROUP BY county HAVING SUM(charter) > 2 ORDER BY county
SELECT AVG(takers) FROM scores WHERE CAST(takers AS REAL) / avg_read > 0.5
SELECT school FROM schools WHERE phone LIKE '(510)%' AND school NOT LIKE '%Elementary%'
