"""The outbox, its lanes, entity versions, parked events, and the functions that write them."""

from __future__ import annotations

from relay.migrations import downgrade_to, upgrade_to

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Step 1 of relay.schema.steps."""
    upgrade_to(1)


def downgrade() -> None:
    """Drops the schema; refused while it holds events."""
    downgrade_to(0)
