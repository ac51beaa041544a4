"""orders"""

import sqlalchemy as sa
from alembic import op

revision = "c2a94d1be830"
down_revision = "5b1f0e0a7c11"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table and its index."""
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("customer_id", sa.Integer(), sa.ForeignKey("customer.id"), nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
        sa.Column("placed_at", sa.DateTime(), server_default=sa.func.now(), nullable=False),
    )
    op.create_index("ix_orders_customer_id", "orders", ["customer_id"])


def downgrade() -> None:
    """Drops them."""
    op.drop_table("orders")
