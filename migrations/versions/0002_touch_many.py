"""Entity changes of many rows at once."""

from __future__ import annotations

from relay.migrations import downgrade_to, upgrade_to

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Step 2 of relay.schema.steps."""
    upgrade_to(2, after=1)


def downgrade() -> None:
    """Takes the functions of step 2 away."""
    downgrade_to(1)
