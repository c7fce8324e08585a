-- The steps of an undo, made for each table as a function of its own, so that a session plans their statements once.
-- Run with search_path set to the log's schema, then pg_temp.
--
-- A step takes (runs, since, own, many): the runs to undo, the mark to go back to, the ids of the transactions that
-- wrote on behalf of these runs since then, and whether there is so much that a plan for this very case pays. It gives
-- the number of rows it wrote.
--
-- What is to become of a key (helios_act): D delete the row, I insert its image, U update it to its image, X delete it
-- and insert its image, because another row needs its unique value first; K keep what is there, somebody else's; - nothing.

CREATE OR REPLACE FUNCTION _make_step(name text, statement text) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT _make_function(name, format('EXECUTE %L USING $1, $2, $3; GET DIAGNOSTICS helios_count = ROW_COUNT', statement),
                          format('%s; GET DIAGNOSTICS helios_count = ROW_COUNT', statement))
$$;

-- The same for a query of one number, which is that of its result; a loop takes also one that is written WITH an UPDATE.
CREATE OR REPLACE FUNCTION _make_count(name text, query text) RETURNS void
LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT _make_function(name, format('EXECUTE %L INTO helios_count USING $1, $2, $3', query),
                          format('FOR helios_count IN %s LOOP END LOOP', query))
$$;

CREATE OR REPLACE FUNCTION _make_function(name text, of_many text, of_few text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %I(bigint[], bigint, xid[], boolean) RETURNS bigint LANGUAGE plpgsql '
        'SET search_path FROM CURRENT AS %L',
        name, format($body$
#variable_conflict use_column
DECLARE
    helios_count bigint;
BEGIN
    IF $4 THEN
        %s;
    ELSE
        %s;
    END IF;
    RETURN helios_count;
END $body$, of_many, of_few));
END
$$;

CREATE OR REPLACE FUNCTION _make_steps(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    entries CONSTANT text := 'l.helios_run = ANY ($1) AND l.helios_step > $2';
    same_tp text; same_lp text; same_tl text; same_gt text; same_el text; names text;
    stood text; moved text;
BEGIN
    SELECT * INTO t FROM _tables WHERE rel = table_oid;
    names := _each(t.keys, '%s');
    same_tp := _same(t.keys, t.equals, 't', 'p');
    same_lp := _same(t.keys, t.equals, 'l', 'p');
    same_tl := _same(t.keys, t.equals, 't', 'l');
    same_gt := _same(t.keys, t.equals, 'g', 't');
    same_el := _same(t.keys, t.equals, 'e', 'l');

    -- The short way, where a run only inserted: its rows are deleted by their keys, if they are still as it wrote them.
    PERFORM _make_step('_withdraw_' || t.rel, format(
        'DELETE FROM %s AS t USING %s AS l WHERE %s AND %s AND t.xmin = ANY ($3)', t.name, t.log, entries, same_tl));
    -- The same for a large part of the table, without looking up each key: all that these transactions wrote.
    PERFORM _make_step('_withdraw_all_' || t.rel, format('DELETE FROM %s AS t WHERE t.xmin = ANY ($3)', t.name));
    -- Where a run only updated, and what it found was nobody's of its own: then there is one image for each row.
    PERFORM _make_count('_revert_' || t.rel, format($sql$
        WITH helios_reverted AS (
            UPDATE %1$s AS t SET %2$s FROM %3$s AS l
            WHERE %4$s AND %5$s AND l.helios_was <> ALL ($3) AND t.xmin = ANY ($3)
            RETURNING record_image_eq(ROW(%6$s), ROW(%7$s)) AS helios_exact)
        SELECT count(*) FILTER (WHERE helios_exact) FROM helios_reverted
    $sql$, t.name, _assignments(t),
        t.log, entries, same_tl, _image(t.rel, 't'), _each(t.columns, 'l.%s')));
    PERFORM _make_step('_forget_' || t.rel, format('DELETE FROM %s AS l WHERE %s', t.log, entries));

    -- A key that another run has touched as well is that run's from now on: a living one's, or that of one which is over
    -- and could not take back the very version that these runs found.
    PERFORM _make_step('_hand_over_' || t.rel, format($sql$
        UPDATE %1$s AS l SET helios_run = p.helios_run, helios_by = coalesce(l.helios_by, l.xmin)
        FROM (SELECT DISTINCT ON (%2$s) x.* FROM %1$s AS x JOIN _runs ON _runs.id = x.helios_run
              WHERE x.helios_run <> ALL ($1) AND (NOT _runs.closed OR EXISTS (
                  SELECT FROM %1$s AS l WHERE %3$s AND %5$s AND l.helios_was = coalesce(x.helios_by, x.xmin)))
              ORDER BY %2$s, _runs.closed, x.helios_step DESC) AS p
        WHERE %3$s AND %4$s
    $sql$, t.log, _each(t.keys, 'x.%s'), entries, same_lp, _same(t.keys, t.equals, 'l', 'x')));

    -- Keys that seem to be somebody else's, or in order, but are a run's which has written since they were handed over.
    PERFORM _make_count('_contested_' || t.rel, format($sql$
        SELECT count(*) FROM %1$s AS p JOIN %2$s AS l ON %3$s JOIN _runs ON _runs.id = l.helios_run
        WHERE p.helios_act IN ('K', '-') AND l.helios_run <> ALL ($1) AND NOT _runs.closed
    $sql$, t.plan, t.log, same_lp));

    -- The image to go back to is the last version that these runs did not write themselves. Where there is none, a key
    -- that they inserted was absent; one that they did not insert, or not before they touched what an undo had restored,
    -- goes back to what that undo restored: its first image. What they inserted and deleted from that image on (helios_net)
    -- tells who took the row away: one that they inserted more often than deleted, somebody else had deleted before.
    PERFORM _make_step('_plan_' || t.rel, format($sql$
        INSERT INTO %1$s (%2$s, helios_image, helios_act, helios_why, helios_told)
        SELECT %3$s, CASE WHEN g.helios_net <= 0 THEN g.helios_image END,
               CASE WHEN g.helios_image IS NULL OR g.helios_net > 0 THEN
                        CASE WHEN t.xmin IS NULL THEN '-' WHEN t.xmin = ANY ($3) THEN 'D' ELSE 'K' END
                    WHEN t.xmin IS NULL THEN CASE WHEN g.helios_net < 0 THEN 'I' ELSE 'K' END
                    WHEN t.xmin = ANY ($3) THEN 'U'
                    ELSE 'K' END,
               CASE WHEN t.xmin IS NULL THEN 'deleted by somebody else' ELSE 'changed by somebody else' END,
               g.helios_told
        FROM (SELECT %2$s,
                     coalesce(max(helios_theirs),
                              CASE WHEN NOT bool_or(helios_what = 'I') THEN min(helios_step) END,
                              CASE WHEN min(helios_step) FILTER (WHERE helios_what <> 'I' AND helios_was = ANY (undone))
                                        < min(helios_step) FILTER (WHERE helios_what = 'I')
                                   THEN min(helios_step) FILTER (WHERE helios_what <> 'I' AND helios_was = ANY (undone))
                              END) AS helios_image,
                     sum(CASE helios_what WHEN 'I' THEN 1 WHEN 'D' THEN -1 ELSE 0 END)
                         FILTER (WHERE helios_theirs IS NULL OR helios_step >= helios_theirs) AS helios_net,
                     bool_and(helios_kept) AS helios_told
              FROM (SELECT l.*, max(helios_step) FILTER (WHERE helios_what <> 'I' AND helios_was <> ALL ($3))
                                    OVER (PARTITION BY %2$s) AS helios_theirs
                    FROM %4$s AS l WHERE %5$s) AS l,
                   (SELECT ARRAY(SELECT unnest(u.xmin || u.inherited) FROM _undos AS u
                                 WHERE u.run = ANY ($1) AND u.step > $2) AS undone) AS u
              GROUP BY %2$s) AS g
        LEFT JOIN %6$s AS t ON %7$s
        ON CONFLICT DO NOTHING
    $sql$, t.plan, names, _each(t.keys, 'g.%s'), t.log, entries, t.name, same_gt));

    -- Keys that nobody has handed over are planned again: to go behind what other runs' undos restored is not for them.
    PERFORM _make_step('_unplan_' || t.rel, format($sql$
        DELETE FROM %1$s AS p WHERE NOT EXISTS (
            SELECT FROM %2$s AS l WHERE %3$s AND %4$s
            AND EXISTS (SELECT FROM _undos AS u WHERE u.run = ANY ($1) AND l.helios_by = ANY (u.givers)))
    $sql$, t.plan, t.log, entries, same_lp));

    -- Somebody has put it back already.
    PERFORM _make_step('_equal_' || t.rel, format($sql$
        UPDATE %1$s AS p SET helios_act = '-' FROM %2$s AS t, %3$s AS l
        WHERE p.helios_act = 'K' AND l.helios_step = p.helios_image AND %4$s AND %5$s
          AND record_image_eq(ROW(%6$s), ROW(%7$s))
    $sql$, t.plan, t.name, t.log, same_tp, same_lp, _image(t.rel, 't'), _each(t.columns, 'l.%s')));

    -- Nobody may hang a row on one that is going.
    PERFORM _make_count('_lock_' || t.rel, format($sql$
        SELECT count(*) FROM (SELECT FROM %1$s AS t JOIN %2$s AS p ON %3$s
                              WHERE p.helios_act IN ('D', 'U') FOR UPDATE OF t) AS held
    $sql$, t.name, t.plan, same_tp));

    -- How many of those that were inserted again are equal to their image afterwards.
    PERFORM _make_count('_restored_' || t.rel, format($sql$
        SELECT count(*) FROM %1$s AS p, %2$s AS t, %3$s AS l
        WHERE p.helios_act IN ('I', 'X') AND %4$s AND l.helios_step = p.helios_image AND %5$s
          AND record_image_eq(ROW(%6$s), ROW(%7$s))
    $sql$, t.plan, t.name, t.log, same_tp, same_lp, _image(t.rel, 't'), _each(t.columns, 'l.%s')));

    -- What somebody else had made of a row that these runs wrote before the mark, and that has just come back, is what
    -- stood there at the mark: it stays in the log as that, and an undo of more goes back to it, not behind it.
    stood := format($sql$
        WITH helios_moved AS (
            UPDATE %1$s AS l SET helios_step = $2, helios_what = 'U', helios_by = coalesce(l.helios_by, l.xmin)
            FROM (SELECT %2$s, array_agg(coalesce(e.helios_by, e.xmin)) AS helios_writers FROM %1$s AS e
                  WHERE e.helios_run = ANY ($1) AND e.helios_step <= $2
                    AND EXISTS (SELECT FROM %1$s AS l WHERE %3$s AND %4$s) GROUP BY %2$s) AS e
    $sql$, t.log, _each(t.keys, 'e.%s'), entries, same_el);
    moved := format($sql$
            %1$s AND %2$s AND l.helios_was <> ALL (e.helios_writers) AND l.helios_was <> ALL (ARRAY(
                SELECT unnest(u.xmin || u.inherited) FROM _undos AS u WHERE u.run = ANY ($1)))
            RETURNING %3$s)
        DELETE FROM %4$s AS e USING helios_moved AS l WHERE e.helios_run = ANY ($1) AND e.helios_step = $2 AND %2$s
    $sql$, entries, same_el, _each(t.keys, 'l.%s'), t.log);
    PERFORM _make_step('_stood_reverted_' || t.rel, stood || ' WHERE ' || moved);
    PERFORM _make_step('_stood_' || t.rel, stood || format(
        ' JOIN %s AS p ON %s WHERE p.helios_act IN (''I'', ''U'', ''X'') AND l.helios_step = p.helios_image AND ',
        t.plan, _same(t.keys, t.equals, 'e', 'p')) || moved);

    -- What is kept stays in the log, as told; the rest is forgotten.
    PERFORM _make_step('_note_' || t.rel, format($sql$
        UPDATE %1$s AS l SET helios_kept = true, helios_by = coalesce(l.helios_by, l.xmin)
        FROM %2$s AS p WHERE p.helios_act = 'K' AND %3$s AND %4$s AND NOT l.helios_kept
    $sql$, t.log, t.plan, same_lp, entries));
    PERFORM _make_step('_forget_done_' || t.rel, format($sql$
        DELETE FROM %1$s AS l WHERE %2$s AND NOT EXISTS (SELECT FROM %3$s AS p WHERE p.helios_act = 'K' AND %4$s)
    $sql$, t.log, entries, t.plan, same_lp));
    PERFORM _make_step('_clear_plan_' || t.rel, format('DELETE FROM %s', t.plan));

    PERFORM _make_exact(t);
END
$$;

-- What an UPDATE sets to go back to an image: the key too, for two that are equal need not be the same, as 1.0 and 1.00.
CREATE OR REPLACE FUNCTION _assignments(t _tables) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT _each(array_agg(name ORDER BY place), '%s = l.%s')
    FROM unnest(t.columns) WITH ORDINALITY AS c (name, place) WHERE name <> ALL (t.fixed)
$$;

-- The last word on a row that an undo writes: triggers of the product that stamp it have had theirs.
CREATE OR REPLACE FUNCTION _make_exact(t _tables) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT '
        'AS %L', '_exact_' || t.rel, format($body$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        SELECT %1$s INTO %2$s FROM %3$s AS p JOIN %4$s AS l ON l.helios_step = p.helios_image AND %5$s WHERE %6$s;
    ELSE
        SELECT %1$s INTO %2$s FROM %3$s AS p JOIN %4$s AS l ON l.helios_step = p.helios_image AND %5$s WHERE %7$s;
    END IF;
    RETURN NEW;
END $body$, _each(t.columns, 'l.%s'), _each(t.columns, 'NEW.%s'), t.plan, t.log,
            _same(t.keys, t.equals, 'l', 'p'), _same(t.keys, t.equals, 'p', 'OLD'), _same(t.keys, t.equals, 'p', 'NEW')));
END
$$;

-- a."x" = b."y" AND ... of a foreign key, which knows its operators: a refers to b.
CREATE OR REPLACE FUNCTION _refers(link oid, a text, b text) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT string_agg(format('%s.%I %s %s.%I', b, their.attname, _operator(operator), a, own.attname), ' AND ')
    FROM pg_constraint, unnest(conkey, confkey, conpfeqop) AS part (own_number, their_number, operator)
    JOIN pg_attribute AS own ON own.attnum = own_number
    JOIN pg_attribute AS their ON their.attnum = their_number
    WHERE pg_constraint.oid = link AND own.attrelid = conrelid AND their.attrelid = confrelid
$$;

-- Checks for the foreign keys that lead from or to a table, and for its unique indexes.
CREATE OR REPLACE FUNCTION _make_checks(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    link record;
    index_oid oid;
BEGIN
    FOR link IN SELECT name FROM _checks WHERE table_oid IN (rel, other) LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS %I(bigint[], bigint, xid[], boolean)', link.name);
        DELETE FROM _checks WHERE name = link.name;
    END LOOP;
    FOR link IN
        SELECT oid, conrelid, confrelid FROM pg_constraint
        WHERE contype = 'f' AND conparentid = 0 AND table_oid IN (conrelid, confrelid)
    LOOP
        PERFORM _check_parents(link.oid), _check_children(link.oid);
    END LOOP;
    IF (SELECT NOT fixed <@ keys FROM _tables WHERE rel = table_oid) THEN
        PERFORM _check_fixed(table_oid);
    END IF;
    FOR index_oid IN
        SELECT indexrelid FROM pg_index WHERE indrelid = table_oid AND indisunique AND NOT indisprimary AND indislive
    LOOP
        PERFORM _check_unique(index_oid);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION _add_check(name text, rel oid, other oid, statement text) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM _make_step(name, statement);
    INSERT INTO _checks VALUES (name, rel, other) ON CONFLICT DO NOTHING;
END
$$;

-- A row that is to go, or whose value is to go, while a row that stays refers to it, or the image of one that is to come
-- back: a neighbour wrote it, below a row of the runs. So this is asked before _check_children(), which would give it up.
CREATE OR REPLACE FUNCTION _check_parents(link oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    f pg_constraint;
    parent _tables; child _tables;
    other_columns boolean;
    leaves text; stays text := ''; coming text; filled text[];
    refusal CONSTANT text := $sql$
        UPDATE %1$s AS p SET helios_act = 'K', helios_why = %2$L FROM %3$s AS t, %7$s
        WHERE p.helios_act IN ('D', 'U', 'X') AND %4$s AND %5$s AND %6$s%8$s
    $sql$;
BEGIN
    SELECT * INTO f FROM pg_constraint WHERE oid = link;
    SELECT * INTO parent FROM _tables WHERE rel = f.confrelid;
    SELECT * INTO child FROM _tables WHERE rel = f.conrelid;
    IF parent.rel IS NULL THEN
        RETURN;
    END IF;
    other_columns := NOT (SELECT array_agg(attname::text) <@ parent.keys FROM pg_attribute
                          WHERE attrelid = f.confrelid AND attnum = ANY (f.confkey));
    leaves := 'p.helios_act = ''D''';
    IF other_columns THEN
        leaves := format('(%s OR p.helios_act IN (''U'', ''X'') AND NOT EXISTS (SELECT FROM %s AS b WHERE '
                         'b.helios_step = p.helios_image AND %s))', leaves, parent.log, _refers(link, 'c', 'b'));
    END IF;
    IF f.confdeltype = 'a' THEN
        -- NO ACTION is checked when the statement ends: another row may hold the value by then.
        leaves := format('%s AND NOT EXISTS (SELECT FROM %s AS pn JOIN %s AS bn ON bn.helios_step = pn.helios_image '
                         'WHERE pn.helios_act IN (''I'', ''U'', ''X'') AND %s)', leaves, parent.plan, parent.log,
                         _refers(link, 'c', 'bn'));
    END IF;
    IF child.rel IS NOT NULL THEN
        stays := format(' AND NOT EXISTS (SELECT FROM %s AS pc LEFT JOIN %s AS i ON i.helios_step = pc.helios_image '
                        'WHERE %s AND (pc.helios_act = ''D'' OR pc.helios_act IN (''U'', ''X'') '
                        'AND NOT coalesce(%s, false)))', child.plan, child.log,
                        _same(child.keys, child.equals, 'pc', 'c'), _refers(link, 'i', 't'));
    END IF;
    filled := ARRAY[parent.plan, 'referenced from ' || f.conrelid::regclass, parent.name,
        _same(parent.keys, parent.equals, 't', 'p'), _refers(link, 'c', 't'), leaves];
    PERFORM _add_check('_foreign_1_' || link, f.confrelid, f.conrelid,
                       format(refusal, VARIADIC filled || ARRAY[_table_name(f.conrelid) || ' AS c', stays]));
    IF child.rel IS NOT NULL THEN
        coming := format('%s AS c JOIN %s AS pc ON pc.helios_image = c.helios_step AND %s', child.log, child.plan,
                         _same(child.keys, child.equals, 'pc', 'c'));
        PERFORM _add_check('_foreign_1_images_' || link, f.confrelid, f.conrelid, format(refusal,
            VARIADIC filled || ARRAY[coming, ' AND pc.helios_act IN (''I'', ''U'', ''X'')']));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _table_name(table_oid oid) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('%I.%I', nspname, relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = table_oid
$$;

-- An image that refers to a row which is gone, or goes.
CREATE OR REPLACE FUNCTION _check_children(link oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    f pg_constraint;
    parent _tables; child _tables;
    going text := ''; coming text := '';
BEGIN
    SELECT * INTO f FROM pg_constraint WHERE oid = link;
    SELECT * INTO parent FROM _tables WHERE rel = f.confrelid;
    SELECT * INTO child FROM _tables WHERE rel = f.conrelid;
    IF child.rel IS NULL THEN
        RETURN;
    END IF;
    IF parent.rel IS NOT NULL THEN
        going := format(' AND NOT EXISTS (SELECT FROM %s AS pp LEFT JOIN %s AS b ON b.helios_step = pp.helios_image '
                        'WHERE %s AND (pp.helios_act = ''D'' OR pp.helios_act IN (''U'', ''X'') '
                        'AND NOT coalesce(%s, false)))', parent.plan, parent.log,
                        _same(parent.keys, parent.equals, 'pp', 't'), _refers(link, 'i', 'b'));
        coming := format(' AND NOT EXISTS (SELECT FROM %s AS pp JOIN %s AS b ON b.helios_step = pp.helios_image '
                         'WHERE pp.helios_act IN (''I'', ''U'', ''X'') AND %s)', parent.plan, parent.log,
                         _refers(link, 'i', 'b'));
    END IF;
    PERFORM _add_check('_foreign_2_' || link, f.conrelid, f.confrelid, format($sql$
        UPDATE %1$s AS p SET helios_act = 'K', helios_why = %2$L FROM %3$s AS i
        WHERE p.helios_act IN ('I', 'U', 'X') AND i.helios_step = p.helios_image AND %4$s AND %5$s
          AND NOT EXISTS (SELECT FROM %6$s AS t WHERE %7$s%8$s)%9$s
    $sql$, child.plan, format('its row in %s is gone', f.confrelid::regclass), child.log,
        _same(child.keys, child.equals, 'i', 'p'),
        (SELECT string_agg(format('i.%I IS NOT NULL', attname), ' AND ') FROM pg_attribute
         WHERE attrelid = f.conrelid AND attnum = ANY (f.conkey)),
        _table_name(f.confrelid), _refers(link, 'i', 't'), going, coming));
END
$$;

-- A row, as its unique index sees it: no row where the index's condition does not hold. Generated columns are not in
-- the log, so that they are worked out.
CREATE OR REPLACE FUNCTION _as_indexed(index_oid oid, alias text, logged boolean) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('LATERAL (SELECT %s FROM (SELECT s.*%s FROM (SELECT %s.*) AS s) AS s WHERE %s)',
        (SELECT string_agg(format('%s AS e%s', expression, place), ', ' ORDER BY place) FROM _index_parts(index_oid)),
        CASE WHEN logged THEN
            (SELECT string_agg(format(', %s AS %I', pg_get_expr(adbin, adrelid), attname), '' ORDER BY attnum)
             FROM pg_attribute JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
             WHERE attrelid = indrelid AND attgenerated <> '' AND NOT attisdropped) END,
        alias, coalesce(pg_get_expr(indpred, indrelid), 'true'))
    FROM pg_index WHERE indexrelid = index_oid
$$;

-- No foreign key would carry the deletion of the row t on to other rows.
CREATE OR REPLACE FUNCTION _childless(table_oid oid) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(string_agg(format('NOT EXISTS (SELECT FROM %s AS c WHERE %s)', _table_name(conrelid),
                                      _refers(oid, 'c', 't')), ' AND '), 'true')
    FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND confrelid = table_oid AND confdeltype <> 'a'
$$;

-- An identity column that only a new row can get: deleted and inserted again.
CREATE OR REPLACE FUNCTION _check_fixed(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
BEGIN
    SELECT * INTO t FROM _tables WHERE rel = table_oid;
    PERFORM _add_check('_fixed_' || t.rel, t.rel, t.rel, format($sql$
        UPDATE %1$s AS p SET helios_act = CASE WHEN %2$s THEN 'X' ELSE 'K' END,
               helios_why = 'its identity column cannot be set back while other rows refer to it'
        FROM %3$s AS t, %4$s AS i
        WHERE p.helios_act = 'U' AND i.helios_step = p.helios_image AND %5$s AND %6$s AND (%7$s)
    $sql$, t.plan, _childless(t.rel), t.name, t.log, _same(t.keys, t.equals, 't', 'p'),
        _same(t.keys, t.equals, 'i', 'p'), _each(t.fixed, 't.%s IS DISTINCT FROM i.%s', ' OR ')));
END
$$;

-- An image whose unique value is taken. Where its holder is itself to change, it makes room: deleted and inserted
-- again, unless a foreign key would carry that on to other rows.
CREATE OR REPLACE FUNCTION _check_unique(index_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    x pg_index;
    t _tables;
    taken text; sources text; what text;
BEGIN
    SELECT * INTO x FROM pg_index WHERE indexrelid = index_oid;
    SELECT * INTO t FROM _tables WHERE rel = x.indrelid;
    SELECT string_agg(format(CASE WHEN x.indnullsnotdistinct THEN '(a.e%1$s %2$s b.e%1$s OR a.e%1$s IS NULL AND b.e%1$s IS NULL)'
                                  ELSE 'a.e%1$s %2$s b.e%1$s' END, place, equal), ' AND '),
           string_agg(expression, ', ' ORDER BY place)
    INTO taken, what FROM _index_parts(index_oid);
    sources := format('%s AS i CROSS JOIN %s AS b, %s AS t CROSS JOIN %s AS a', t.log,
                      _as_indexed(index_oid, 'i', true), t.name, _as_indexed(index_oid, 't', false));
    PERFORM _add_check('_unique_1_' || index_oid, t.rel, t.rel, format($sql$
        UPDATE %1$s AS h SET helios_act = 'X' FROM %2$s, %1$s AS p
        WHERE %7$s AND p.helios_act IN ('I', 'U', 'X') AND i.helios_step = p.helios_image AND %3$s
          AND h.helios_act = 'U' AND %4$s AND NOT (%5$s) AND %6$s
    $sql$, t.plan, sources, _same(t.keys, t.equals, 'i', 'p'), _same(t.keys, t.equals, 't', 'h'),
        _same(t.keys, t.equals, 't', 'i'), _childless(t.rel), taken));
    PERFORM _add_check('_unique_2_' || index_oid, t.rel, t.rel, format($sql$
        UPDATE %1$s AS p SET helios_act = 'K', helios_why = %2$L FROM %3$s
        WHERE %7$s AND p.helios_act IN ('I', 'U', 'X') AND i.helios_step = p.helios_image AND %4$s
          AND NOT (%5$s)
          AND NOT EXISTS (SELECT FROM %1$s AS h WHERE %6$s AND h.helios_act IN ('D', 'X'))
    $sql$, t.plan, format('its unique value (%s) is taken', what), sources,
        _same(t.keys, t.equals, 'i', 'p'), _same(t.keys, t.equals, 't', 'i'), _same(t.keys, t.equals, 't', 'h'),
        taken));
END
$$;

-- Everything about one table but its triggers, made anew after the table changed.
CREATE OR REPLACE FUNCTION _follow(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM _describe(table_oid), _make_log(table_oid), _make_plan(table_oid), _make_guard(table_oid),
            _make_capture(table_oid), _make_steps(table_oid), _make_checks(table_oid);
END
$$;

-- What concerns all tables: which runs wrote to which, and in which order rows can be deleted without a cascade.
CREATE OR REPLACE FUNCTION _finish() RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE _tables SET shape = _shape_of(rel), signs = _signs_of(rel), plain = watched AND NOT EXISTS (
        SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = _tables.rel AND conparentid = 0
        AND confdeltype IN ('c', 'n', 'd') AND conrelid NOT IN (SELECT rel FROM _tables WHERE watched));
    PERFORM _rank_tables();
    EXECUTE format($create$
        CREATE OR REPLACE FUNCTION _touched(runs bigint[], since bigint)
        RETURNS TABLE (rel oid, kind "char", entries bigint, own xid[])
        LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS %L
    $create$, format('#variable_conflict use_column
BEGIN RETURN QUERY %s; END', coalesce((
        SELECT string_agg(format($sql$
            SELECT %s::oid, (CASE WHEN min(least) = max(most) THEN min(least) END)::"char", sum(found)::bigint,
                   array_agg(writer)
            FROM (SELECT coalesce(l.helios_by, l.xmin) AS writer, min(l.helios_what) AS least,
                         max(l.helios_what) AS most, count(*) AS found
                  FROM %s AS l WHERE l.helios_run = ANY ($1) AND l.helios_step > $2 GROUP BY 1) AS g
            HAVING count(*) > 0
        $sql$, rel, log), ' UNION ALL ' ORDER BY rel) FROM _tables),
        'SELECT 0::oid, ''I''::"char", 0::bigint, NULL::xid[] WHERE false')));
    EXECUTE format('REVOKE ALL ON ALL FUNCTIONS IN SCHEMA %I FROM PUBLIC', current_schema());
END
$$;

CREATE OR REPLACE FUNCTION _rank_tables() RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    place integer := 0;
BEGIN
    UPDATE _tables SET rank = NULL;
    LOOP
        UPDATE _tables SET rank = place WHERE rank IS NULL AND NOT EXISTS (
            SELECT FROM pg_constraint JOIN _tables AS child ON child.rel = conrelid
            WHERE contype = 'f' AND confrelid = _tables.rel AND conrelid <> confrelid
              AND child.rank IS NULL);
        EXIT WHEN NOT FOUND;
        place := place + 1;
    END LOOP;
END
$$;
