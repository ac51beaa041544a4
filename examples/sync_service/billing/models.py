"""What billing keeps."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the service."""


class Account(Base):
    """Somebody who pays."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    plan: Mapped[str]


class Invoice(Base):
    """What an account owes: open, overdue or paid."""

    __tablename__ = "invoice"
    __table_args__ = (UniqueConstraint("account_id", "due_on"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    state: Mapped[str]
    due_on: Mapped[date]
