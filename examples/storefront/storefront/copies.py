"""The cached reads, and what keeps them right. Everything that an endpoint needs to know of caching is in this file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from relay.cache import AsyncCache, AsyncRedisShared, Local, Need, RedisShared, Sessions, Versioned, presets
from relay.consumer import Change, Consumer, Feed, Stamp
from relay.outbox import get_versioned
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from storefront.models import Product

REDIS = os.environ["REDIS_URL"]
KAFKA = {"bootstrap.servers": os.environ["KAFKA"]}
TOPICS = ["relay.changes"]

engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)

local = Local(entries_max=10_000, ttl=300)
cache = AsyncCache(
    "storefront",
    local=local,
    shared=AsyncRedisShared.from_url(REDIS, namespace="storefront"),
    sessions=Sessions([os.environ["SESSION_KEY"].encode()], namespace="storefront"),
)


@cache.entity("product", **presets.user_profile())
async def product(key: int, need: Need) -> Versioned[dict[str, Any] | None]:
    """A product as the API shows it. With a replica at hand, `need` would say when it will not do."""
    async with sessions() as session:
        row = await get_versioned(session, Product, key)
    return Versioned(None if row.value is None else shown(row.value), row.version, row.cacheable)


@cache.derived("search", depends=lambda _: ["products"], **presets.search_results(ttl=60, soft_ttl=30))
async def search(text: str) -> list[dict[str, Any]]:
    """The first products whose name has the text in it."""
    async with sessions() as session:
        found = await session.scalars(
            select(Product).where(Product.name.icontains(text, autoescape=True)).order_by(Product.name).limit(20)
        )
        return [shown(each) for each in found]


def shown(product: Product) -> dict[str, Any]:
    """What clients see, and what is cached: JSON."""
    return {"id": product.id, "name": product.name, "price": str(product.price)}


def on_product(_: Change) -> Stamp:
    """Any change of a product may change what is found."""
    return Stamp("products")


@asynccontextmanager
async def kept_right() -> AsyncIterator[None]:
    """While the service runs: its share of the consumer group, and the feed of its own memory."""
    shared = RedisShared.from_url(REDIS, namespace="storefront")
    consumer = Consumer(kafka=KAFKA, topics=TOPICS, group="storefront-cache", shared=shared)
    consumer.on("product")(on_product)
    async with consumer, Feed(kafka=KAFKA, topics=TOPICS, local=local, shared=shared), cache:
        yield
    await engine.dispose()
