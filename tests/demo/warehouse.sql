-- The data of the demo's warehouse: what the shop's own systems wrote. Run once by a superuser, in the database `analytics`.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;

CREATE SCHEMA raw;

CREATE TABLE raw.customers (
    customer_id integer PRIMARY KEY,
    name text NOT NULL,
    country char(2) NOT NULL
);
INSERT INTO raw.customers VALUES (1, 'Mira', 'DE'), (2, 'Paul', 'FR'), (3, 'Yuki', 'JP'), (4, 'Sam', 'US');

-- One order an hour, up to the hour in which this runs.
CREATE TABLE raw.orders (
    order_id integer PRIMARY KEY,
    customer_id integer NOT NULL REFERENCES raw.customers,
    ordered_at timestamptz NOT NULL,
    status text NOT NULL,
    updated_at timestamptz NOT NULL
);
INSERT INTO raw.orders
SELECT n, 1 + n % 4, moment, (ARRAY['placed', 'shipped', 'returned'])[1 + n % 3], moment
FROM generate_series(1, 200) AS n, LATERAL (SELECT date_trunc('hour', now()) - (200 - n) * interval '1 hour' AS moment) AS time;

CREATE TABLE raw.payments (
    payment_id integer PRIMARY KEY,
    order_id integer NOT NULL REFERENCES raw.orders,
    cents integer NOT NULL
);
INSERT INTO raw.payments SELECT n, n, 500 + n * 7 FROM generate_series(1, 180) AS n;
