"""relay schema 3

Revision ID: c7e02b95d814
Revises: 40b8a1e6c3d9
Create Date: 2026-11-23 14:00:00.807334

"""
from typing import Sequence, Union

from alembic import op
import sqlalchemy as sa
from relay.migrations import downgrade_to, upgrade_to

# revision identifiers, used by Alembic.
revision: str = 'c7e02b95d814'
down_revision: Union[str, Sequence[str], None] = '40b8a1e6c3d9'
branch_labels: Union[str, Sequence[str], None] = None
depends_on: Union[str, Sequence[str], None] = None


def upgrade() -> None:
    """Upgrade schema."""
    upgrade_to(3)


def downgrade() -> None:
    """Downgrade schema."""
    downgrade_to(0)
