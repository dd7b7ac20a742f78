-- The history itself. One row is one row-level event of the source.
--
-- Identity and order are (position, sequence): the commit LSN of the source
-- transaction and the ordinal of the change inside it. committed_at is only the
-- partition key and a label: commit times run backwards against commit order
-- under concurrency, so nothing may be ordered by it.
--
-- Text columns use the "C" collation: they are compared byte by byte, which is
-- what identifiers mean and is several times cheaper in the indexes.
CREATE TABLE {{schema}}.changes (
    position       pg_lsn      NOT NULL,
    sequence       integer     NOT NULL,
    committed_at   timestamptz NOT NULL,
    transaction_id bigint      NOT NULL,
    database       text        COLLATE "C" NOT NULL,
    schema         text        COLLATE "C" NOT NULL,
    "table"        text        COLLATE "C" NOT NULL,
    primary_key    text        COLLATE "C",
    previous_key   text        COLLATE "C",
    operation      text        COLLATE "C" NOT NULL,
    before         jsonb       NOT NULL,
    after          jsonb       NOT NULL,
    context        jsonb,
    environment    text        COLLATE "C",
    defect         text,
    queued_at      timestamptz NOT NULL,
    -- now(), not clock_timestamp(): a volatile default would take COPY off its
    -- multi-row path.
    created_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (position, sequence, database, committed_at)
) PARTITION BY RANGE (committed_at);

COMMENT ON TABLE {{schema}}.changes IS 'Row-level history, in commit order by (position, sequence). Append-only.';
COMMENT ON COLUMN {{schema}}.changes.position IS 'Commit LSN of the source transaction.';
COMMENT ON COLUMN {{schema}}.changes.sequence IS 'Ordinal of the change inside its transaction, from 1.';
COMMENT ON COLUMN {{schema}}.changes.primary_key IS 'Text of the key; a JSON array of texts for several columns; NULL where the table has none.';
COMMENT ON COLUMN {{schema}}.changes.previous_key IS 'The key before an UPDATE that changed it, else NULL.';
COMMENT ON COLUMN {{schema}}.changes.context IS 'What the application stamped; NULL where nothing was stamped.';
COMMENT ON COLUMN {{schema}}.changes.defect IS 'What could not be recorded faithfully, in words without values; NULL for a faithful record.';
COMMENT ON COLUMN {{schema}}.changes.queued_at IS 'When capture read the change from the WAL.';

-- A row's history, and the last change of a row before a position.
CREATE INDEX changes_row_idx ON {{schema}}.changes ("table", primary_key, schema, position);
-- The former key of a row whose key was changed: few rows, so it costs nothing.
CREATE INDEX changes_previous_key_idx ON {{schema}}.changes ("table", previous_key, position) WHERE previous_key IS NOT NULL;
-- A table's changes in commit order; always appended at its right edge per table.
CREATE INDEX changes_table_idx ON {{schema}}.changes ("table", position, sequence);
-- A user's latest changes. Clients in other languages write user_id. The expression
-- is the one that the package's queries have (see contextMember), to the letter.
CREATE INDEX changes_user_idx ON {{schema}}.changes ((coalesce(
        CASE WHEN jsonb_typeof(context -> 'userId') IN ('string', 'number') THEN nullif(context ->> 'userId', '') END,
        CASE WHEN jsonb_typeof(context -> 'user_id') IN ('string', 'number') THEN nullif(context ->> 'user_id', '') END)), position, sequence)
    WHERE context IS NOT NULL;
-- The changes of a request, all with the same entry, which are kept once.
CREATE INDEX changes_request_idx ON {{schema}}.changes ((coalesce(
        CASE WHEN jsonb_typeof(context -> 'requestId') IN ('string', 'number') THEN nullif(context ->> 'requestId', '') END,
        CASE WHEN jsonb_typeof(context -> 'request_id') IN ('string', 'number') THEN nullif(context ->> 'request_id', '') END)))
    WHERE context IS NOT NULL;
-- Trace, endpoint, worker and every other containment in the context. The list
-- of entries still to be sorted in is read by every query: it is kept short.
CREATE INDEX changes_context_idx ON {{schema}}.changes USING gin (context jsonb_path_ops) WITH (gin_pending_list_limit = 512) WHERE context IS NOT NULL;
-- Time ranges and transaction ids are almost in the order of the heap. Of the others it
-- tells in which parts of the heap there are none, which finds the few changes of an
-- environment or without a context and the few deletes of a history. A change costs it
-- nothing: it is written once for 32 pages of them. The last expression is the one that
-- WithoutContext has, to the letter.
CREATE INDEX changes_time_idx ON {{schema}}.changes USING brin (committed_at, transaction_id,
        operation text_bloom_ops (n_distinct_per_range = 16), environment text_bloom_ops (n_distinct_per_range = 16),
        ((context IS NULL OR context IN ('{}'::jsonb, 'null'::jsonb))::integer))
    WITH (pages_per_range = 32, autosummarize = on);
-- What could not be recorded faithfully is next to nothing.
CREATE INDEX changes_defect_idx ON {{schema}}.changes (position, sequence) WHERE defect IS NOT NULL;

-- One row for each captured database: the position up to which the store holds
-- everything. It moves in the same transaction as the rows and by
-- compare-and-set (see advance), which is what makes the history exactly-once.
CREATE TABLE {{schema}}.checkpoints (
    database          text        COLLATE "C" PRIMARY KEY,
    slot              text        NOT NULL,
    system_identifier text        NOT NULL,
    timeline          integer     NOT NULL,
    position          pg_lsn      NOT NULL,
    epoch             bigint      NOT NULL DEFAULT 0,
    committed_at      timestamptz,
    changes           bigint      NOT NULL DEFAULT 0,
    writer_pid        integer,
    writer_start      timestamptz,
    verified          pg_lsn,
    created_at        timestamptz NOT NULL DEFAULT now(),
    updated_at        timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

COMMENT ON COLUMN {{schema}}.checkpoints.position IS 'End LSN of the last transaction that the store holds.';
COMMENT ON COLUMN {{schema}}.checkpoints.epoch IS 'Counts the holders of the slot; a writer of an earlier epoch is fenced.';
COMMENT ON COLUMN {{schema}}.checkpoints.writer_pid IS 'Backend of the writer in office, which whoever takes over ends.';
COMMENT ON COLUMN {{schema}}.checkpoints.verified IS 'A position at which all covered tables were seen in the publication: one that is not there now was there until then.';
COMMENT ON COLUMN {{schema}}.checkpoints.committed_at IS 'Running maximum of the commit times up to position.';

-- Maps a time to a position. A row says: the running maximum of commit times
-- through the transaction that committed at position is committed_at. Rows are
-- sparse; between two of them the changes themselves decide.
CREATE TABLE {{schema}}.commit_times (
    database     text        COLLATE "C" NOT NULL,
    position     pg_lsn      NOT NULL,
    committed_at timestamptz NOT NULL,
    PRIMARY KEY (database, position)
);
CREATE INDEX commit_times_time_idx ON {{schema}}.commit_times (database, committed_at, position);

-- The versions of each table's structure: its name, columns and key. A version is
-- valid from behind the first sequence changes of the transaction at position,
-- until the next version of the same relation.
CREATE TABLE {{schema}}.relations (
    database         text    COLLATE "C" NOT NULL,
    relation_id      bigint  NOT NULL,
    position         pg_lsn  NOT NULL,
    sequence         integer NOT NULL DEFAULT 0,
    after            pg_lsn,
    schema           text    COLLATE "C" NOT NULL,
    "table"          text    COLLATE "C" NOT NULL,
    kind             text    NOT NULL DEFAULT 'r',
    root_id          bigint,
    parts            bigint[] NOT NULL DEFAULT '{}',
    columns          jsonb   NOT NULL,
    primary_key      text[]  NOT NULL,
    key_constraint   bigint  NOT NULL DEFAULT 0,
    dropped          boolean NOT NULL DEFAULT false,
    guessed          boolean NOT NULL DEFAULT false,
    attached         boolean NOT NULL DEFAULT false,
    recorded_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (database, relation_id, position, sequence)
);
COMMENT ON COLUMN {{schema}}.relations.columns IS 'Array of {"name", "type", "typeOid", "typeMod", "attnum", "generated", "expression", "identity", "definition"} in column order.';
COMMENT ON COLUMN {{schema}}.relations.after IS 'NULL where the version came to be just here; else it came to be somewhere behind this position.';
COMMENT ON COLUMN {{schema}}.relations.root_id IS 'The partitioned table that the relation is a part of.';
COMMENT ON COLUMN {{schema}}.relations.parts IS 'The leaves of a partitioned table, the children of one that others inherit from.';
COMMENT ON COLUMN {{schema}}.relations.attached IS 'Parts may have come with rows of their own, which no change tells of.';
COMMENT ON COLUMN {{schema}}.relations.guessed IS 'Which column is which could not be decided.';

-- Times at which commit times ran backwards by more than a second: the source's
-- clock was ahead for a while. A time between back_to and ahead_at means no one
-- position.
CREATE TABLE {{schema}}.clock_jumps (
    database text        COLLATE "C" NOT NULL,
    ahead_at timestamptz NOT NULL,
    back_to  timestamptz NOT NULL,
    position pg_lsn      NOT NULL,
    PRIMARY KEY (database, ahead_at)
);

-- The word by which capture knows the messages about structures that are its own.
-- Whoever can run SQL can write messages; only the owner can read this.
CREATE TABLE {{schema}}.tokens (
    database text COLLATE "C" PRIMARY KEY,
    token    text NOT NULL
);

-- From which position each table is tracked, and until which.
CREATE TABLE {{schema}}.coverage (
    database          text   COLLATE "C" NOT NULL,
    schema            text   COLLATE "C" NOT NULL,
    "table"           text   COLLATE "C" NOT NULL,
    from_position     pg_lsn NOT NULL,
    from_time         timestamptz NOT NULL DEFAULT now(),
    until_position    pg_lsn,
    until_time        timestamptz,
    relation_id       bigint NOT NULL,
    membership        text   NOT NULL,
    PRIMARY KEY (database, schema, "table", from_position)
);
-- A table is covered at most once at a time.
CREATE UNIQUE INDEX coverage_open_idx ON {{schema}}.coverage (database, relation_id) WHERE until_position IS NULL;

COMMENT ON COLUMN {{schema}}.coverage.membership IS 'The table''s entries in pg_publication_rel: others mean that it was out of the publication meanwhile.';

-- Which instance set up last: what is covered is said by that one alone. Another has to
-- take the lock of hold_lock first, and then this place.
CREATE TABLE {{schema}}.setup_holders (
    database text COLLATE "C" PRIMARY KEY,
    holder   text NOT NULL
);

-- The replica identity that a table, or a partition, had before it was tracked:
-- d, n, or i: and the index name. Noted before it is changed, so that Uninstall
-- can put it back whatever happens in between.
CREATE TABLE {{schema}}.replica_identities (
    database    text   COLLATE "C" NOT NULL,
    relation_id bigint NOT NULL,
    identity    text   NOT NULL,
    PRIMARY KEY (database, relation_id)
);


-- Holes in the history that can never be filled: the slot was lost, dropped or
-- recreated. What is said of the past across one may be wrong.
CREATE TABLE {{schema}}.gaps (
    database      text   COLLATE "C" NOT NULL,
    from_position pg_lsn NOT NULL,
    to_position   pg_lsn NOT NULL,
    from_time     timestamptz,
    to_time       timestamptz NOT NULL DEFAULT now(),
    reason        text   NOT NULL,
    PRIMARY KEY (database, from_position)
);

-- Messages of Sync and of moments: who wrote one into the source's WAL knows by its nonce
-- that the store holds everything before it, and where it stands. Kept for some minutes.
CREATE TABLE {{schema}}.barriers (
    database   text        COLLATE "C" NOT NULL,
    nonce      text        COLLATE "C" NOT NULL,
    position   pg_lsn      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (database, nonce)
);
CREATE INDEX barriers_created_idx ON {{schema}}.barriers (created_at);

-- Up to which time retention has dropped history.
CREATE TABLE {{schema}}.retention (
    partition  text        PRIMARY KEY,
    from_time  timestamptz NOT NULL,
    until_time timestamptz NOT NULL,
    dropped_at timestamptz NOT NULL DEFAULT now(),
    dropped_by text        NOT NULL DEFAULT session_user
);

-- How young history has to be for drop_before to leave it alone, whoever asks. No row:
-- as young as the caller says. NULL: nothing is dropped.
CREATE TABLE {{schema}}.retention_limit (
    singleton boolean  PRIMARY KEY DEFAULT true CHECK (singleton),
    keep      interval
);

-- advance moves the checkpoint by compare-and-set or raises, which aborts the
-- transaction that holds the rows: AU001 when another holder has taken over.
CREATE FUNCTION {{schema}}.advance(
    of_database text, of_epoch bigint, from_position pg_lsn, to_position pg_lsn,
    through_time timestamptz, of_changes bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{schema}}.checkpoints c
    SET position = to_position,
        committed_at = greatest(c.committed_at, through_time),
        changes = c.changes + of_changes,
        updated_at = now()
    WHERE c.database = of_database
      AND c.epoch = of_epoch
      AND c.position = from_position
      AND c.position <= to_position;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'checkpoint of database "%" is not at % in epoch %', of_database, from_position, of_epoch
            USING ERRCODE = 'AU001', HINT = 'Another instance of the program has taken over the slot.';
    END IF;
END $$;

-- require_unsealed raises AU002 where the checkpoint has passed a position: what is
-- stored there is history, which no function below changes.
CREATE FUNCTION {{schema}}.require_unsealed(of_database text, of_position pg_lsn)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM {{schema}}.checkpoints c WHERE c.database = of_database AND c.position <= of_position) THEN
        RAISE EXCEPTION 'history of database "%" at % is sealed: the checkpoint has passed it', of_database, of_position
            USING ERRCODE = 'AU002';
    END IF;
END $$;

-- restamp gives the rows of an open transaction that have no context the context that
-- came after them.
CREATE FUNCTION {{schema}}.restamp(
    of_database text, of_position pg_lsn, through_sequence integer, of_time timestamptz, of_context jsonb, of_defect text)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_unsealed(of_database, of_position);
    UPDATE {{schema}}.changes c
    SET context = of_context, defect = nullif(concat_ws('; ', c.defect, of_defect), '')
    WHERE c.database = of_database AND c.position = of_position AND c.sequence <= through_sequence AND c.committed_at = of_time
      AND c.context IS NULL;
END $$;

-- take_over gives a checkpoint to its next holder: earlier writers are fenced.
CREATE FUNCTION {{schema}}.take_over(of_database text)
RETURNS TABLE (at pg_lsn, held bigint, through_time timestamptz, pid integer, started timestamptz)
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{schema}}.checkpoints
    SET epoch = epoch + 1, updated_at = now()
    WHERE database = of_database
    RETURNING position, epoch, committed_at, writer_pid, writer_start;
$$;

-- name_writer notes the session of the writer in office, so that whoever takes over
-- can end it.
CREATE FUNCTION {{schema}}.name_writer(of_database text, of_epoch bigint, pid integer, started timestamptz)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{schema}}.checkpoints
    SET writer_pid = pid, writer_start = started
    WHERE database = of_database AND epoch = of_epoch;
$$;

-- set_timeline notes that the source goes on on another timeline, which may have left the
-- one before anywhere behind the checkpoint.
CREATE FUNCTION {{schema}}.set_timeline(of_database text, to_timeline integer)
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE {{schema}}.checkpoints
    SET timeline = to_timeline, verified = least(verified, position), updated_at = now()
    WHERE database = of_database;
$$;

-- take_setup makes an instance, which has the lock of hold_lock, the one that set up last.
-- It waits for what the one before is just writing.
CREATE FUNCTION {{schema}}.take_setup(of_database text, by_holder text)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO {{schema}}.setup_holders AS h (database, holder)
    VALUES (of_database, by_holder)
    ON CONFLICT (database) DO UPDATE SET holder = excluded.holder;
END $$;

-- require_setup fails unless an instance is the one that set up last, and keeps others
-- from becoming it until the transaction ends.
CREATE FUNCTION {{schema}}.require_setup(of_database text, by_holder text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM {{schema}}.setup_holders WHERE database = of_database AND holder = by_holder FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'another instance has set up "%" meanwhile', of_database USING ERRCODE = 'AU003';
    END IF;
END $$;

-- set_verified notes that all covered tables were in the publication at a position.
CREATE FUNCTION {{schema}}.set_verified(of_database text, by_holder text, at_position pg_lsn)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_setup(of_database, by_holder);
    UPDATE {{schema}}.checkpoints
    SET verified = greatest(verified, at_position)
    WHERE database = of_database;
END $$;

-- record_gap records a hole from the checkpoint on and moves the checkpoint behind it. It
-- reports false if the checkpoint is somewhere else.
CREATE FUNCTION {{schema}}.record_gap(
    of_database text, from_position pg_lsn, to_position pg_lsn, to_slot text, at_time timestamptz, because text)
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE {{schema}}.checkpoints c
    SET position = record_gap.to_position, epoch = c.epoch + 1, slot = to_slot, updated_at = now()
    WHERE c.database = of_database AND c.position = record_gap.from_position AND c.position <= record_gap.to_position;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO {{schema}}.gaps AS g (database, from_position, to_position, from_time, to_time, reason)
    SELECT of_database, record_gap.from_position, record_gap.to_position, greatest(c.committed_at, c.created_at), at_time, because
    FROM {{schema}}.checkpoints c
    WHERE c.database = of_database
    ON CONFLICT ON CONSTRAINT gaps_pkey DO UPDATE SET to_position = greatest(g.to_position, excluded.to_position), to_time = greatest(g.to_time, excluded.to_time);
    RETURN true;
END $$;

-- record_structure records a version of a table at a position that is not sealed.
CREATE FUNCTION {{schema}}.record_structure(
    of_database text, of_relation bigint, at_position pg_lsn, at_sequence integer, behind pg_lsn, of_schema text, of_table text, of_kind text,
    root bigint, leaves bigint[], of_columns jsonb, key text[], is_dropped boolean, is_guessed boolean, is_attached boolean, constraint_id bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_unsealed(of_database, at_position);
    DELETE FROM {{schema}}.relations r
    WHERE r.database = of_database AND r.relation_id = of_relation AND r.position = at_position AND r.sequence = at_sequence;
    INSERT INTO {{schema}}.relations (database, relation_id, position, sequence, after, schema, "table", kind, root_id, parts, columns, primary_key, dropped, guessed, attached, key_constraint)
    VALUES (of_database, of_relation, at_position, at_sequence, behind, of_schema, of_table, of_kind, root, leaves, of_columns, key, is_dropped, is_guessed, is_attached, constraint_id);
END $$;

-- note_time records the running maximum of commit times at a position.
CREATE FUNCTION {{schema}}.note_time(of_database text, at_position pg_lsn, through_time timestamptz)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_unsealed(of_database, at_position);
    INSERT INTO {{schema}}.commit_times (database, position, committed_at)
    VALUES (of_database, at_position, through_time)
    ON CONFLICT DO NOTHING;
END $$;

-- note_jump records that the source's clock was ahead for a while.
CREATE FUNCTION {{schema}}.note_jump(of_database text, was_ahead timestamptz, went_back timestamptz, at_position pg_lsn)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_unsealed(of_database, at_position);
    INSERT INTO {{schema}}.clock_jumps AS j (database, ahead_at, back_to, position)
    VALUES (of_database, was_ahead, went_back, at_position)
    ON CONFLICT (database, ahead_at) DO UPDATE SET back_to = least(j.back_to, excluded.back_to);
END $$;

-- sweep_barriers removes the places of messages that nobody waits for any more.
CREATE FUNCTION {{schema}}.sweep_barriers()
RETURNS void
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
    DELETE FROM {{schema}}.barriers WHERE created_at < now() - interval '{{barrier_age}} seconds';
$$;

-- open_coverage records that a table is tracked from a position on.
CREATE FUNCTION {{schema}}.open_coverage(
    of_database text, by_holder text, of_schema text, of_table text, since pg_lsn, at_time timestamptz, of_relation bigint, entries text)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_setup(of_database, by_holder);
    INSERT INTO {{schema}}.coverage (database, schema, "table", from_position, from_time, relation_id, membership)
    VALUES (of_database, of_schema, of_table, since, at_time, of_relation, entries)
    ON CONFLICT DO NOTHING;
END $$;

-- close_coverage ends the open coverage of a table.
CREATE FUNCTION {{schema}}.close_coverage(of_database text, by_holder text, of_relation bigint, until pg_lsn, at_time timestamptz)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_setup(of_database, by_holder);
    UPDATE {{schema}}.coverage
    SET until_position = greatest(until, from_position), until_time = at_time
    WHERE database = of_database AND relation_id = of_relation AND until_position IS NULL;
END $$;

-- set_membership notes that a covered table has other entries in the publication.
CREATE FUNCTION {{schema}}.set_membership(of_database text, by_holder text, of_relation bigint, entries text)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_setup(of_database, by_holder);
    UPDATE {{schema}}.coverage
    SET membership = entries
    WHERE database = of_database AND relation_id = of_relation AND until_position IS NULL;
END $$;

-- forget_identity removes the note of a replica identity that was put back.
CREATE FUNCTION {{schema}}.forget_identity(of_database text, by_holder text, of_relation bigint)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM {{schema}}.require_setup(of_database, by_holder);
    DELETE FROM {{schema}}.replica_identities WHERE database = of_database AND relation_id = of_relation;
END $$;

-- hold_lock takes, until the end of the transaction, the lock under which one instance
-- sets up or drops history.
CREATE FUNCTION {{schema}}.hold_lock(purpose text)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF purpose = 'setup' THEN
        LOCK TABLE {{schema}}.schema_migrations IN SHARE ROW EXCLUSIVE MODE;
    ELSIF purpose = 'retention' THEN
        LOCK TABLE {{schema}}.retention IN SHARE UPDATE EXCLUSIVE MODE;
    ELSE
        RAISE EXCEPTION 'there is no lock for "%"', purpose USING ERRCODE = '22023';
    END IF;
END $$;

-- analyze_next analyses a partition of some size that has no statistics yet. It returns
-- NULL if there is none.
CREATE FUNCTION {{schema}}.analyze_next(from_bytes bigint)
RETURNS text
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    unknown regclass;
BEGIN
    SELECT i.inhrelid::regclass INTO unknown
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = ({{schema_literal}} || '.changes')::regclass AND c.reltuples < 0 AND pg_relation_size(c.oid) >= from_bytes
    ORDER BY i.inhrelid
    LIMIT 1;
    IF FOUND THEN
        EXECUTE format('ANALYZE %s', unknown);
    END IF;
    RETURN unknown::text;
END $$;

-- protect takes every right but reading from everyone but the owner, whatever
-- default privileges the schema may have been given.
CREATE FUNCTION {{schema}}.protect(target regclass)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    grantee oid;
BEGIN
    FOR grantee IN
        SELECT DISTINCT a.grantee
        FROM pg_class c, LATERAL aclexplode(c.relacl) a
        WHERE c.oid = target AND a.grantee <> c.relowner
    LOOP
        EXECUTE format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON %s FROM %s', target,
            CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END);
    END LOOP;
END $$;

-- complete fills in what the stream left out of a change because the table was
-- not REPLICA IDENTITY FULL when it was made: from the last stored image of the
-- same row. If there is none, the defect says what is missing.
CREATE FUNCTION {{schema}}.complete(
    of_database text, of_position pg_lsn, of_sequence integer, of_time timestamptz, missing text[])
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    change  {{schema}}.changes;
    known_from pg_lsn;
    last    jsonb;
    filled  jsonb;
    unknown text[];
BEGIN
    PERFORM {{schema}}.require_unsealed(of_database, of_position);
    SELECT * INTO STRICT change
    FROM {{schema}}.changes c
    WHERE c.position = of_position AND c.sequence = of_sequence AND c.database = of_database AND c.committed_at = of_time;

    -- What lies before a gap, or before the table's stay in coverage began, may have
    -- changed since without our knowing.
    SELECT greatest(
        coalesce((SELECT max(g.to_position) FROM {{schema}}.gaps g WHERE g.database = of_database AND g.to_position <= of_position), '0/0'),
        coalesce((SELECT max(v.from_position) FROM {{schema}}.coverage v
            WHERE v.database = of_database AND v.schema = change.schema AND v."table" = change."table" AND v.from_position <= of_position), '0/0'),
        -- Under another key the same text was another row.
        coalesce((SELECT max(v.position)
            FROM (SELECT r.position, r.primary_key IS DISTINCT FROM lag(r.primary_key, 1, r.primary_key) OVER (PARTITION BY r.relation_id ORDER BY r.position, r.sequence) AS rekeyed
                FROM {{schema}}.relations r
                WHERE r.database = of_database AND r.schema = change.schema AND r."table" = change."table" AND r.position <= of_position) v
            WHERE v.rekeyed), '0/0'))
    INTO known_from;

    SELECT c.after INTO last
    FROM {{schema}}.changes c
    WHERE c."table" = change."table"
      AND c.primary_key = coalesce(change.previous_key, change.primary_key)
      AND c.schema = change.schema
      AND c.database = change.database
      AND (c.position, c.sequence) < (of_position, of_sequence)
      AND c.position >= known_from
      AND c.operation IN ('CREATE', 'UPDATE')
    ORDER BY c.position DESC, c.sequence DESC
    LIMIT 1;

    filled := change.after;
    IF last IS NOT NULL THEN
        SELECT change.after || coalesce(jsonb_object_agg(name, last -> name), '{}')
        INTO filled
        FROM unnest(missing) name
        WHERE last ? name;
    END IF;
    SELECT array_agg(name) INTO unknown FROM unnest(missing) name WHERE NOT filled ? name;

    UPDATE {{schema}}.changes c
    SET before = coalesce(last || c.before, c.before),
        after = filled,
        defect = nullif(concat_ws('; ', c.defect,
            CASE WHEN last IS NULL THEN 'before: incomplete, the table was not REPLICA IDENTITY FULL' END,
            CASE WHEN unknown IS NOT NULL THEN 'after: unchanged values not in the stream: ' || array_to_string(unknown, ', ') END), '')
    WHERE c.position = of_position AND c.sequence = of_sequence AND c.database = of_database AND c.committed_at = of_time;
END $$;

-- ensure_partition makes the partition of a month, in UTC. It attaches a table
-- made beside the others, which does not lock out the readers of the history as
-- CREATE TABLE ... PARTITION OF would. A name that something else has, such as a
-- partition that was detached, gets a number.
CREATE FUNCTION {{schema}}.ensure_partition(of_time timestamptz)
RETURNS void
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET timezone = 'UTC'
SET lock_timeout = '5s'
AS $$
DECLARE
    from_time timestamptz := date_trunc('month', of_time);
    until_time timestamptz := date_trunc('month', of_time) + interval '1 month';
    plain     text := 'changes_' || to_char(of_time, 'YYYY_MM');
    name      text := plain;
    number    integer := 1;
BEGIN
    IF EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
               WHERE i.inhparent = ({{schema_literal}} || '.changes')::regclass AND c.relname ~ ('^' || plain || '(_[0-9]+)?$')) THEN
        RETURN;
    END IF;
    -- What ATTACH takes in the end. Nobody waits for it but another who makes one.
    LOCK TABLE {{schema}}.changes IN SHARE UPDATE EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
               WHERE i.inhparent = ({{schema_literal}} || '.changes')::regclass AND c.relname ~ ('^' || plain || '(_[0-9]+)?$')) THEN
        RETURN;
    END IF;
    WHILE EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = {{schema_literal}}::regnamespace AND c.relname = name)
       OR EXISTS (SELECT FROM pg_type t WHERE t.typnamespace = {{schema_literal}}::regnamespace AND t.typname = name)
       OR EXISTS (SELECT FROM {{schema}}.retention r WHERE r.partition = name AND name <> plain) LOOP
        number := number + 1;
        IF number > 1000 THEN
            RAISE EXCEPTION 'the names of the partition of % are taken by something else', plain;
        END IF;
        name := plain || '_' || number;
    END LOOP;
    EXECUTE format('CREATE TABLE %1$s.%2$I (LIKE %1$s.changes INCLUDING DEFAULTS INCLUDING STORAGE INCLUDING COMMENTS)', {{schema_literal}}, name);
    EXECUTE format('ALTER TABLE %1$s.changes ATTACH PARTITION %1$s.%2$I FOR VALUES FROM (%3$L) TO (%4$L)', {{schema_literal}}, name, from_time, until_time);
    PERFORM {{schema}}.protect(format('%s.%I', {{schema_literal}}, name)::regclass);
END $$;

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
