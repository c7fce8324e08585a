-- Where triggers may not be installed: what the tracker calls before and after each statement that it sees, to write the
-- very entries that triggers would have written, in the same transaction. Run with search_path set to the log's schema,
-- then pg_temp.
--
-- What a statement wrote is told by the rows themselves: they carry its (sub)transaction and a later command than the
-- one that looked before it. That nothing else was written is told by the server's own counters of rows.

-- A row here, written and deleted at once, shows the subtransaction and the command that are at work.
CREATE UNLOGGED TABLE _probes (run bigint);

-- The rows written to a table so far, by whomever in this session: statements, functions, triggers, cascades. They hold
-- also what transactions before wrote and the server has not yet summed up, so only differences tell.
CREATE OR REPLACE FUNCTION _written_to(root oid, OUT inserted bigint, OUT updated bigint, OUT deleted bigint)
LANGUAGE sql VOLATILE SET search_path FROM CURRENT AS $$
    SELECT sum(pg_stat_get_xact_tuples_inserted(part))::bigint, sum(pg_stat_get_xact_tuples_updated(part))::bigint,
           sum(pg_stat_get_xact_tuples_deleted(part))::bigint
    FROM (SELECT root AS part UNION SELECT relid FROM pg_partition_tree(root)) AS parts
$$;

-- For each table that no trigger watches, the rows written to it so far, and a number that TRUNCATE changes.
CREATE OR REPLACE FUNCTION counted(OUT rel oid, OUT written bigint, OUT file bigint) RETURNS SETOF record
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT t.rel, w.inserted + w.updated + w.deleted, (
        SELECT coalesce(sum(pg_relation_filenode(part)::bigint), 0)::bigint
        FROM (SELECT t.rel AS part UNION SELECT relid FROM pg_partition_tree(t.rel)) AS parts)
    FROM _tables AS t, LATERAL _written_to(t.rel) AS w WHERE NOT t.watched
$$;

-- Before a statement: what a guard looks at, and where the statement stands.
CREATE OR REPLACE FUNCTION look(
    rel oid, OUT own text, OUT command bigint, OUT step bigint, OUT inserted bigint, OUT updated bigint, OUT deleted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    run CONSTANT text := current_setting('helios.test_run');
    place tid;
BEGIN
    IF translate(run, '0123456789', '') <> '' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('helios.test_run = %L is no test run: unset it', run);
    END IF;
    PERFORM pg_advisory_xact_lock_shared(_writers(run::bigint));
    PERFORM _suspect(run, rel);
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- An older snapshot may show a run as open that was closed since; a row lock notices.
        PERFORM FROM _runs AS r WHERE r.id = run::bigint AND NOT r.closed FOR SHARE;
    END IF;
    INSERT INTO _probes VALUES (run::bigint) RETURNING ctid, xmin::text, cmin::text::bigint INTO place, own, command;
    DELETE FROM _probes WHERE ctid = place;
    step := nextval('_steps');
    SELECT w.inserted, w.updated, w.deleted INTO inserted, updated, deleted FROM _written_to(rel) AS w;
END
$$;

-- Keep the rows at these places, which the caller has locked, as they are before they are updated (U) or deleted (D).
CREATE OR REPLACE FUNCTION image(rel oid, what text, parts oid[], places tid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security TO off AS $$
DECLARE
    t _tables;
    kept bigint;
BEGIN
    SELECT * INTO t FROM _tables AS k WHERE k.rel = image.rel;
    EXECUTE format('INSERT INTO %s (helios_run, helios_what, helios_was, %s) SELECT $1, $2::"char", t.xmin, %s FROM %s AS t '
                   'JOIN (SELECT DISTINCT * FROM unnest($3, $4) AS p (part, place)) AS p '
                   'ON t.ctid = p.place AND t.tableoid = p.part',
                   t.log, _each(t.columns, '%s'), _image(t.rel, 't'), t.name)
    USING current_setting('helios.test_run')::bigint, what, parts, places;
    GET DIAGNOSTICS kept = ROW_COUNT;
    RETURN kept;
END
$$;

-- After a statement: how many of the rows that were kept it wrote, whether it moved some to other keys, and what the
-- server counts by now.
CREATE OR REPLACE FUNCTION wrote(
    rel oid, own text, command bigint, step bigint, OUT kept bigint, OUT moved bigint, OUT inserted bigint, OUT updated bigint,
    OUT deleted bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security TO off AS $$
DECLARE
    t _tables;
BEGIN
    SELECT * INTO t FROM _tables AS k WHERE k.rel = wrote.rel;
    EXECUTE format('SELECT count(*) FILTER (WHERE t.xmin IS NULL OR t.xmin = $2::xid AND t.cmin::text::bigint > $3), '
                   'count(*) FILTER (WHERE t.xmin IS NULL AND l.helios_what = ''U'') '
                   'FROM %s AS l LEFT JOIN %s AS t ON %s '
                   'WHERE l.helios_run = $1 AND l.helios_step > $4 AND l.xmin = $2::xid AND l.helios_what <> ''I''',
                   t.log, t.name, _same(t.keys, t.equals, 't', 'l'))
    INTO kept, moved USING current_setting('helios.test_run')::bigint, own, command, step;
    SELECT w.inserted, w.updated, w.deleted INTO inserted, updated, deleted FROM _written_to(rel) AS w;
END
$$;

-- After a statement: enter rows that it inserted, at these places or (NULL) wherever they are, which reads the table.
CREATE OR REPLACE FUNCTION enter(rel oid, own text, command bigint, step bigint, parts oid[], places tid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security TO off AS $$
DECLARE
    t _tables;
    entered bigint;
BEGIN
    SELECT * INTO t FROM _tables AS k WHERE k.rel = enter.rel;
    EXECUTE format('INSERT INTO %1$s (helios_run, helios_what, %2$s) SELECT $1, ''I'', %3$s FROM %4$s AS t %5$s '
                   'WHERE t.xmin = $2::xid AND t.cmin::text::bigint > $3 AND NOT EXISTS ('
                   'SELECT FROM %1$s AS l WHERE l.helios_run = $1 AND l.helios_step > $4 AND l.xmin = $2::xid '
                   'AND l.helios_what <> ''D'' AND %6$s)',
                   t.log, _each(t.keys, '%s'), _each(t.keys, 't.%s'), t.name,
                   CASE WHEN places IS NOT NULL THEN 'JOIN (SELECT DISTINCT * FROM unnest($5, $6) AS p (part, place)) AS p '
                                                     'ON t.ctid = p.place AND t.tableoid = p.part' END,
                   _same(t.keys, t.equals, 't', 'l'))
    USING current_setting('helios.test_run')::bigint, own, command, step, parts, places;
    GET DIAGNOSTICS entered = ROW_COUNT;
    RETURN entered;
END
$$;

-- After an UPDATE that moved rows to other keys: as with triggers, the old keys are deleted ones, the new inserted ones.
CREATE OR REPLACE FUNCTION part_keys(rel oid, own text, command bigint, step bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT SET row_security TO off AS $$
BEGIN
    EXECUTE format('UPDATE %s AS l SET helios_what = ''D'' WHERE l.helios_run = $1 AND l.helios_step > $3 '
                   'AND l.xmin = $2::xid AND l.helios_what = ''U''', (SELECT log FROM _tables AS k WHERE k.rel = part_keys.rel))
    USING current_setting('helios.test_run')::bigint, own, step;
    RETURN enter(rel, own, command, step, NULL, NULL);
END
$$;

-- In an undo nothing holds back triggers of the product here: what they wrote besides would stay.
CREATE OR REPLACE FUNCTION _refuse_more(before bigint[], touched oid[], acts jsonb) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    more CONSTANT bigint := (
        SELECT max(now - was - wanted) FROM unnest(before, _sums(), ARRAY[
            (SELECT coalesce(sum(n::bigint * CASE act WHEN 'X' THEN 1 WHEN 'I' THEN 1 WHEN 'U' THEN 1 ELSE 0 END), 0)
             FROM _tables AS k, jsonb_each_text(acts -> k.rel::text) AS a (act, n)
             WHERE k.rel = ANY (touched) AND NOT k.watched),
            (SELECT coalesce(sum(n::bigint * CASE act WHEN 'X' THEN 1 WHEN 'D' THEN 1 WHEN 'U' THEN 1 ELSE 0 END), 0)
             FROM _tables AS k, jsonb_each_text(acts -> k.rel::text) AS a (act, n)
             WHERE k.rel = ANY (touched) AND NOT k.watched)]) AS each (was, now, wanted));
BEGIN
    IF more > 0 THEN
        RAISE EXCEPTION USING
            ERRCODE = 'HU002',
            MESSAGE = format('%s rows more than were to be undone would be written: a trigger of the tables does so', more),
            HINT = 'Let the trigger pass where current_setting(''helios.undoing'', true) is not empty.';
    END IF;
END
$$;

-- So the rows are kept at whose undo triggers of the product would run, and all others are undone.
CREATE OR REPLACE FUNCTION _spare(touched oid[]) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT k.plan, bit_or(tgtype) AS fires, string_agg(DISTINCT quote_ident(tgname), ', ') AS triggers
        FROM _tables AS k, LATERAL (SELECT k.rel AS part UNION SELECT relid FROM pg_partition_tree(k.rel)) AS parts
        JOIN pg_trigger ON tgrelid = part AND NOT tgisinternal AND tgenabled IN ('O', 'A')
        WHERE k.rel = ANY (touched) AND NOT k.watched GROUP BY k.plan
    LOOP
        EXECUTE format('UPDATE %s SET helios_act = ''K'', helios_why = %L WHERE $1 & CASE helios_act '
                       'WHEN ''I'' THEN 4 WHEN ''D'' THEN 8 WHEN ''X'' THEN 12 WHEN ''U'' THEN 16 ELSE 0 END <> 0',
                       t.plan, 'its triggers would write at the undo: ' || t.triggers)
        USING t.fires::integer;
    END LOOP;
END
$$;

-- Of all tables that no trigger watches: rows put there, and rows taken away; an update does both, also across partitions.
-- NULL where there is no such table.
CREATE OR REPLACE FUNCTION _sums() RETURNS bigint[]
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RETURN (SELECT ARRAY[sum(w.inserted + w.updated), sum(w.deleted + w.updated)]::bigint[]
            FROM _tables AS t, LATERAL _written_to(t.rel) AS w WHERE NOT t.watched HAVING count(*) > 0);
END
$$;

-- Whoever may write to these tables, and nobody else, may call what is above: asked anew when a run begins.
CREATE OR REPLACE FUNCTION let_writers_in() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    writer name;
BEGIN
    FOR writer IN
        SELECT rolname FROM pg_roles AS r
        WHERE NOT rolsuper AND NOT has_function_privilege(r.oid, 'counted()', 'EXECUTE') AND EXISTS (
            SELECT FROM _tables WHERE NOT watched AND (
                has_any_column_privilege(r.oid, rel, 'INSERT, UPDATE') OR has_table_privilege(r.oid, rel, 'DELETE')))
    LOOP
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), writer);
        EXECUTE format('GRANT EXECUTE ON FUNCTION counted(), look(oid), image(oid, text, oid[], tid[]), '
                       'wrote(oid, text, bigint, bigint), enter(oid, text, bigint, bigint, oid[], tid[]), '
                       'part_keys(oid, text, bigint, bigint) TO %I', writer);
    END LOOP;
END
$$;
