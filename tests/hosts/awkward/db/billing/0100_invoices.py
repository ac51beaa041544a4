"""invoices"""

import sqlalchemy as sa
from alembic import op

revision = "0100"
down_revision = None
branch_labels = ("billing",)
depends_on = "0001"


def upgrade() -> None:
    """Creates the table and its index."""
    op.create_table(
        "invoice",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("customer_id", sa.Integer(), nullable=False),
        sa.Column("cents", sa.Integer(), nullable=False),
        sa.CheckConstraint("cents >= 0", name=op.f("ck_invoice_positive")),
        sa.ForeignKeyConstraint(["customer_id"], ["shop.customer.id"], name="fk_invoice_customer_id_customer"),
        sa.PrimaryKeyConstraint("id", name="pk_invoice"),
        schema="shop",
    )
    op.create_index("ix_shop_invoice_customer_id", "invoice", ["customer_id"], schema="shop")


def downgrade() -> None:
    """Drops them."""
    op.drop_table("invoice", schema="shop")
