-- What the log knows beside the images: its runs, the tables it follows, and who writes on behalf of a run.
-- Run with search_path set to the log's schema, then pg_temp; each function keeps that path as its own.

CREATE TABLE _runs (
    id bigint PRIMARY KEY,
    began timestamptz NOT NULL DEFAULT now(),
    closed boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE _runs IS 'Test runs that may have written something; one whose advisory lock is free is dead';

CREATE SEQUENCE _steps;
CREATE SEQUENCE _ended;  -- the step at which a run ended last

CREATE TABLE _undos (
    run bigint NOT NULL,
    step bigint NOT NULL DEFAULT nextval('_steps'),
    xact xid8 NOT NULL DEFAULT pg_current_xact_id(),
    known bigint[] NOT NULL DEFAULT '{}',
    inherited xid[] NOT NULL DEFAULT '{}',  -- what marks rows that undos of runs restored which handed keys over to this
    givers xid[] NOT NULL DEFAULT '{}',     -- the transactions of those runs, by which the keys are known
    PRIMARY KEY (run, step)
);
CREATE INDEX _undos_xact ON _undos (xact);
COMMENT ON TABLE _undos IS
    'Undos, which write on behalf of a run: the xmin of a row here is the xmin of the rows that undo restored';

CREATE TABLE _tables (
    rel oid PRIMARY KEY,
    name text NOT NULL,            -- quoted, with its schema
    log text NOT NULL,             -- the table of its images, quoted, with its schema
    plan text NOT NULL,            -- what an undo intends with each key, quoted, with its schema
    columns text[] NOT NULL,       -- those that can be written
    keys text[] NOT NULL,          -- the primary key's columns
    equals text[] NOT NULL,        -- their operators
    fixed text[] NOT NULL,         -- GENERATED ALWAYS AS IDENTITY: an UPDATE cannot set them
    attributes text NOT NULL,      -- the columns with their types
    shape text NOT NULL,           -- a digest of what the functions were made from
    signs text NOT NULL,           -- what tells quickly that the shape is still the same; when it differs, it may be
    referenced boolean NOT NULL,   -- a foreign key points here
    watched boolean NOT NULL,      -- by triggers; else the tracker writes the log
    plain boolean NOT NULL,        -- watched, and every foreign key that would cascade from here leads to such a table
    rank integer                   -- tables that refer to others have a lower one; NULL in a circle
);

-- What has to hold between the tables when an undo is over: functions that take out of its plan what would break it.
CREATE TABLE _checks (name text PRIMARY KEY, rel oid NOT NULL, other oid NOT NULL);

-- What is asked often is written in plpgsql, which plans a query once in a session; PostgreSQL before 18 plans an SQL
-- function in each call.
CREATE OR REPLACE FUNCTION _lease(run bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN hashtextextended('helios test run in ' || current_schema(), run);
END
$$;

CREATE OR REPLACE FUNCTION _writers(run bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN hashtextextended('helios writers in ' || current_schema(), run);
END
$$;

-- Held by the session of a run for as long as the run may write, so that writers need not ask _runs, which costs a new
-- connection a query more.
CREATE OR REPLACE FUNCTION _opening(run bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN hashtextextended('helios open run in ' || current_schema(), run);
END
$$;

CREATE OR REPLACE FUNCTION begin_run(run bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    -- The lease first: a run that others can see is never without it.
    IF NOT pg_try_advisory_lock(_lease(run)) THEN
        RAISE lock_not_available USING MESSAGE = format('test run %s is alive in another session', run);
    END IF;
    INSERT INTO _runs (id) VALUES (run);
    PERFORM pg_try_advisory_lock(_opening(run));
END
$$;

CREATE OR REPLACE FUNCTION mark_run(run bigint, patience integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('lock_timeout', patience::text, true);
    -- Waits until the run's open transactions are over, so that none lies on both sides of the mark.
    PERFORM pg_advisory_xact_lock(_writers(run));
    RETURN nextval('_steps');
END
$$;

-- Whoever still writes with the run's label is waited for. A run that has left something stays registered.
CREATE OR REPLACE FUNCTION close_run(run bigint, patience integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM set_config('lock_timeout', patience::text, true);
    PERFORM pg_advisory_xact_lock(_writers(run)), setval('_ended', nextval('_steps'));
    IF NOT EXISTS (SELECT FROM _touched(ARRAY[run], 0)) THEN
        DELETE FROM _runs WHERE id = run;
        DELETE FROM _undos AS u WHERE u.run = close_run.run;
    END IF;
    PERFORM _give_back(_opening(run)), _give_back(_lease(run));
END
$$;

CREATE OR REPLACE FUNCTION _held_here(key bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND objsubid = 1
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                   AND (classid::bigint << 32) + objid::bigint = key)
$$;

-- However often it was taken: a session may take its own lock twice, and keeps it when what took it is rolled back.
CREATE OR REPLACE FUNCTION _give_back(key bigint) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    WHILE _held_here(key) LOOP
        EXIT WHEN NOT pg_advisory_unlock(key);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION dead_runs() RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    run bigint;
BEGIN
    FOR run IN SELECT id FROM _runs ORDER BY began, id LOOP
        -- A session may take its own lock twice, so one that holds a lease is not asked.
        CONTINUE WHEN _held_here(_lease(run));
        IF pg_try_advisory_lock(_lease(run)) THEN
            PERFORM pg_advisory_unlock(_lease(run));
            RETURN NEXT run;
        END IF;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _attributes_of(table_oid oid) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT string_agg(concat_ws(' ', attname, atttypid, atttypmod, attgenerated, attidentity), ',' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = table_oid AND attnum > 0 AND NOT attisdropped
$$;

-- The columns of a table, told by one number.
CREATE OR REPLACE FUNCTION _columns_number(table_oid oid) RETURNS numeric
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN (SELECT sum(hashtextextended(concat_ws(' ', attname, atttypid, atttypmod, attgenerated, attidentity), attnum))
            FROM pg_attribute WHERE attrelid = table_oid AND attnum > 0 AND NOT attisdropped);
END
$$;

-- Columns, triggers (foreign keys are some of them, on both sides) and unique indexes, told by numbers.
CREATE OR REPLACE FUNCTION _signs_of(table_oid oid) RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    RETURN concat_ws(' ', _columns_number(table_oid),
                     (SELECT sum(t.oid::bigint) FROM pg_trigger AS t WHERE tgrelid = table_oid),
                     (SELECT sum(indexrelid::bigint) FROM pg_index WHERE indrelid = table_oid));
END
$$;

-- The guard of a table has found no open run of the label, or the table not as it was: which of them?
CREATE OR REPLACE FUNCTION _suspect(label text, root oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM FROM _runs WHERE id = label::bigint AND NOT closed;
    IF NOT FOUND THEN
        RAISE object_not_in_prerequisite_state USING
            MESSAGE = format('test run %s is over, or did not begin here: a write to %s is refused', label,
                             root::regclass),
            HINT = 'End this process, or unset HELIOS_TEST_RUN and helios.test_run in PGOPTIONS.';
    END IF;
    -- Only new columns or types ask for new functions.
    IF (SELECT attributes FROM _tables WHERE rel = root) <> _attributes_of(root) THEN
        PERFORM _follow(root);
    END IF;
END
$$;

-- Only an undo can have written a row of this transaction: a writer that sets helios.undoing proves nothing by it.
CREATE OR REPLACE FUNCTION _undoing() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN EXISTS (SELECT FROM _undos WHERE xact = pg_current_xact_id_if_assigned());
END
$$;

-- What triggers of the product, or cascades, would write because of an undo: not done, because the undo itself restores
-- each row, and a row that they inserted would sit on the key of one that is to come back. Where a row would be changed
-- and the undo went the short way, it learns by the error that it has to go the long one.
CREATE OR REPLACE FUNCTION _hold() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT _undoing() THEN
        RETURN coalesce(NEW, OLD);
    END IF;
    IF TG_OP <> 'INSERT' AND current_setting('helios.undoing') = 'short' THEN
        RAISE EXCEPTION USING ERRCODE = 'HU001', MESSAGE = format('%s is changed by a trigger', TG_RELID::regclass);
    END IF;
    RETURN NULL;
END
$$;

-- The ids of the transactions that wrote on behalf of a run, as far as its undos since a mark know them.
CREATE OR REPLACE FUNCTION transactions_of(run bigint, since bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT DISTINCT unnest(u.known || u.xact::text::bigint || _full(ARRAY[u.xmin]))
    FROM _undos AS u WHERE u.run = transactions_of.run AND u.step > since
$$;
