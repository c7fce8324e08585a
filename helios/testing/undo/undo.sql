-- The undo itself. Run with search_path set to the log's schema, then pg_temp; each function keeps that path as its own.
--
-- Errors of its own: HU001 says that somebody changed a row meanwhile, or that the short way does not do: it is tried
-- again, the long way. HU002, that a trigger meddles which nothing holds back: once more, and its rows are spared.

CREATE TYPE _change AS (rel text, what text, count bigint, why text);
CREATE TYPE _entries AS (rel oid, kind "char", entries bigint, own xid[]);

-- Give what was undone, a row for each table and kind: deleted, restored, or kept with the reason.
CREATE OR REPLACE FUNCTION undo_runs(runs bigint[], since bigint, patience integer) RETURNS SETOF _change
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET enable_mergejoin TO off SET row_security TO off
SET work_mem TO '64MB' SET plan_cache_mode TO force_generic_plan SET jit TO off AS $$
DECLARE
    written _entries[]; own xid[]; changes _change[]; short record; failed integer := 0; many boolean; most boolean;
    changed boolean; spare boolean := false;
BEGIN
    -- Not waiting for the disk is safe: what a crash forgets of an undo, it forgets together with the log's changes.
    PERFORM set_config('synchronous_commit', 'off', true), set_config('lock_timeout', patience::text, true),
            set_config('enable_nestloop', 'on', true), set_config('helios.test_run', '', true),
            set_config('helios.undoing', 'short', true);
    PERFORM _enter(runs);
    written := ARRAY(SELECT ROW(t.rel, t.kind, t.entries, t.own)::_entries FROM _touched(runs, since) AS t);
    own := ARRAY(SELECT unnest(w.own) FROM unnest(written) AS w
                 UNION SELECT unnest(u.xmin || u.inherited) FROM _undos AS u
                 WHERE u.run = ANY (runs) AND u.step > since);
    SELECT coalesce(sum(w.entries), 0) > 1000, bool_or(k.signs <> _signs_of(k.rel)) INTO many, changed
    FROM unnest(written) AS w JOIN _tables AS k USING (rel);
    most := many AND _are_most(written);
    IF most THEN
        PERFORM set_config('enable_nestloop', 'off', true);
    END IF;
    IF changed THEN
        PERFORM _renew(ARRAY(SELECT w.rel FROM unnest(written) AS w));
    END IF;
    LOOP
        BEGIN
            -- In this very subtransaction: the xmin of this row marks the rows that are restored below.
            INSERT INTO _undos (run, known) SELECT each, _full(own) FROM unnest(runs) AS each;
            IF failed > 1 THEN
                PERFORM _let_nobody_write(ARRAY(SELECT w.rel FROM unnest(written) AS w));
            END IF;
            IF failed = 0 THEN
                short := _short_way(runs, since, _not_inherited(own, runs), many, most, written);
                changes := short.changes;
            ELSE
                changes := '{}';
                short.left_to := ARRAY(SELECT w.rel FROM unnest(written) AS w);
            END IF;
            IF short.left_to <> '{}' THEN
                changes := changes || _long_way(runs, since, own, many, short.left_to, spare);
            END IF;
            EXIT;
        EXCEPTION WHEN SQLSTATE 'HU001' OR foreign_key_violation OR unique_violation THEN
            failed := failed + 1;
            IF failed > 3 THEN
                RAISE;
            END IF;
        WHEN SQLSTATE 'HU002' THEN
            IF spare THEN
                RAISE;
            END IF;
            spare := true;
            failed := greatest(failed, 1);
        END;
    END LOOP;
    IF since = 0 THEN
        UPDATE _runs SET closed = true WHERE id = ANY (runs) AND NOT closed;
        PERFORM _give_back(_opening(each)) FROM unnest(runs) AS each;  -- writers wait for this undo, and ask _runs then
    END IF;
    PERFORM set_config('helios.undoing', '', true);
    RETURN QUERY SELECT * FROM unnest(changes) AS c WHERE c.count > 0;
END
$$;

-- For as long as this attempt takes: whoever changes rows at each attempt would have the undo fail in the end.
CREATE OR REPLACE FUNCTION _let_nobody_write(touched oid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT k.name FROM _tables AS k WHERE rel = ANY (touched) ORDER BY rel LOOP
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', name);
    END LOOP;
END
$$;

-- One undo at a time, of runs that are dead or this session's own; their open transactions are over, new ones wait.
CREATE OR REPLACE FUNCTION _enter(runs bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    run bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'an undo needs READ COMMITTED, which sees what others have just committed';
    END IF;
    PERFORM pg_advisory_xact_lock(_lease(0));
    FOREACH run IN ARRAY runs LOOP
        IF NOT pg_try_advisory_xact_lock(_lease(run)) THEN
            RAISE object_in_use USING MESSAGE = format('test run %s is alive in another session', run);
        END IF;
        PERFORM pg_advisory_xact_lock(_writers(run));
    END LOOP;
END
$$;

-- Transaction ids with the epoch that pg_xact_status() and its like want.
CREATE OR REPLACE FUNCTION _full(ids xid[]) RETURNS bigint[]
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    now CONSTANT bigint := pg_current_xact_id()::text::bigint;
    epoch CONSTANT bigint := now - now % 4294967296;
BEGIN
    RETURN ARRAY(SELECT epoch + low - CASE WHEN epoch + low > now THEN 4294967296 ELSE 0 END
                 FROM (SELECT id::text::bigint FROM unnest(ids) AS id) AS each (low));
END
$$;

-- A table that changed since its functions were made gets new ones.
CREATE OR REPLACE FUNCTION _renew(touched oid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed oid[];
BEGIN
    changed := ARRAY(SELECT rel FROM _tables WHERE rel = ANY (touched) AND shape <> _shape_of(rel));
    IF changed <> '{}' THEN
        PERFORM _follow(each), _watch(each) FROM unnest(changed) AS each;
        PERFORM _finish();
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _run_step(name text, rel oid, runs bigint[], since bigint, own xid[], many boolean)
RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    count bigint;
BEGIN
    EXECUTE format('SELECT %I($1, $2, $3, $4)', concat(name, rel)) INTO count USING runs, since, own, many;
    RETURN count;
END
$$;

-- Whether the entries are a large part of the rows of their tables, so that reading these whole is the quicker way: one
-- row in twenty. The statistics know nothing of rows that a test has just written, the size on disk does.
CREATE OR REPLACE FUNCTION _are_most(written _entries[]) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    row_size CONSTANT integer := 100;  -- bytes, about
BEGIN
    RETURN (SELECT sum(w.entries) * 20 > sum(s.size) / row_size FROM unnest(written) AS w, LATERAL (
                SELECT sum(pg_relation_size(relid)) AS size FROM (
                    SELECT w.rel::regclass AS relid UNION SELECT relid FROM pg_partition_tree(w.rel)) AS part) AS s);
END
$$;

-- Tables into which the runs only inserted: their rows are deleted, children first. Those in which they only updated, no
-- row twice: each goes back to its image. Gives the tables that it left, because somebody else has touched their rows, or
-- a foreign key or trigger would carry the deletion on.
CREATE OR REPLACE FUNCTION _short_way(
    runs bigint[], since bigint, own xid[], many boolean, most boolean, written _entries[],
    OUT changes _change[], OUT left_to oid[])
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t record;
    done bigint;
BEGIN
    changes := '{}';
    left_to := '{}';
    FOR t IN
        SELECT w.rel, w.entries, w.kind, w.own, k.name, k.rank, k.plain, k.log,
               EXISTS (SELECT FROM _runs WHERE id <> ALL (runs)) AS others
        FROM unnest(written) AS w JOIN _tables AS k USING (rel) ORDER BY k.rank, k.rel
    LOOP
        -- A table whose children were left is left as well.
        IF coalesce(t.kind, 'D') = 'D' OR NOT t.plain OR t.rank IS NULL OR (left_to <> '{}' AND t.rank > 0)
           OR (t.others AND _shared(t.log, runs)) THEN
            left_to := left_to || t.rel;
            CONTINUE;
        END IF;
        BEGIN
            IF t.kind = 'U' THEN
                -- In this subtransaction too: what it restores carries its xmin.
                INSERT INTO _undos (run) SELECT each FROM unnest(runs) AS each;
                done := _run_step('_revert_', t.rel, runs, since, t.own, many);
            ELSIF most THEN
                done := _run_step('_withdraw_all_', t.rel, runs, since, t.own, many);
            ELSE
                done := _run_step('_withdraw_', t.rel, runs, since, own, many);
            END IF;
            IF done <> t.entries THEN
                RAISE EXCEPTION USING ERRCODE = 'HU001', MESSAGE = t.name || ' was changed by somebody else';
            END IF;
            SET CONSTRAINTS ALL IMMEDIATE;
            IF since > 0 AND t.kind = 'U' THEN
                PERFORM _run_step('_stood_reverted_', t.rel, runs, since, own, many);
            END IF;
            IF many THEN
                PERFORM _empty(t.rel, runs, since, own, many);
            ELSE
                PERFORM _run_step('_forget_', t.rel, runs, since, own, many);
            END IF;
            changes := changes || ROW(t.name, CASE t.kind WHEN 'U' THEN 'restored' ELSE 'deleted' END, t.entries, '')::_change;
        EXCEPTION WHEN SQLSTATE 'HU001' OR foreign_key_violation OR unique_violation OR exclusion_violation THEN
            left_to := left_to || t.rel;
        END;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _shared(log text, runs bigint[]) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    found boolean;
BEGIN
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE helios_run <> ALL ($1))', log) INTO found USING runs;
    RETURN found;
END
$$;

-- TRUNCATE makes new files and waits for the disk, which costs more than to delete some ten thousand rows.
CREATE OR REPLACE FUNCTION _is_long(name text) RETURNS boolean
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RETURN pg_relation_size(name::regclass) > 4 * 1024 * 1024;
END
$$;

-- Empty a log of these entries. A long one at once, where it holds nothing else and nobody is at it.
CREATE OR REPLACE FUNCTION _empty(table_oid oid, runs bigint[], since bigint, own xid[], many boolean) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    log CONSTANT text := (SELECT k.log FROM _tables AS k WHERE k.rel = table_oid);
    others boolean := true;
BEGIN
    IF many AND _is_long(log) THEN
        BEGIN
            EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', log);
            EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE helios_run <> ALL ($1) OR helios_step <= $2)', log)
            INTO others USING runs, since;
            IF NOT others THEN
                EXECUTE format('TRUNCATE %s', log);
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            NULL;
        END;
    END IF;
    IF others THEN
        PERFORM _run_step('_forget_', table_oid, runs, since, own, many);
    END IF;
END
$$;

-- The long way, for tables of any history: plan, take out of the plan what would harm others, act in one statement,
-- compare.
CREATE OR REPLACE FUNCTION _long_way(
    runs bigint[], since bigint, own xid[], many boolean, touched oid[], spare boolean)
RETURNS _change[] LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changes _change[];
    acts jsonb;
    before bigint[];
BEGIN
    PERFORM set_config('helios.undoing', 'long', true);
    PERFORM _make_plans(runs, since, own, many, touched);
    IF spare THEN
        PERFORM _spare(touched);
    END IF;
    PERFORM _settle(runs, since, own, many, touched);
    SELECT jsonb_object_agg(rel, _acts(plan)) INTO acts FROM _tables WHERE rel = ANY (touched);
    before := _sums();
    changes := _act(touched, own, acts) || _kept(touched);
    SET CONSTRAINTS ALL IMMEDIATE;
    IF before IS NOT NULL THEN
        PERFORM _refuse_more(before, touched, acts);
    END IF;
    PERFORM _compare(runs, since, own, many, touched, acts);
    PERFORM _forget(runs, since, own, many, touched, acts);
    RETURN changes;
END
$$;

CREATE OR REPLACE FUNCTION _make_plans(runs bigint[], since bigint, own xid[], many boolean, touched oid[])
RETURNS void LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    others CONSTANT boolean := EXISTS (SELECT FROM _runs WHERE id <> ALL (runs));
    alone CONSTANT xid[] := _not_inherited(own, runs);
BEGIN
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        IF others AND _run_step('_hand_over_', t.rel, runs, since, own, many) > 0 THEN
            PERFORM _bequeath(t.log, runs, own);
        END IF;
        PERFORM _run_step('_plan_', t.rel, runs, since, own, many);
        IF alone <> own THEN
            PERFORM _run_step('_unplan_', t.rel, runs, since, own, many),
                    _run_step('_plan_', t.rel, runs, since, alone, many);
        END IF;
        IF _acts(t.plan) ? 'K' THEN
            PERFORM _run_step('_equal_', t.rel, runs, since, own, many);
        END IF;
        IF others AND _run_step('_contested_', t.rel, runs, since, own, many) > 0 THEN
            RAISE EXCEPTION USING ERRCODE = 'HU001', MESSAGE = t.name || ' was changed by another run';
        END IF;
        IF t.referenced THEN
            PERFORM _run_step('_lock_', t.rel, runs, since, own, many);
        END IF;
    END LOOP;
END
$$;

-- Whoever was handed keys of these runs goes behind the rows of these keys, too, that their undos restored in between.
CREATE OR REPLACE FUNCTION _bequeath(log text, runs bigint[], own xid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format('INSERT INTO _undos (run, inherited, givers) SELECT l.helios_run, $3, $2 FROM ('
                   'SELECT DISTINCT helios_run FROM %s WHERE helios_run <> ALL ($1) AND helios_by = ANY ($2)) AS l', log)
    USING runs, own, ARRAY(SELECT DISTINCT unnest(u.xmin || u.inherited) FROM _undos AS u WHERE u.run = ANY (runs));
END
$$;

-- Without what other runs' undos restored: that is these runs' own in the keys only that were handed over.
CREATE OR REPLACE FUNCTION _not_inherited(own xid[], runs bigint[]) RETURNS xid[]
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM _undos AS u WHERE u.run = ANY (runs) AND u.inherited <> '{}') THEN
        RETURN own;
    END IF;
    RETURN ARRAY(SELECT unnest(own) EXCEPT (
        SELECT unnest(u.xmin || u.inherited) FROM _undos AS u WHERE u.run = ANY (runs) AND u.inherited <> '{}'
        EXCEPT SELECT u.xmin FROM _undos AS u WHERE u.run = ANY (runs) AND u.inherited = '{}'));
END
$$;

-- How many keys have which act: {"D": 3}.
CREATE OR REPLACE FUNCTION _acts(plan text) RETURNS jsonb
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    found jsonb;
BEGIN
    EXECUTE format('SELECT coalesce(jsonb_object_agg(helios_act, count), ''{}'') FROM '
                   '(SELECT helios_act, count(*) FROM %s GROUP BY 1) AS g', plan) INTO found;
    RETURN found;
END
$$;

-- Take out of the plan what would harm a row outside of it, until nothing changes: a key only ever goes from D, I, U
-- to X or K, and from X to K.
CREATE OR REPLACE FUNCTION _settle(runs bigint[], since bigint, own xid[], many boolean, touched oid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    name text;
    changed bigint;
BEGIN
    LOOP
        changed := 0;
        FOR name IN SELECT c.name FROM _checks AS c WHERE rel = ANY (touched) ORDER BY c.name LOOP
            changed := changed + _run_step(name, NULL, runs, since, own, many);
        END LOOP;
        EXIT WHEN changed = 0;
    END LOOP;
END
$$;

-- All tables in ONE statement: foreign keys are checked at its end, so no order among the tables, no deferrable
-- constraints and no superuser are needed. Rows that somebody changed meanwhile are not touched, and counted.
CREATE OR REPLACE FUNCTION _act(touched oid[], own xid[], all_acts jsonb) RETURNS _change[]
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    acts jsonb; i integer := 0; expected bigint[] := '{}'; found bigint[];
    removals text[] := '{}'; removed text[] := '{}'; restorals text[] := '{}'; counts text[] := '{}';
    unlike text[] := '{}'; updated text[] := '{}'; different bigint[];
    changes _change[] := '{}';
BEGIN
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        acts := all_acts -> t.rel::text;
        IF acts ?| '{D,X}' THEN
            i := i + 1;
            removals := removals || format('a%s AS (%s)', i, _removal(t));
            removed := removed || format('(SELECT count(*) FROM a%s)', i);
            expected := expected || coalesce((acts ->> 'D')::bigint, 0) + coalesce((acts ->> 'X')::bigint, 0);
            changes := changes || ROW(t.name, 'deleted', coalesce((acts ->> 'D')::bigint, 0), '')::_change;
        END IF;
    END LOOP;
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        acts := all_acts -> t.rel::text;
        IF acts ? 'U' THEN
            i := i + 1;
            restorals := restorals || format('a%s AS (%s)', i, _update(t));
            expected := expected || (acts ->> 'U')::bigint;
            updated := updated || t.name;
            unlike := unlike || format('(SELECT count(*) FROM a%s WHERE NOT exact)', i);
        END IF;
        IF acts ?| '{I,X}' THEN
            i := i + 1;
            restorals := restorals || format('a%s AS (%s)', i, _insert(t));
            expected := expected || coalesce((acts ->> 'I')::bigint, 0) + coalesce((acts ->> 'X')::bigint, 0);
        END IF;
        changes := changes || ROW(t.name, 'restored', coalesce((acts ->> 'U')::bigint, 0)
            + coalesce((acts ->> 'I')::bigint, 0) + coalesce((acts ->> 'X')::bigint, 0), '')::_change;
    END LOOP;
    IF i = 0 THEN
        RETURN changes;
    END IF;
    FOR n IN 1..i LOOP
        counts := counts || format('(SELECT count(*) FROM a%s)', n);
    END LOOP;
    EXECUTE format('WITH %s SELECT ARRAY[%s], ARRAY[%s]::bigint[]', array_to_string(
        removals || format('removed AS (SELECT %s AS rows)', coalesce(nullif(array_to_string(removed, ' + '), ''), '0'))
        || restorals, ', '), array_to_string(counts, ', '), array_to_string(unlike, ', '))
    INTO found, different USING own;
    IF found <> expected THEN
        RAISE EXCEPTION USING ERRCODE = 'HU001', MESSAGE = 'rows changed while they were undone, or a trigger withheld some';
    END IF;
    PERFORM _refuse_unlike(count, name) FROM unnest(different, updated) AS each (count, name) WHERE count > 0;
    RETURN changes;
END
$$;

CREATE OR REPLACE FUNCTION _removal(t _tables) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('DELETE FROM %s AS t USING %s AS p WHERE p.helios_act IN (''D'', ''X'') AND %s AND t.xmin = ANY ($1) '
                  'RETURNING 1', t.name, t.plan, _same(t.keys, t.equals, 't', 'p'))
$$;

CREATE OR REPLACE FUNCTION _update(t _tables) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('UPDATE %s AS t SET %s FROM %s AS p, %s AS l WHERE p.helios_act = ''U'' '
                  'AND l.helios_step = p.helios_image AND %s AND %s AND t.xmin = ANY ($1) '
                  'AND (SELECT rows FROM removed) >= 0 RETURNING record_image_eq(ROW(%s), ROW(%s)) AS exact', t.name,
                  _assignments(t), t.plan, t.log, _same(t.keys, t.equals, 't', 'p'), _same(t.keys, t.equals, 'l', 'p'),
                  _image(t.rel, 't'), _each(t.columns, 'l.%s'))
$$;

CREATE OR REPLACE FUNCTION _insert(t _tables) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM %s AS p JOIN %s AS l '
                  'ON l.helios_step = p.helios_image AND %s WHERE p.helios_act IN (''I'', ''X'') '
                  'AND (SELECT rows FROM removed) >= 0 RETURNING 1', t.name,
                  _each(t.columns, '%s'), _each(t.columns, 'l.%s'), t.plan, t.log, _same(t.keys, t.equals, 'l', 'p'))
$$;

CREATE OR REPLACE FUNCTION _kept(touched oid[]) RETURNS _change[]
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    found _change[];
    changes _change[] := '{}';
BEGIN
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        EXECUTE format('SELECT array_agg(ROW(%L, ''kept'', count, helios_why)::_change) FROM (SELECT helios_why, count(*) '
                       'FROM %s WHERE helios_act = ''K'' AND NOT helios_told GROUP BY 1 ORDER BY 1) AS g', t.name, t.plan)
        INTO found;
        changes := changes || coalesce(found, '{}');
    END LOOP;
    RETURN changes;
END
$$;

CREATE OR REPLACE FUNCTION _refuse_unlike(count bigint, name text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = (SELECT CASE WHEN watched THEN 'data_exception' ELSE 'HU002' END FROM _tables AS k
                   WHERE k.name = _refuse_unlike.name),
        MESSAGE = format('%s rows of %s would not be what they were: a trigger changes what is written back', count, name),
        HINT = 'Let the trigger pass where current_setting(''helios.undoing'', true) is not empty.';
END
$$;

-- What was updated was compared when it was; this is for what was inserted.
CREATE OR REPLACE FUNCTION _compare(
    runs bigint[], since bigint, own xid[], many boolean, touched oid[], acts jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    different bigint;
BEGIN
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        SELECT coalesce(sum(n::bigint), 0) INTO different FROM jsonb_each_text(acts -> t.rel::text) AS each (act, n)
        WHERE act IN ('I', 'X');
        CONTINUE WHEN different = 0;
        different := different - _run_step('_restored_', t.rel, runs, since, own, many);
        IF different > 0 THEN
            PERFORM _refuse_unlike(different, t.name);
        END IF;
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _forget(
    runs bigint[], since bigint, own xid[], many boolean, touched oid[], acts jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
BEGIN
    FOR t IN SELECT * FROM _tables WHERE rel = ANY (touched) ORDER BY rel LOOP
        IF since > 0 AND acts -> t.rel::text ?| '{I,U,X}' THEN
            PERFORM _run_step('_stood_', t.rel, runs, since, own, many);
        END IF;
        IF acts -> t.rel::text ? 'K' THEN
            PERFORM _run_step('_note_', t.rel, runs, since, own, many),
                    _run_step('_forget_done_', t.rel, runs, since, own, many);
        ELSE
            PERFORM _empty(t.rel, runs, since, own, many);
        END IF;
        IF many AND _is_long(t.plan) THEN
            EXECUTE format('TRUNCATE %s', t.plan);
        ELSE
            PERFORM _run_step('_clear_plan_', t.rel, runs, since, own, many);
        END IF;
    END LOOP;
END
$$;
