-- What is missing between the catalog and what Helios wants of it: one row a statement, in the order to run them.
--   statement  the SQL, identifiers quoted
--   able       whether the connected role may run it
-- An installation that lacks nothing gives no row, so a second upgrade rewrites no catalog row.
-- Parameters: schema; owner, writer, reader, monitor, relay (NULL: manage no roles); login (whom to let own the schema);
-- read_only (tables that writers only read), monitored (tables that monitors read), callable (functions of writers);
-- mirrored (tables that the relay reads), mirror_stands (tables it writes), relaying (functions it calls), reading
-- (functions of all who read klines).
WITH me AS (
    SELECT rolname AS name, rolsuper, rolsuper OR rolcreaterole AS makes_roles,
           current_setting('server_version_num')::int >= 160000 AS v16,
           has_database_privilege(current_database(), 'CREATE') AS makes_schemas
    FROM pg_roles WHERE rolname = current_user
), role AS (
    SELECT kind, wanted.name, pg_roles.oid AS found, pg_roles.oid IS NOT NULL OR me.makes_roles AS usable
    FROM me, (VALUES ('owner', CAST(:owner AS text)), ('writer', :writer), ('reader', :reader), ('monitor', :monitor),
                    ('relay', :relay))
        AS wanted (kind, name)
    LEFT JOIN pg_roles ON rolname = wanted.name
    WHERE wanted.name IS NOT NULL
), owner AS (
    -- acts: may I act as the owner role now; joins: could I let others and myself in
    SELECT role.*,
           CASE WHEN found IS NULL THEN false
                WHEN rolsuper THEN true
                WHEN v16 THEN pg_has_role(me.name, role.name, 'SET') AND pg_has_role(me.name, role.name, 'USAGE')
                ELSE pg_has_role(me.name, role.name, 'MEMBER') END AS acts,
           CASE WHEN rolsuper THEN true
                WHEN found IS NULL THEN makes_roles
                WHEN pg_has_role(me.name, role.name, 'MEMBER WITH ADMIN OPTION') THEN true
                ELSE makes_roles AND NOT v16 END AS joins
    FROM role, me WHERE kind = 'owner'
), space AS (
    SELECT oid, nspowner, nspacl, pg_has_role(nspowner, 'USAGE') AS mine,
           has_schema_privilege(oid, 'USAGE, CREATE') AS open
    FROM pg_namespace WHERE nspname = :schema
), home AS (
    -- the owner role takes the schema over where I may give it away; else its owner stays
    SELECT space.oid,
           CASE WHEN owner.name IS NOT NULL AND (space.oid IS NULL OR space.mine OR owner.found = space.nspowner)
                THEN owner.name
                ELSE coalesce(pg_get_userbyid(space.nspowner), me.name) END AS keeper
    FROM me LEFT JOIN owner ON true LEFT JOIN space ON true
), relation AS (
    SELECT oid, relname::text AS name, CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind,
           relispartition AS part, relowner AS owned_by,
           -- a partition of klines that tells of what is inserted as klines does
           relispartition AND relkind = 'r' AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid
                                                        AND tgname = 'mirror_insert') AS loaded,
           coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner)) AS acl,
           format('%I.%I', :schema, relname) AS label, pg_has_role(relowner, 'USAGE') AS mine,
           CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                        ELSE 'TABLE' END AS noun,
           -- the sequence of a column goes with its table
           relkind = 'S' AND EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass
                                     AND objid = pg_class.oid AND deptype IN ('a', 'i')) AS follows
    FROM pg_class WHERE relnamespace = (SELECT oid FROM space) AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
), routine AS (
    SELECT oid, proname::text AS name, 'FUNCTION' AS kind, false AS part, proowner AS owned_by,
           false AS loaded,
           coalesce(proacl, acldefault('f', proowner)) AS acl,
           format('%I.%I(%s)', :schema, proname, pg_get_function_identity_arguments(oid)) AS label,
           pg_has_role(proowner, 'USAGE') AS mine, 'FUNCTION' AS noun, false AS follows
    FROM pg_proc WHERE pronamespace = (SELECT oid FROM space) AND prokind = 'f'
), object AS (
    SELECT * FROM relation
    UNION ALL
    SELECT * FROM routine
    UNION ALL
    SELECT coalesce(space.oid, 0), :schema, 'SCHEMA', false, space.nspowner, false,
           coalesce(space.nspacl, acldefault('n', coalesce(space.nspowner, 10))), format('%I', :schema),
           coalesce(space.mine, true), 'SCHEMA', false
    FROM me LEFT JOIN space ON true
), wanted AS (
    SELECT object.kind, object.oid, role.name AS grantee, privilege
    FROM object, role, unnest(CAST(CASE
        WHEN object.kind = 'SCHEMA' THEN '{USAGE}'
        WHEN loaded AND role.kind = 'writer' THEN '{INSERT}'
        WHEN part THEN '{}'  -- a direct write to a partition would pass by its parent's triggers
        WHEN object.kind = 'FUNCTION' AND role.kind = 'writer' AND object.name = ANY (:callable) THEN '{EXECUTE}'
        WHEN object.kind = 'FUNCTION' AND role.kind = 'relay' AND object.name = ANY (:relaying) THEN '{EXECUTE}'
        WHEN object.kind = 'FUNCTION' AND role.kind <> 'monitor' AND object.name = ANY (:reading) THEN '{EXECUTE}'
        WHEN object.kind = 'FUNCTION' THEN '{}'
        WHEN role.kind = 'relay' THEN CASE WHEN object.name = ANY (:mirror_stands) THEN '{SELECT,INSERT,UPDATE}'
                                           WHEN object.name = ANY (:mirrored) THEN '{SELECT}' ELSE '{}' END
        WHEN role.kind = 'monitor' THEN CASE WHEN object.name = ANY (:monitored) THEN '{SELECT}' ELSE '{}' END
        WHEN role.kind = 'reader' OR object.name = ANY (:read_only) THEN '{SELECT}'
        WHEN object.kind = 'SEQUENCE' THEN '{USAGE,SELECT}'
        ELSE '{SELECT,INSERT,UPDATE,DELETE}' END AS text[])) AS privilege
    WHERE role.kind <> 'owner'
), given AS (
    SELECT object.kind, object.oid, coalesce(role.name, 'PUBLIC') AS grantee, acl.privilege_type AS privilege
    FROM object, aclexplode(object.acl) AS acl LEFT JOIN role ON role.found = acl.grantee
    WHERE (acl.grantee = 0 OR role.kind <> 'owner') AND acl.grantee <> coalesce(object.owned_by, 1)
), change AS (
    SELECT 'GRANT' AS verb, * FROM (SELECT * FROM wanted EXCEPT SELECT * FROM given) AS lacking
    UNION ALL
    SELECT 'REVOKE', * FROM (SELECT * FROM given EXCEPT SELECT * FROM wanted) AS excess
), later_wanted AS (  -- on tables made later
    SELECT noun, role.name AS grantee, privilege
    FROM (VALUES ('TABLES', 'writer', '{SELECT,INSERT,UPDATE,DELETE}'), ('TABLES', 'reader', '{SELECT}'),
                 ('SEQUENCES', 'writer', '{USAGE,SELECT}'), ('SEQUENCES', 'reader', '{SELECT}'))
        AS rule (noun, kind, privileges)
    JOIN role USING (kind), unnest(CAST(rule.privileges AS text[])) AS privilege
), later_given AS (
    SELECT CASE defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' END, role.name, acl.privilege_type
    FROM pg_default_acl, home, aclexplode(defaclacl) AS acl JOIN role ON role.found = acl.grantee
    WHERE defaclnamespace = home.oid AND defaclrole = (SELECT oid FROM pg_roles WHERE rolname = home.keeper)
), step (place, label, statement, able) AS (
    SELECT 1, role.name, format('CREATE ROLE %I NOLOGIN', role.name), me.makes_roles
    FROM role, me WHERE found IS NULL
    UNION ALL
    SELECT 2, '', format('GRANT %I TO %I', owner.name, :login)
                  || CASE WHEN v16 THEN ' WITH INHERIT TRUE, SET TRUE' ELSE '' END, joins
    FROM owner, me, (SELECT oid, rolsuper FROM pg_roles WHERE rolname = :login) AS login
    WHERE NOT login.rolsuper
      AND CASE WHEN found IS NULL THEN true
               WHEN v16 THEN NOT (pg_has_role(login.oid, found, 'SET') AND pg_has_role(login.oid, found, 'USAGE'))
               ELSE NOT pg_has_role(login.oid, found, 'MEMBER') END
    UNION ALL
    SELECT 3, '', format('CREATE SCHEMA IF NOT EXISTS %I AUTHORIZATION %I', :schema, coalesce(
               CASE WHEN owner.acts OR owner.joins OR NOT me.makes_schemas THEN owner.name END, me.name)),
           me.makes_schemas
    FROM me LEFT JOIN owner ON true WHERE NOT EXISTS (SELECT FROM space)
    UNION ALL
    SELECT 3, '', format('ALTER SCHEMA %I OWNER TO %I', :schema, owner.name),
           space.mine AND (owner.acts OR owner.joins) AND me.makes_schemas
    FROM space, owner, me WHERE owner.found IS DISTINCT FROM space.nspowner
    UNION ALL
    SELECT 4, label, format('ALTER %s %s OWNER TO %I', noun, label, owner.name),
           object.mine AND (owner.acts OR owner.joins) AND (space.mine OR space.open)
    FROM object, owner, space
    WHERE object.kind <> 'SCHEMA' AND NOT follows AND owner.found IS DISTINCT FROM owned_by
    UNION ALL
    SELECT CASE change.kind WHEN 'SCHEMA' THEN 5 ELSE 6 END, label,
           format('%s %s ON %s %s %s %s', verb, string_agg(privilege, ', ' ORDER BY privilege), change.kind, label,
                  CASE verb WHEN 'GRANT' THEN 'TO' ELSE 'FROM' END,
                  CASE grantee WHEN 'PUBLIC' THEN grantee ELSE quote_ident(grantee) END),
           bool_and(object.mine AND coalesce(role.usable, true))
    FROM change JOIN object USING (kind, oid) LEFT JOIN role ON role.name = grantee
    GROUP BY change.kind, label, verb, grantee
    UNION ALL
    SELECT 7, noun, format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA %I GRANT %s ON %s TO %I', home.keeper,
                           :schema, string_agg(privilege, ', ' ORDER BY privilege), noun, grantee),
           bool_and(role.usable AND CASE WHEN home.keeper = owner.name THEN owner.acts OR owner.joins
                                         ELSE pg_has_role(home.keeper, 'USAGE') END)
    FROM (SELECT * FROM later_wanted EXCEPT SELECT * FROM later_given) AS lacking, role, owner, home
    WHERE role.name = grantee
    GROUP BY home.keeper, noun, grantee
    UNION ALL
    SELECT 8, privilege, format('GRANT %s ON DATABASE %I TO %I', privilege, datname, role.name),
           role.usable AND pg_has_role(datdba, 'USAGE')
    FROM pg_database, role,
         unnest(CAST(CASE role.kind WHEN 'writer' THEN '{CONNECT,TEMPORARY}' ELSE '{CONNECT}' END AS text[]))
             AS privilege
    WHERE datname = current_database()
      AND CASE WHEN found IS NULL THEN true ELSE NOT has_database_privilege(found, datname, privilege) END
      AND NOT EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) AS acl
                      WHERE acl.grantee = 0 AND acl.privilege_type = privilege)
)
SELECT statement, able FROM step ORDER BY place, label, statement
