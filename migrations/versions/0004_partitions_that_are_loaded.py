"""Partitions of klines tell the mirrors what is inserted into them, so that writers may load straight into one.

PostgreSQL writes a COPY into a partitioned table row by row where a trigger of that table has a transition table, as
klines has one for the mirrors. A partition with the same trigger takes many rows at a time, and tells of them as klines
would. So whoever may insert into klines may insert into its partitions too, and do nothing else with them. A statement
fires only the triggers of the table that it names: nothing is told twice.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHAT_IT_DID = "Takes every right on a table from all but its owner"
# The end of leave_to_owner(), before and now.
MIRRORED_ANEW = """
            EXECUTE format('CREATE OR REPLACE TRIGGER mirror_all AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s '
                           'FOR EACH STATEMENT EXECUTE FUNCTION mirror_all()', whose);"""
MIRRORED_AS_KLINES = """
            EXECUTE format('CREATE OR REPLACE TRIGGER mirror_all AFTER UPDATE OR DELETE OR TRUNCATE ON %s '
                           'FOR EACH STATEMENT EXECUTE FUNCTION mirror_all()', whose);
            EXECUTE format('CREATE OR REPLACE TRIGGER mirror_insert AFTER INSERT ON %s REFERENCING NEW TABLE AS '
                           'changed FOR EACH STATEMENT EXECUTE FUNCTION mirror_klines()', whose);
            FOR grantee IN
                SELECT entry.grantee FROM pg_class AS root, aclexplode(root.relacl) AS entry, pg_class AS leaf
                WHERE root.oid = 'klines'::regclass AND entry.privilege_type = 'INSERT'
                  AND entry.grantee NOT IN (0, root.relowner) AND leaf.oid = whose AND leaf.relkind = 'r'
                ORDER BY entry.grantee
            LOOP
                EXECUTE format('GRANT INSERT ON %s TO %s', whose, grantee::regrole);
            END LOOP;"""


def upgrade() -> None:
    replace_leave_to_owner(MIRRORED_AS_KLINES)
    leave_all_to_owner()
    comment_leave_to_owner(f"{WHAT_IT_DID}; who may insert into klines may do so into a partition of it")


def downgrade() -> None:
    op.execute("""
        DO $$
        DECLARE
            part regclass;
        BEGIN
            FOR part IN SELECT relid FROM pg_partition_tree('klines') WHERE level > 0 LOOP
                EXECUTE format('DROP TRIGGER IF EXISTS mirror_insert ON %s', part);
            END LOOP;
        END
        $$
    """)
    replace_leave_to_owner(MIRRORED_ANEW)
    leave_all_to_owner()
    comment_leave_to_owner(WHAT_IT_DID)


def leave_all_to_owner() -> None:
    op.execute("""
        DO $$
        BEGIN
            PERFORM leave_to_owner(relid) FROM pg_partition_tree('klines') WHERE level > 0;
        END
        $$
    """)


def replace_leave_to_owner(more: str) -> None:
    op.execute(f"""
        CREATE OR REPLACE FUNCTION leave_to_owner(whose regclass) RETURNS void
        LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
        DECLARE
            grantee oid;
        BEGIN
            -- Default privileges reach partitions too. A right on one would pass by the rights and triggers of klines.
            FOR grantee IN
                SELECT DISTINCT entry.grantee FROM pg_class, aclexplode(relacl) AS entry
                WHERE oid = whose AND entry.grantee <> relowner
            LOOP
                EXECUTE format('REVOKE ALL ON %s FROM %s', whose,
                               CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END);
            END LOOP;{more}
        END
        $$
    """)


def comment_leave_to_owner(words: str) -> None:
    op.execute(f"COMMENT ON FUNCTION leave_to_owner(regclass) IS '{words}'")
