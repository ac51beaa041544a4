"""${message}"""

from __future__ import annotations

from relay.migrations import downgrade_to, upgrade_to

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Step ${int(up_revision)} of relay.schema.steps."""
    upgrade_to(${int(up_revision)}, after=${int(up_revision) - 1})


def downgrade() -> None:
    """Back by one step, if it has a way back."""
    downgrade_to(${int(up_revision) - 1})
