CREATE EXTENSION btree_gist;
CREATE SCHEMA elsewhere;
CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN even_positive AS positive NOT NULL CHECK (VALUE % 2 = 0);
CREATE FUNCTION own(int) RETURNS bool LANGUAGE sql AS 'SELECT $1 > 7';
CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';

CREATE TABLE parent (a int, b text COLLATE loose, v text UNIQUE, PRIMARY KEY (b, a) INCLUDE (v), UNIQUE (a, b) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE elsewhere.child (
	id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	a int, b text COLLATE loose NOT NULL,
	other bigint REFERENCES elsewhere.child ON DELETE CASCADE ON UPDATE SET NULL,
	FOREIGN KEY (b, a) REFERENCES parent DEFERRABLE);
CREATE TABLE "Odd ""name" ("A b" text, n int NOT NULL, d even_positive, e int DEFAULT 7 NOT NULL,
	g int GENERATED ALWAYS AS (n * 2) STORED,
	CHECK (n > 0), CONSTRAINT own CHECK (own(n)), CHECK (g > 1), CHECK (n < e));
CREATE UNIQUE INDEX ON "Odd ""name" (lower("A b"), g) WHERE e > 0;
CREATE TABLE room (id int, during int4range, EXCLUDE USING gist (id WITH =, during WITH &&));
CREATE TABLE part (id int, k int, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
CREATE TRIGGER t BEFORE INSERT ON part_1 FOR EACH ROW EXECUTE FUNCTION noop();
CREATE TABLE off (id int, k int, FOREIGN KEY (id, k) REFERENCES part);
ALTER TABLE off DISABLE TRIGGER ALL;
ALTER TABLE off ENABLE ROW LEVEL SECURITY;
