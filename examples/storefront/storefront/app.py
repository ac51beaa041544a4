"""The HTTP interface: `uvicorn storefront.app:app`, as many instances as you like."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from relay.cache import current_session
from relay.cache.asgi import SessionMiddleware
from relay.outbox import wrote_on_commit

from storefront.copies import cache, engine, kept_right, product, search, sessions
from storefront.models import Base, Product


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Creates the table, where a service of yours has migrations, and keeps the copies right while it runs."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with kept_right():
        yield


app = FastAPI(lifespan=lifespan)
# Whoever has written reads what was written, from any instance: the session travels in a cookie.
app.add_middleware(SessionMiddleware, sessions=cache.sessions, secure=False)


class ProductState(BaseModel):
    """What a product is made of."""

    name: str
    price: Decimal = Field(gt=0)


@app.put("/products/{key}")
async def put_product(key: int, given: ProductState) -> dict[str, Any]:
    """Writes a product and its event in one transaction."""
    async with sessions() as session, session.begin():
        if (reads := current_session()) is not None:
            wrote_on_commit(session, reads)
        await session.merge(Product(id=key, **given.model_dump()))
    return {"id": key}


@app.get("/products/{key}")
async def get_product(key: int) -> dict[str, Any]:
    """From the nearest copy that this client may see."""
    found = await product.read(key)
    if found.value is None:
        raise HTTPException(404)
    return {**found.value, "version": found.version, "from": found.tier}


@app.get("/search")
async def find(text: str) -> list[dict[str, Any]]:
    """At most a minute old, and newer once a product has changed."""
    return await search(text)
