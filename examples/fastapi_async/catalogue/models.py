"""What the catalogue keeps."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

from relay.outbox import track
from sqlalchemy import DateTime, ForeignKey, Numeric
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All tables of the service."""


class Product(Base):
    """Something that is sold."""

    __tablename__ = "product"

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    stock: Mapped[int]
    seen_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Order(Base):
    """So many of one product."""

    __tablename__ = "placed_order"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("product.id"), index=True)
    quantity: Mapped[int]
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))


track(Product, ignore=[Product.seen_at])
