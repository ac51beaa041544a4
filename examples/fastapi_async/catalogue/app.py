"""The HTTP interface: `uvicorn catalogue.app:app`. One request is one transaction, committed before it is answered."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from relay.outbox import emit
from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from catalogue.models import Order, Product

engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Closes the pool when the process ends."""
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


class NewProduct(BaseModel):
    """What a product is made of."""

    sku: str
    name: str
    price: Decimal = Field(gt=0)
    stock: int = Field(ge=0)


class ProductChange(BaseModel):
    """What may change of it."""

    name: str | None = None
    price: Decimal | None = Field(default=None, gt=0)


class NewOrder(BaseModel):
    """Who wants how many of what."""

    product_id: int
    quantity: int = Field(gt=0)


class Sale(BaseModel):
    """So many percent off everything."""

    percent: int = Field(gt=0, lt=100)


@app.post("/products", status_code=201)
async def add_product(new: NewProduct) -> dict[str, Any]:
    """Adds a product."""
    async with sessions.begin() as session:
        product = Product(**new.model_dump())
        session.add(product)
    return shown(product)


@app.get("/products/{product_id}")
async def read_product(product_id: int) -> dict[str, Any]:
    """Shows a product, and notes that somebody has looked at it."""
    async with sessions.begin() as session:
        product = await find(session, product_id)
        await session.execute(update(Product).where(Product.id == product_id).values(seen_at=func.now()))
        return shown(product)


@app.patch("/products/{product_id}")
async def change_product(product_id: int, change: ProductChange) -> dict[str, Any]:
    """Renames or prices a product."""
    async with sessions.begin() as session:
        product = await find(session, product_id)
        for name, value in change.model_dump(exclude_none=True).items():
            setattr(product, name, value)
    return shown(product)


@app.delete("/products/{product_id}", status_code=204)
async def remove_product(product_id: int) -> None:
    """Takes a product out."""
    async with sessions.begin() as session:
        await session.delete(await find(session, product_id))


@app.post("/sales")
async def hold_sale(sale: Sale) -> dict[str, int]:
    """Lowers all prices at once."""
    async with sessions.begin() as session:
        lowered = func.round(Product.price * (100 - sale.percent) / 100, 2)
        done = await session.execute(update(Product).values(price=lowered).returning(Product.id))
        return {"products": len(done.all())}


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder) -> dict[str, Any]:
    """Sells from stock; refused where there is too little."""
    async with sessions.begin() as session:
        product = await find(session, new.product_id, lock=True)
        if product.stock < new.quantity:
            raise HTTPException(409, "too few in stock")
        product.stock -= new.quantity
        order = Order(id=uuid4(), product_id=product.id, quantity=new.quantity, total=product.price * new.quantity)
        session.add(order)
        await emit(session, "orders", key=str(order.id), payload={"product": product.id, "total": str(order.total)})
    return {"id": str(order.id), "total": str(order.total)}


async def find(session: AsyncSession, product_id: int, *, lock: bool = False) -> Product:
    """The product, or the answer that there is none."""
    product = await session.get(Product, product_id, with_for_update=lock)
    if product is None:
        raise HTTPException(404, "no such product")
    return product


def shown(product: Product) -> dict[str, Any]:
    """As clients see it."""
    return {"id": product.id, "sku": product.sku, "name": product.name, "price": str(product.price)}
