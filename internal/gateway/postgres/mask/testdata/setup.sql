CREATE TABLE customers (
  id int PRIMARY KEY,
  name text NOT NULL,
  email text UNIQUE NOT NULL,
  phone varchar(20),
  pin int,
  big bigint,
  amount numeric(12,2),
  born date,
  seen timestamptz,
  token uuid,
  photo bytea,
  prefs jsonb,
  tags text[],
  city char(30),
  email_lower text GENERATED ALWAYS AS (lower(email)) STORED,
  note text
);
INSERT INTO customers VALUES
 (1, 'Ada', 'canary-ada@secret.example', '+49-canary-phone', 777123451, 777123451777, 77712345.17, '1987-06-05', '1987-06-05 04:03:02+00',
  'ca4a57c0-ffee-4bad-8bad-ca4a57c0ffee', '\xca4a57c0ffee', '{"k": "canary-prefs"}', '{canary-tag,two}', 'canary-city', DEFAULT, 'harmless'),
 (2, 'Bob', 'canary-bob@secret.example', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, DEFAULT, NULL);
CREATE TABLE orders (id int PRIMARY KEY, customer int REFERENCES customers(id), total numeric, email text, note text);
INSERT INTO orders VALUES (10, 1, 9.99, 'order@public.example', 'first'), (11, 1, 5, 'order2@public.example', NULL), (12, 2, 7, NULL, 'pay 4111 1111 1111 1111');
CREATE VIEW plain_view AS SELECT id, email AS address, name FROM customers;
CREATE VIEW view_of_view AS SELECT v.address AS a2, v.id FROM plain_view v JOIN orders o ON o.customer = v.id;
CREATE VIEW lower_view AS SELECT id, lower(email) AS l FROM customers;
CREATE VIEW filter_view AS SELECT id FROM customers WHERE email LIKE 'canary%';
CREATE VIEW row_view AS SELECT row_to_json(c) AS j FROM customers c;
CREATE VIEW harmless_view AS SELECT id, name FROM customers;
CREATE VIEW stats_view AS SELECT tablename, most_common_vals::text AS v FROM pg_stats;
CREATE MATERIALIZED VIEW mat AS SELECT id, email FROM customers;
CREATE TABLE people (id int, email text, note text);
CREATE TABLE employees (salary int) INHERITS (people);
INSERT INTO people VALUES (1, 'canary-person@secret.example', 'x');
INSERT INTO employees VALUES (2, 'canary-employee@secret.example', 'y', 5);
CREATE TABLE events (id int, region text, who text) PARTITION BY LIST (region);
CREATE TABLE events_eu PARTITION OF events FOR VALUES IN ('eu');
CREATE TABLE events_us PARTITION OF events FOR VALUES IN ('us');
INSERT INTO events VALUES (1, 'eu', 'canary-event-eu'), (2, 'us', 'canary-event-us');
CREATE SCHEMA other;
CREATE TABLE other.buyers (id int, email text, extra text);
INSERT INTO other.buyers VALUES (1, 'other@public.example', 'e');
CREATE TABLE buyers (id int, email text);
INSERT INTO buyers VALUES (1, 'canary-buyer');
CREATE TABLE other.things (id int, label text);
INSERT INTO other.things VALUES (1, 'thing');
INSERT INTO orders VALUES (1, 1, 1, NULL, NULL);
CREATE TABLE loose (id int, soft text, hard text);
INSERT INTO loose VALUES (1, 'canary-soft', 'canary-hard'), (2, 'canary-soft', 'canary-hard2');
CREATE TABLE archive (id int, c customers, cs customers[]);
INSERT INTO archive SELECT id, c, ARRAY[c] FROM customers c;
ANALYZE;
