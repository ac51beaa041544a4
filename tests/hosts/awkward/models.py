"""A shop whose tables lie in a schema of their own, with names by convention."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, ForeignKey, Index, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the application."""

    metadata = MetaData(
        schema="shop",
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        },
    )


class Customer(Base):
    """Somebody who orders."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Invoice(Base):
    """What somebody owes."""

    __tablename__ = "invoice"
    __table_args__ = (CheckConstraint("cents >= 0", name="positive"), Index(None, "customer_id"))

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("shop.customer.id"))
    cents: Mapped[int]
