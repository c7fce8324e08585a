"""${message}.

Beside live trading:
- Name no schema: the connection's search_path holds the one that is migrated.
- Each revision is one transaction under a short lock timeout, tried again while a table is in use; keep it short.
- A new column is nullable or has a constant default. A new constraint is added NOT VALID, and validated in the
  next revision.
- An index on a table with rows: op.create_index_concurrently(name, table, columns), in a revision of its own.
  On a partitioned table it is built part by part, then attached.
- A function carries its own search_path (SET search_path FROM CURRENT), and PUBLIC may not execute it.
- A table, column or constraint that services still use is dropped one release after they stopped.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}


def downgrade() -> None:
    ${downgrades if downgrades else "pass"}
