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
CREATE FUNCTION {{schema}}.drop_before(of_time timestamptz)
RETURNS SETOF text
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '2s'
AS $$
DECLARE
    name text;
    from_time timestamptz;
    until_time timestamptz;
    last pg_lsn;
    young interval;
BEGIN
    SELECT l.keep INTO young FROM {{schema}}.retention_limit l;
    IF FOUND THEN
        IF young IS NULL THEN
            RAISE EXCEPTION 'this store keeps its history for ever'
                USING ERRCODE = '42501', HINT = 'The owner may allow it: UPDATE ' || {{schema_literal}} || '.retention_limit SET keep = ''365 days''';
        END IF;
        -- A day more is a clock that is ahead.
        IF of_time > now() - young + interval '1 day' THEN
            RAISE EXCEPTION 'this store keeps its history for %', young
                USING ERRCODE = '42501', HINT = 'The owner may allow it: UPDATE ' || {{schema_literal}} || '.retention_limit SET keep = ...';
        END IF;
        of_time := least(of_time, now() - young);
    END IF;
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
        ON CONFLICT (partition) DO UPDATE SET dropped_at = now(), dropped_by = session_user, position = greatest(retention.position, excluded.position);
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

-- Rows are added to keyframes in the making only: what is complete is history.
CREATE FUNCTION {{schema}}.keyframe_open()
RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- The lock keeps it from being completed until these rows are committed.
    PERFORM FROM {{schema}}.keyframes k
    WHERE k.id IN (SELECT a.keyframe FROM added a)
    ORDER BY k.id
    FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM {{schema}}.keyframes k WHERE k.complete AND k.id IN (SELECT a.keyframe FROM added a)) THEN
        RAISE EXCEPTION 'the keyframe is complete' USING ERRCODE = 'AU002';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER keyframe_open AFTER INSERT ON {{schema}}.keyframe_rows
    REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION {{schema}}.keyframe_open();

-- note_progress notes up to which row a keyframe in the making has come. It reports false
-- if somebody else goes on with it.
CREATE FUNCTION {{schema}}.note_progress(keyframe bigint, through_key text[], rows_were bigint, rows_are bigint)
RETURNS boolean
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH noted AS (
        UPDATE {{schema}}.keyframes
        SET last_key = through_key, done = rows_are
        WHERE id = keyframe AND NOT complete AND done = rows_were
        RETURNING id)
    SELECT EXISTS (SELECT FROM noted);
$$;

-- clear_keyframe removes the rows of a keyframe in the making, or those that stand for
-- no row.
CREATE FUNCTION {{schema}}.clear_keyframe(keyframe bigint, only_null boolean)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {{schema}}.keyframe_rows r
    USING {{schema}}.keyframes k
    WHERE r.keyframe = clear_keyframe.keyframe AND k.id = r.keyframe AND NOT k.complete
      AND (NOT only_null OR r.image = 'null');
$$;

-- complete_keyframe completes a keyframe. It reports false if that had another number of
-- rows than it was to have, where rows_were says so, or is complete.
CREATE FUNCTION {{schema}}.complete_keyframe(keyframe bigint, rows_were bigint, rows_are bigint)
RETURNS boolean
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    WITH completed AS (
        UPDATE {{schema}}.keyframes
        SET done = rows_are, complete = true
        WHERE id = keyframe AND NOT complete AND (rows_were IS NULL OR done = rows_were)
        RETURNING id)
    SELECT EXISTS (SELECT FROM completed);
$$;

-- drop_keyframe drops a keyframe in the making.
CREATE FUNCTION {{schema}}.drop_keyframe(keyframe bigint)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {{schema}}.keyframes WHERE id = keyframe AND NOT complete;
$$;

-- drop_keyframes drops the keyframes before the horizon of retention, from which nothing
-- can be reached any more.
CREATE FUNCTION {{schema}}.drop_keyframes(of_database text)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {{schema}}.keyframes k
    WHERE k.database = of_database AND k.position < (SELECT max(r.position) FROM {{schema}}.retention r);
$$;

-- committed_revert notes that a registered revert was committed.
CREATE FUNCTION {{schema}}.committed_revert(of_database text, revert text, at_position pg_lsn)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{schema}}.reverts
    SET done_position = at_position
    WHERE database = of_database AND id = revert AND done_position IS NULL;
$$;

-- Functions are executed by whom the owner says.
DO $$
DECLARE
    f record;
BEGIN
    FOR f IN
        SELECT DISTINCT p.oid::regprocedure AS signature, a.grantee
        FROM pg_catalog.pg_proc p, LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) a
        WHERE p.pronamespace = {{schema_literal}}::regnamespace AND p.proname IN ({{functions}})
          AND p.proowner = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) AND a.grantee <> p.proowner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM %s', f.signature,
            CASE f.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(f.grantee)) END);
    END LOOP;
END $$;

SELECT {{schema}}.protect(c.oid)
FROM pg_catalog.pg_class c
WHERE c.relnamespace = {{schema_literal}}::regnamespace AND c.relkind IN ('r', 'p');
