-- What time travel needs beside the changes: named moments, whole states of
-- tables, and up to which position retention has dropped history.

-- Named moments.
CREATE TABLE {{schema}}.marks (
    database  text        COLLATE "C" NOT NULL,
    name      text        COLLATE "C" NOT NULL,
    position  pg_lsn      NOT NULL,
    marked_at timestamptz NOT NULL,
    PRIMARY KEY (database, name)
);

-- A keyframe is the whole state of a table at a position: a baseline that was
-- asked for, or what is left of one where retention has dropped the changes
-- behind it. It is complete once rows says how many there are.
CREATE TABLE {{schema}}.keyframes (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    database    text        COLLATE "C" NOT NULL,
    schema      text        COLLATE "C" NOT NULL,
    "table"     text        COLLATE "C" NOT NULL,
    relation_id bigint      NOT NULL,
    position    pg_lsn      NOT NULL,
    last_key    text[],
    done        bigint      NOT NULL DEFAULT 0,
    complete    boolean     NOT NULL DEFAULT false,
    created_at  timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX keyframes_relation_idx ON {{schema}}.keyframes (database, relation_id, position);
CREATE UNIQUE INDEX keyframes_complete_idx ON {{schema}}.keyframes (database, relation_id, position) WHERE complete;
COMMENT ON COLUMN {{schema}}.keyframes.last_key IS 'Where an unfinished baseline goes on: the key of its last row.';
COMMENT ON COLUMN {{schema}}.keyframes.done IS 'Rows so far.';

CREATE TABLE {{schema}}.keyframe_rows (
    keyframe    bigint NOT NULL REFERENCES {{schema}}.keyframes (id) ON DELETE CASCADE,
    ordinal     bigint NOT NULL,
    primary_key text   COLLATE "C",
    image       jsonb  NOT NULL,
    PRIMARY KEY (keyframe, ordinal)
);
CREATE INDEX keyframe_rows_key_idx ON {{schema}}.keyframe_rows (keyframe, primary_key);

-- The register of reverts. The applier enters a revert before its transaction can
-- commit. An entry stands for a revert that happened once done_position is set, or
-- when history holds changes of its transaction that name it: a context that claims
-- to be a revert and has no entry here is a claim and nothing more.
CREATE TABLE {{schema}}.reverts (
    database        text        COLLATE "C" NOT NULL,
    id              text        COLLATE "C" NOT NULL,
    number          bigint      GENERATED ALWAYS AS IDENTITY,
    transaction_id  bigint      NOT NULL,
    unit_kind       text        COLLATE "C" NOT NULL,
    unit_id         text        COLLATE "C" NOT NULL,
    idempotency_key text        COLLATE "C",
    partial         boolean     NOT NULL,
    user_id         text,
    reason          text,
    done_position   pg_lsn,
    registered_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (database, id)
);
CREATE INDEX reverts_unit_idx ON {{schema}}.reverts (database, unit_kind, unit_id);
CREATE INDEX reverts_key_idx ON {{schema}}.reverts (database, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX reverts_done_idx ON {{schema}}.reverts (database, done_position);
COMMENT ON COLUMN {{schema}}.reverts.done_position IS 'The revert was committed at or before this position; NULL where the applier did not see the commit.';

-- Up to which position a dropped partition reached: what is behind it is whole.
ALTER TABLE {{schema}}.retention ADD COLUMN position pg_lsn;

-- drop_before drops the partitions that end at or before a time and notes each,
-- so that a query of that past can say why there is no answer.
CREATE OR REPLACE FUNCTION {{schema}}.drop_before(of_time timestamptz)
RETURNS SETOF text
LANGUAGE plpgsql
SET search_path = pg_catalog
SET timezone = 'UTC'
SET lock_timeout = '2s'
AS $$
DECLARE
    name text;
    from_time timestamptz;
    until_time timestamptz;
    last pg_lsn;
BEGIN
    FOR name, from_time IN
        SELECT c.relname, to_timestamp(substring(c.relname FROM '^changes_([0-9]+_[0-9]{2})'), 'YYYY_MM')
        FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
        WHERE i.inhparent = ({{schema_literal}} || '.changes')::regclass AND c.relname ~ '^changes_[0-9]+_[0-9]{2}(_[0-9]+)?$'
        ORDER BY 2
    LOOP
        until_time := from_time + interval '1 month';
        CONTINUE WHEN until_time > of_time;
        EXECUTE format('LOCK TABLE %s.%I IN ACCESS EXCLUSIVE MODE', {{schema_literal}}, name);
        EXECUTE format('SELECT max(position) FROM %s.%I', {{schema_literal}}, name) INTO last;
        EXECUTE format('DROP TABLE %s.%I', {{schema_literal}}, name);
        INSERT INTO {{schema}}.retention (partition, from_time, until_time, position) VALUES (name, from_time, until_time, last)
        ON CONFLICT (partition) DO UPDATE SET dropped_at = now(), position = greatest(retention.position, excluded.position);
        RETURN NEXT name;
    END LOOP;
    DELETE FROM {{schema}}.commit_times t
    USING (SELECT max(r.until_time) AS horizon FROM {{schema}}.retention r) r
    WHERE t.committed_at < r.horizon;
    -- A day more: an entry is older than its commit.
    DELETE FROM {{schema}}.reverts v
    USING (SELECT max(r.until_time) AS horizon FROM {{schema}}.retention r) r
    WHERE v.registered_at < r.horizon - interval '1 day';
END $$;

REVOKE ALL ON FUNCTION {{schema}}.drop_before(timestamptz) FROM PUBLIC;

SELECT {{schema}}.protect(c.oid)
FROM pg_catalog.pg_class c
WHERE c.relnamespace = {{schema_literal}}::regnamespace AND c.relkind IN ('r', 'p');
