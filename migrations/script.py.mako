"""${message}"""

from __future__ import annotations

from alembic.util import CommandError
from migrations.steps import upgrade_to

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade() -> None:
    """Step ${int(up_revision)} of relay.schema.steps."""
    upgrade_to(${int(up_revision)})


def downgrade() -> None:
    """A step that can be undone without losing events says here how."""
    raise CommandError("step ${int(up_revision)} has no way back but a backup")
