"""relay schema 3

Revision ID: 9a41d0c7e6f2
Revises: 8c5d7711e0fa
Create Date: 2026-11-23 13:59:59.910425

"""
from typing import Sequence, Union

from alembic import op
import sqlalchemy as sa
from relay.migrations import downgrade_to, upgrade_to

# revision identifiers, used by Alembic.
revision: str = '9a41d0c7e6f2'
down_revision: Union[str, Sequence[str], None] = '8c5d7711e0fa'
branch_labels: Union[str, Sequence[str], None] = None
depends_on: Union[str, Sequence[str], None] = None


def upgrade() -> None:
    """Upgrade schema."""
    upgrade_to(3)


def downgrade() -> None:
    """Downgrade schema."""
    downgrade_to(0)
