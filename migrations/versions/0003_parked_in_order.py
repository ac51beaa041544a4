"""Every event that can be written can be read, parked and retried in order."""

from __future__ import annotations

from relay.migrations import downgrade_to, upgrade_to

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Step 3 of relay.schema.steps."""
    upgrade_to(3, after=2)


def downgrade() -> None:
    """Restores the functions of step 2."""
    downgrade_to(2)
