-- How a table is followed: its log and plan tables, the functions that fill the log, and the triggers that call them.
-- Run with search_path set to the log's schema, then pg_temp; each function keeps that path as its own. What is called
-- for each row or statement of a labelled connection has no path, which would cost, and names every schema instead.

-- The names, quoted, each put into a pattern at %s, joined.
CREATE OR REPLACE FUNCTION _each(names text[], pattern text, joined text DEFAULT ', ') RETURNS text
LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(string_agg(replace(pattern, '%s', quote_ident(name)), joined ORDER BY place), '')
    FROM unnest(names) WITH ORDINALITY AS each (name, place)
$$;

-- "a"."x" = "b"."x" AND ..., with each column's own operator.
CREATE OR REPLACE FUNCTION _same(names text[], equals text[], a text, b text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$
    SELECT string_agg(format('%s.%I %s %s.%I', a, name, equal, b, name), ' AND ' ORDER BY place)
    FROM unnest(names, equals) WITH ORDINALITY AS each (name, equal, place)
$$;

CREATE OR REPLACE FUNCTION _operator(operator_oid oid) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT format('OPERATOR(%I.%s)', nspname, oprname)
    FROM pg_operator JOIN pg_namespace ON pg_namespace.oid = oprnamespace WHERE pg_operator.oid = operator_oid
$$;

-- The columns or expressions of an index, in its order, with their equality.
CREATE OR REPLACE FUNCTION _index_parts(index_oid oid)
RETURNS TABLE (place integer, attribute smallint, expression text, equal text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT key.place::integer, key.attribute, pg_get_indexdef(index_oid, key.place::integer, true),
           _operator(amopopr)
    FROM pg_index,
         unnest(indkey::smallint[], indclass::oid[]) WITH ORDINALITY AS key (attribute, class, place)
         JOIN pg_opclass ON pg_opclass.oid = key.class
         JOIN pg_amop ON amopfamily = opcfamily AND amoplefttype = opcintype AND amoprighttype = opcintype
                         AND amopstrategy = 3
    WHERE indexrelid = index_oid AND key.place <= indnkeyatts
$$;

-- Columns that can be written. A domain is logged as its base type: an entry of an insert leaves it NULL.
CREATE OR REPLACE FUNCTION _columns_of(table_oid oid)
RETURNS TABLE (number smallint, name text, type text, domain boolean, identity text, missing text)
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    WITH RECURSIVE base (number, type, typmod, domain) AS (
        SELECT attnum, atttypid, atttypmod, false FROM pg_attribute
        WHERE attrelid = table_oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
        UNION ALL
        SELECT number, typbasetype, typtypmod, true FROM base JOIN pg_type ON pg_type.oid = type WHERE typtype = 'd'
    )
    SELECT DISTINCT ON (attnum) attnum, attname::text, format_type(type, typmod), domain, attidentity::text,
           CASE WHEN atthasmissing THEN (attmissingval::text::text[])[1] END
    FROM base JOIN pg_attribute ON attrelid = table_oid AND attnum = number JOIN pg_type ON pg_type.oid = type
    WHERE typtype <> 'd'
    ORDER BY attnum
$$;

-- The columns of a row as the log holds them: "t"."a", "t"."b"::integer, ...
CREATE OR REPLACE FUNCTION _image(table_oid oid, alias text) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT string_agg(format('%s.%I', alias, name) || CASE WHEN domain THEN '::' || type ELSE '' END, ', '
                      ORDER BY number)
    FROM _columns_of(table_oid)
$$;

CREATE OR REPLACE FUNCTION _shape_of(table_oid oid) RETURNS text
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT md5(concat_ws('|', _attributes_of(table_oid),
        (SELECT string_agg(format('%s %s %s', tgname, tgtype, tgconstraint), ',' ORDER BY tgname)
         FROM pg_trigger WHERE tgrelid = table_oid),
        (SELECT string_agg(indexrelid::text, ',' ORDER BY indexrelid)
         FROM pg_index WHERE indrelid = table_oid AND indisunique)))
$$;

-- A name in the log's schema that is free, or this table's already: two schemas may have tables of one name.
CREATE OR REPLACE FUNCTION _name_for(table_oid oid, suffix text) RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
DECLARE
    wanted text := (SELECT relname FROM pg_class WHERE oid = table_oid);
BEGIN
    IF suffix <> '' OR to_regclass(format('%I.%I', current_schema(), wanted)) IS NOT NULL THEN
        wanted := format('%s %s%s', left(wanted, 10), table_oid, suffix);
    END IF;
    RETURN format('%I.%I', current_schema(), wanted);
END
$$;

-- Write down, or anew, what the functions of a table are made from.
CREATE OR REPLACE FUNCTION _describe(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO _tables (rel, name, log, plan, columns, keys, equals, fixed, attributes, shape, signs,
                         referenced, watched, plain)
    SELECT c.oid, _table_name(c.oid),
           coalesce(old.log, _name_for(c.oid, '')), coalesce(old.plan, _name_for(c.oid, ' plan')),
           (SELECT array_agg(name ORDER BY number) FROM _columns_of(c.oid)),
           k.names, k.equals,
           (SELECT coalesce(array_agg(name), '{}') FROM _columns_of(c.oid) WHERE identity = 'a'),
           _attributes_of(c.oid), _shape_of(c.oid), _signs_of(c.oid),
           EXISTS (SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = c.oid),
           pg_has_role(c.relowner, 'USAGE'), false
    FROM pg_class AS c LEFT JOIN _tables AS old ON old.rel = c.oid
    CROSS JOIN LATERAL (
        SELECT array_agg(attname::text ORDER BY place) AS names, array_agg(equal ORDER BY place) AS equals
        FROM pg_index CROSS JOIN LATERAL _index_parts(indexrelid) AS part
        JOIN pg_attribute ON attrelid = c.oid AND attnum = part.attribute
        WHERE indrelid = c.oid AND indisprimary
    ) AS k
    WHERE c.oid = table_oid
    ON CONFLICT (rel) DO UPDATE SET (name, columns, keys, equals, fixed, attributes, shape, signs, referenced, watched) = (
        excluded.name, excluded.columns, excluded.keys, excluded.equals, excluded.fixed, excluded.attributes,
        excluded.shape, excluded.signs, excluded.referenced, excluded.watched);
END
$$;

-- The log of a table has the table's columns. One that the table gained since gets what the rows of the table got.
CREATE OR REPLACE FUNCTION _make_log(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    c record;
BEGIN
    SELECT * INTO t FROM _tables WHERE rel = table_oid;
    IF to_regclass(t.log) IS NULL THEN
        EXECUTE format($create$
            CREATE TABLE %s (
                helios_run bigint NOT NULL,
                helios_step bigint NOT NULL DEFAULT nextval('_steps'),
                helios_what "char" NOT NULL,
                helios_was xid,
                helios_by xid,
                helios_kept boolean NOT NULL DEFAULT false
            )
        $create$, t.log);
        EXECUTE format('CREATE INDEX ON %s (helios_step)', t.log);
        EXECUTE format('COMMENT ON TABLE %s IS %L', t.log, format(
            'Rows of %s as they were before test runs updated (U) or deleted (D) them; keys of inserted ones (I)',
            t.name));
    END IF;
    FOR c IN
        SELECT wanted.*, format_type(a.atttypid, a.atttypmod) AS found
        FROM _columns_of(table_oid) AS wanted
        LEFT JOIN pg_attribute AS a ON a.attrelid = t.log::regclass AND a.attname = wanted.name AND NOT a.attisdropped
        ORDER BY wanted.number
    LOOP
        IF c.found IS NULL THEN
            EXECUTE format('ALTER TABLE %s ADD COLUMN %I %s%s', t.log, c.name, c.type,
                           format(' DEFAULT CAST(%L AS %s)', c.missing, c.type));
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I DROP DEFAULT', t.log, c.name);
        ELSIF c.found <> c.type THEN
            EXECUTE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING CAST(%I AS %s)', t.log, c.name, c.type,
                           c.name, c.type);
        END IF;
    END LOOP;
END
$$;

-- What an undo intends with each key. Its rows live within the undo's transaction: nothing in it need survive a crash.
CREATE OR REPLACE FUNCTION _make_plan(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
BEGIN
    SELECT * INTO t FROM _tables WHERE rel = table_oid;
    EXECUTE format('DROP TABLE IF EXISTS %s', t.plan);
    EXECUTE format($create$
        CREATE UNLOGGED TABLE %s AS
        SELECT %s, 0::bigint AS helios_image, '-'::"char" AS helios_act, ''::text AS helios_why, false AS helios_told
        FROM %s WITH NO DATA
    $create$, t.plan, _each(t.keys, '%s'), t.name);
    EXECUTE format('ALTER TABLE %s ADD PRIMARY KEY (%s)', t.plan, _each(t.keys, '%s'));
END
$$;

-- The functions that fill a table's log, called by triggers of the table and of its partitions.
CREATE OR REPLACE FUNCTION _make_capture(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    t _tables;
    here CONSTANT text := quote_ident(current_schema());
    run CONSTANT text := 'pg_catalog.current_setting(''helios.test_run'')::bigint';
    head CONSTANT text := 'CREATE OR REPLACE FUNCTION %s.%I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L';
    images text;
    keys text;
BEGIN
    SELECT * INTO t FROM _tables WHERE rel = table_oid;
    images := _each(t.columns, '%s');
    keys := _each(t.keys, '%s');
    EXECUTE format(head, here, '_rows_' || t.rel, format($body$
BEGIN
    IF TG_OP OPERATOR(pg_catalog.=) 'DELETE' THEN
        INSERT INTO %1$s (helios_run, helios_what, helios_was, %2$s) VALUES (%3$s, 'D', OLD.xmin, %4$s);
        RETURN OLD;
    ELSIF pg_catalog.record_image_eq(ROW(%5$s), ROW(%6$s)) THEN
        INSERT INTO %1$s (helios_run, helios_what, helios_was, %2$s) VALUES (%3$s, 'U', OLD.xmin, %4$s);
    ELSE
        INSERT INTO %1$s (helios_run, helios_what, helios_was, %2$s) VALUES (%3$s, 'D', OLD.xmin, %4$s);
        INSERT INTO %1$s (helios_run, helios_what, %7$s) VALUES (%3$s, 'I', %6$s);
    END IF;
    RETURN NEW;
END $body$, t.log, images, run, _each(t.columns, 'OLD.%s'), _each(t.keys, 'OLD.%s'), _each(t.keys, 'NEW.%s'), keys));
    EXECUTE format(head, here, '_inserted_' || t.rel, format($body$
#variable_conflict use_variable
DECLARE
    helios_number CONSTANT bigint := pg_catalog.nextval('%5$s._steps');
    helios_label CONSTANT bigint := %4$s;
BEGIN
    INSERT INTO %1$s (helios_run, helios_step, helios_what, %2$s) SELECT helios_label, helios_number, 'I', %3$s FROM helios_new AS n;
    RETURN NULL;
END $body$, t.log, keys, _each(t.keys, 'n.%s'), run, here));
    EXECUTE format(head, here, '_truncated_' || t.rel, format($body$
BEGIN
    IF pg_catalog.current_setting('transaction_isolation') OPERATOR(pg_catalog.<>) 'read committed' THEN
        RAISE feature_not_supported USING
            MESSAGE = pg_catalog.format('TRUNCATE of %%s by a test run is refused in this isolation level: it would '
                                        'remove rows that the transaction cannot see', TG_RELID::pg_catalog.regclass),
            HINT = 'Use READ COMMITTED, or DELETE.';
    END IF;
    EXECUTE pg_catalog.format(%L, TG_TABLE_SCHEMA, TG_TABLE_NAME);
    RETURN NULL;
END $body$, format('INSERT INTO %s (helios_run, helios_what, helios_was, %s) SELECT %s, ''D'', o.xmin, %s FROM ONLY ',
                   replace(t.log, '%', '%%'), replace(images, '%', '%%'), run, replace(_each(t.columns, 'o.%s'), '%', '%%'))
            || '%I.%I AS o'));
END
$$;

-- Before each statement of a labelled connection: the run is open, and stays open until this transaction ends; the table
-- has the columns that its functions were made for.
CREATE OR REPLACE FUNCTION _guard(label text, root oid, columns numeric) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF translate(label, '0123456789', '') <> '' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('helios.test_run = %L is no test run: unset it', label);
    END IF;
    PERFORM pg_advisory_xact_lock_shared(_writers(label::bigint));
    PERFORM FROM _runs AS r WHERE r.id = label::bigint AND NOT r.closed AND columns = _columns_number(root);
    IF NOT FOUND THEN
        PERFORM _suspect(label, root);
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        -- An older snapshot may show a run as open that was closed since; a row lock notices.
        PERFORM FROM _runs AS r WHERE r.id = label::bigint AND NOT r.closed FOR SHARE;
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION _make_guard(table_oid oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    EXECUTE format(
        'CREATE OR REPLACE FUNCTION %I() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS %L',
        '_guard_' || table_oid, format($body$
BEGIN
    PERFORM %I._guard(pg_catalog.current_setting('helios.test_run'), %s, %s);
    RETURN NULL;
END $body$, current_schema(), table_oid, _columns_number(table_oid)));
END
$$;

-- When a guard has to look at an INSERT. Every test pays for it on a new connection, where a function costs most the first
-- time, and a query more; so what is nearly always so is told by a condition of the trigger. Of an INSERT only keys are
-- logged: a primary key whose columns get other names or types is another constraint. The run is open as long as its
-- session holds a lock, and stays open until this transaction ends, because that holds another one, of all writers.
CREATE OR REPLACE FUNCTION _suspicious(root oid) RETURNS text
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    key CONSTANT oid := (SELECT oid FROM pg_constraint WHERE conrelid = root AND contype = 'p');
BEGIN
    RETURN format($condition$
        pg_get_constraintdef(%s) IS DISTINCT FROM %L
        OR translate(current_setting('helios.test_run'), '0123456789', '') <> ''
        OR pg_advisory_xact_lock_shared(hashtextextended(%L, current_setting('helios.test_run')::bigint)) IS NULL
        OR pg_try_advisory_xact_lock_shared(hashtextextended(%L, current_setting('helios.test_run')::bigint))
    $condition$, key, pg_get_constraintdef(key), 'helios writers in ' || current_schema(),
                 'helios open run in ' || current_schema());
END
$$;

-- The triggers of one table or partition. Those for rows are inherited by partitions, those for statements are not. An
-- undo makes only those that are not there: to make one anew it would wait for neighbours.
CREATE OR REPLACE FUNCTION _set_triggers(root oid, table_oid oid, stamped boolean) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    here CONSTANT text := quote_ident(current_schema());
    named CONSTANT text := _table_name(table_oid);
    labelled CONSTANT text := 'pg_catalog.current_setting(''helios.test_run'', true) OPERATOR(pg_catalog.<>) ''''';
    undoing CONSTANT text := 'pg_catalog.current_setting(''helios.undoing'', true) OPERATOR(pg_catalog.<>) ''''';
    long_way CONSTANT text := replace(undoing, '<>) ''''', '=) ''long''');
    suspicious CONSTANT text := _suspicious(root);
    below CONSTANT text := 'pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 0 AND ' || undoing;  -- the cheap first
    wanted record;
BEGIN
    FOR wanted IN
        SELECT * FROM (VALUES
            ('!helios_guard', 'BEFORE UPDATE OR DELETE OR TRUNCATE', 'STATEMENT', '', labelled,
             format('%I()', '_guard_' || root), true),
            ('!helios_guard_insert', 'BEFORE INSERT', 'STATEMENT', '', format('%s AND (%s)', labelled, suspicious),
             format('%I()', '_guard_' || root), true),
            ('~helios_1_rows', 'BEFORE UPDATE OR DELETE', 'ROW', '', labelled,
             format('%I()', '_rows_' || root), root = table_oid),
            ('~helios_2_hold', 'BEFORE INSERT OR UPDATE OR DELETE', 'ROW', '', below, '_hold()', root = table_oid),
            ('~helios_3_exact', 'BEFORE INSERT OR UPDATE', 'ROW', '',
             long_way || ' AND pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0',
             format('%I()', '_exact_' || root), root = table_oid AND stamped),
            ('~helios_inserted', 'AFTER INSERT', 'STATEMENT', 'REFERENCING NEW TABLE AS helios_new',
             labelled, format('%I()', '_inserted_' || root), true),
            ('~helios_truncated', 'BEFORE TRUNCATE', 'STATEMENT', '', labelled,
             format('%I()', '_truncated_' || root), true)
        ) AS each (name, moment, level, referencing, condition, call, here)
        WHERE each.here
          AND NOT EXISTS (SELECT FROM pg_trigger AS t WHERE tgrelid = table_oid AND tgname = each.name AND tgenabled = 'A'
                          AND (name <> '!helios_guard_insert' OR current_setting('helios.undoing', true) <> ''
                               OR obj_description(t.oid, 'pg_trigger') = suspicious))
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER %I %s ON %s %s FOR EACH %s WHEN (%s) EXECUTE FUNCTION %s.%s',
                       wanted.name, wanted.moment, named, wanted.referencing, wanted.level, wanted.condition, here,
                       wanted.call);
        -- also where session_replication_role is replica
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', named, wanted.name);
        IF wanted.name = '!helios_guard_insert' THEN
            EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', wanted.name, named, suspicious);
        END IF;
    END LOOP;
END
$$;

-- The triggers of a table and its partitions. Only where triggers of the product have a say in what a row becomes is
-- one needed that has the last word in an undo.
CREATE OR REPLACE FUNCTION _watch(root oid) RETURNS void
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    parts CONSTANT oid[] := ARRAY(SELECT root UNION SELECT relid FROM pg_partition_tree(root));
    stamped CONSTANT boolean := EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = ANY (parts) AND NOT tgisinternal AND tgname NOT LIKE '~helios\_%'
        AND tgtype & 3 = 3       -- BEFORE, FOR EACH ROW
        AND tgtype & 20 <> 0);   -- INSERT or UPDATE
BEGIN
    IF (SELECT watched FROM _tables WHERE rel = root) THEN
        PERFORM _set_triggers(root, part, stamped) FROM unnest(parts) AS part ORDER BY part <> root;
    END IF;
END
$$;
