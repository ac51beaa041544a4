INSERT INTO customer (name, email) SELECT 'customer ' || n, n || '@example.com' FROM generate_series(1, 2000) AS n;
INSERT INTO orders (customer_id, total) SELECT 1 + n % 2000, n FROM generate_series(1, 5000) AS n;
