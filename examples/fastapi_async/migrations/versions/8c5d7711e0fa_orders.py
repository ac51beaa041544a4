"""orders"""

import sqlalchemy as sa
from alembic import op

revision = "8c5d7711e0fa"
down_revision = "1f6a30c9d2b4"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table and its index."""
    op.create_table(
        "placed_order",
        sa.Column("id", sa.Uuid(), primary_key=True),
        sa.Column("product_id", sa.Integer(), sa.ForeignKey("product.id"), nullable=False),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
    )
    op.create_index("ix_placed_order_product_id", "placed_order", ["product_id"])


def downgrade() -> None:
    """Drops them."""
    op.drop_table("placed_order")
