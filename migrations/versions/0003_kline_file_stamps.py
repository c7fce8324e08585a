"""A file of klines is known again by its stamp, so that an unchanged one need not even be read."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "kline_files",
        sa.Column(
            "stamp",
            sa.Text(),
            nullable=True,
            comment="Device, inode, size and times of the file that held it last; NULL where too fresh to tell",
        ),
    )


def downgrade() -> None:
    op.drop_column("kline_files", "stamp")
