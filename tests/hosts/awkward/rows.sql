CREATE SCHEMA legacy;
CREATE TABLE legacy.ledger (id integer PRIMARY KEY, entry text);
INSERT INTO legacy.ledger SELECT n, 'entry ' || n FROM generate_series(1, 100) AS n;
INSERT INTO shop.customer (email) SELECT n || '@example.com' FROM generate_series(1, 2000) AS n;
INSERT INTO shop.invoice (customer_id, cents) SELECT 1 + n % 2000, n FROM generate_series(1, 5000) AS n;
