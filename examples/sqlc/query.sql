-- name: ImportProducts :copyfrom
INSERT INTO products (sku, name, stock)
VALUES ($1, $2, $3);

-- name: SaveProduct :one
INSERT INTO products (sku, name, stock)
VALUES ($1, $2, $3)
ON CONFLICT (sku) DO UPDATE SET name = excluded.name, stock = excluded.stock
RETURNING *;

-- name: ListProducts :many
SELECT *
FROM products
ORDER BY sku;

-- name: CreateOrder :one
INSERT INTO orders (customer)
VALUES ($1)
RETURNING id;

-- name: AddLines :batchexec
INSERT INTO order_lines (order_id, sku, quantity)
VALUES ($1, $2, $3);

-- name: TakeFromStock :execrows
UPDATE products
SET stock = stock - @quantity
WHERE sku = @sku;

-- name: DeleteOrder :exec
DELETE FROM orders
WHERE id = $1;
