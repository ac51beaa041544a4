"""customers"""

import sqlalchemy as sa
from alembic import op

revision = "5b1f0e0a7c11"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table."""
    op.create_table(
        "customer",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("email", sa.String(), nullable=False, unique=True),
    )


def downgrade() -> None:
    """Drops it."""
    op.drop_table("customer")
