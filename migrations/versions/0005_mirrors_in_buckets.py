"""The mirrors may be spread over several buckets, which a Redis Cluster keeps on several machines.

A bucket is a row of mirror_state. The relay's role may not make or remove rows there; it may call the function that
does, which leaves nothing mirrored, so that whatever relay comes next mirrors everything anew.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE FUNCTION spread_mirrors(buckets text[]) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
        DECLARE
            last_server bigint;
            last_form text;
        BEGIN
            IF coalesce(cardinality(buckets), 0) NOT BETWEEN 1 AND 64 THEN
                RAISE EXCEPTION 'the mirrors take 1 to 64 buckets, not %', coalesce(cardinality(buckets), 0);
            END IF;
            -- Whoever leads ends its batch first.
            PERFORM FROM mirror_state ORDER BY bucket FOR UPDATE;
            -- An older Helios goes on leaving these mirrors alone.
            SELECT coalesce(max(server), 0), coalesce(max(form), '') INTO last_server, last_form FROM mirror_state;
            DELETE FROM mirror_points;
            DELETE FROM mirror_state;
            INSERT INTO mirror_state (bucket, server, form)
            SELECT each, last_server, last_form FROM unnest(buckets) AS each;
            -- No Redis holds this token.
            INSERT INTO mirror_points (bucket, number, token, snapshot, relayed_at)
            SELECT each, 0, 'nothing yet', '1:1:', '1970-01-01 00:00:00+00' FROM unnest(buckets) AS each;
        END
        $$
    """)
    op.execute(
        "COMMENT ON FUNCTION spread_mirrors(text[]) IS 'Has the mirrors stand in these buckets of keys, in no other; "
        "everything is to be mirrored anew'"
    )
    op.execute("REVOKE ALL ON FUNCTION spread_mirrors(text[]) FROM PUBLIC")


def downgrade() -> None:
    op.execute("SELECT spread_mirrors('{0}') WHERE EXISTS (SELECT FROM mirror_state WHERE bucket <> '0')")
    op.execute("DROP FUNCTION spread_mirrors(text[])")
