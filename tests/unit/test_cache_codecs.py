"""What a codec reads is what was written, and bytes that it did not write are refused."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cache import codecs
from relay.cache.codecs import BytesCodec, JsonCodec, TextCodec
from relay.cache.models import DataclassCodec, PydanticCodec
from relay.errors import CacheError

WITHIN_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
    max_leaves=20,
)


class Colour(Enum):
    RED = "r"
    BLUE = "b"


@dataclass(frozen=True)
class Line:
    sku: str
    count: int


@dataclass
class Order:
    id: UUID
    at: datetime
    day: date
    clock: time
    took: timedelta
    price: Decimal
    colour: Colour
    raw: bytes
    lines: list[Line]
    place: tuple[int, str]
    marks: frozenset[str]
    notes: dict[str, int | None]
    free: Any = None
    numbers: tuple[float, ...] = field(default=())


class Model(pydantic.BaseModel):
    name: str
    at: datetime


ORDERS = st.builds(
    Order,
    id=st.uuids(),
    at=st.datetimes() | st.datetimes(timezones=st.just(UTC)),
    day=st.dates(),
    clock=st.times(),
    took=st.timedeltas(),
    price=st.decimals(allow_nan=False),
    colour=st.sampled_from(Colour),
    raw=st.binary(),
    lines=st.lists(st.builds(Line, st.text(), st.integers(0, 10))),
    place=st.tuples(st.integers(0, 9), st.text()),
    marks=st.frozensets(st.text()),
    notes=st.dictionaries(st.text(), st.none() | st.integers(0, 9)),
    free=WITHIN_JSON,
    numbers=st.tuples(st.floats(allow_nan=False, allow_infinity=False)),
)
A_MODEL = Model(name="n", at=datetime(2024, 2, 29, tzinfo=UTC))
ALL = [BytesCodec(), TextCodec(), JsonCodec(), DataclassCodec(Order), PydanticCodec(Model)]


def same(one: Any, other: Any) -> bool:
    """Equal, type by type: 1, 1.0 and True are three values."""
    return type(one) is type(other) and repr(one) == repr(other)


def by_standard_library(monkeypatch) -> JsonCodec:
    monkeypatch.setattr(codecs, "_json", lambda: (codecs._dump_json, json.loads))
    return JsonCodec()


@given(WITHIN_JSON)
def test_json_comes_back_as_it_was_with_either_library(value):
    """Each of the two libraries reads what the other one wrote, type by type."""
    with pytest.MonkeyPatch.context() as patch:
        plain = by_standard_library(patch)
    fast = JsonCodec()
    for writer in (plain, fast):
        for reader in (plain, fast):
            assert same(reader.decode(writer.encode(value)), value)


@pytest.mark.parametrize(
    "value",
    [
        (1, 2),
        {1: 2},
        {"a": {2, 3}},
        math.nan,
        math.inf,
        2**63,
        -(2**63) - 1,
        "\ud800",
        {"\ud800": 1},
        b"x",
        datetime(2024, 1, 1),
        UUID(int=1),
        Colour.RED,
        object(),
        Line("a", 1),
    ],
)
def test_json_refuses_what_would_come_back_as_something_else(value, monkeypatch):
    """The same values are refused with and without orjson, as such and inside of others."""
    for codec in (JsonCodec(), by_standard_library(monkeypatch)):
        for whole in (value, [value], {"k": [value]}):
            with pytest.raises(CacheError, match="RLY-901"):
                codec.encode(whole)


def test_no_error_tells_the_value():
    """A refused value may be a secret: the error names its type."""
    with pytest.raises(CacheError) as refused:
        TextCodec().encode("secret\ud800")
    assert "secret" not in str(refused.value)
    with pytest.raises(CacheError) as refused:
        JsonCodec().encode({("secret",): 1})
    assert "secret" not in str(refused.value)


def test_nesting_is_limited_when_writing():
    """A hundred lists in one another are written, and one more is refused."""
    value: Any = []
    for _ in range(codecs.DEPTH_MAX - 1):
        value = [value]
    assert JsonCodec().decode(JsonCodec().encode(value)) == value
    with pytest.raises(CacheError, match="RLY-901"):
        JsonCodec().encode([value])


@pytest.mark.parametrize("codec", ALL[2:], ids=lambda codec: type(codec).__name__)
def test_bytes_nested_without_end_are_refused_and_not_a_crash(codec, monkeypatch):
    """A hundred thousand brackets raise an exception, with and without orjson."""
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000):
        with pytest.raises(Exception):  # noqa: B017 - any is a miss
            codec.decode(data)
        with pytest.raises((ValueError, RecursionError)):
            by_standard_library(monkeypatch).decode(data)


def test_json_longer_than_the_limit_is_not_parsed():
    """What nobody of us has written is not even looked at."""
    with pytest.raises(ValueError, match="too long"):
        JsonCodec().decode(b" " * (codecs.BYTES_MAX + 1))


@given(st.binary())
def test_bytes_and_text_come_back_as_they_were(value):
    """Any bytes and any text are their own meaning."""
    assert BytesCodec().decode(BytesCodec().encode(value)) == value
    text = value.decode("latin-1")
    assert TextCodec().decode(TextCodec().encode(text)) == text


@pytest.mark.parametrize(("codec", "value"), [(BytesCodec(), "a"), (BytesCodec(), bytearray(1)), (TextCodec(), b"a")])
def test_bytes_and_text_are_not_taken_for_each_other(codec, value):
    """What would come back as another type is refused."""
    with pytest.raises(CacheError, match="RLY-901"):
        codec.encode(value)


@given(ORDERS)
def test_a_dataclass_comes_back_as_it_was(order):
    """Every field of every supported annotation is equal after the way there and back."""
    codec = DataclassCodec(Order)
    assert codec.decode(codec.encode(order)) == order


@given(WITHIN_JSON)
def test_json_of_another_shape_is_no_dataclass(value):
    """Whatever JSON says, only the exact fields with values of their types become an instance."""
    codec = DataclassCodec(Line)
    fits = type(value) is dict and value.keys() == {"sku", "count"}
    data = JsonCodec().encode(value)
    if not fits:
        with pytest.raises(ValueError):
            codec.decode(data)


@pytest.mark.parametrize(
    "data",
    [b'{"sku":"a"}', b'{"sku":"a","count":1,"more":2}', b'{"sku":"a","count":true}', b'{"sku":1,"count":1}', b"null"],
)
def test_a_class_that_changed_its_fields_does_not_read_old_bytes(data):
    """A field more, a field less, or another type is refused: the reader takes it for a miss."""
    with pytest.raises(ValueError):
        DataclassCodec(Line).decode(data)


def test_a_field_of_another_type_than_announced_is_refused():
    """A dataclass checks nothing by itself; its codec does."""
    with pytest.raises(CacheError, match="RLY-901"):
        DataclassCodec(Line).encode(Line("a", "1"))  # type: ignore[arg-type]
    with pytest.raises(CacheError, match="RLY-901"):
        DataclassCodec(Line).encode("a line")  # type: ignore[arg-type]


def test_an_annotation_without_a_form_is_refused_at_once():
    """A class that cannot be written is refused where the codec is made, not at the first miss."""

    @dataclass
    class Odd:
        value: complex

    with pytest.raises(CacheError, match="RLY-902"):
        DataclassCodec(Odd)


def test_a_model_comes_back_as_it_was():
    """A model of pydantic is equal after the way there and back."""
    codec = PydanticCodec(Model)
    assert codec.decode(codec.encode(A_MODEL)) == A_MODEL
    assert PydanticCodec(list[int]).decode(b"[1,2]") == [1, 2]


@given(st.binary(max_size=50))
def test_foreign_bytes_are_a_value_or_an_exception(data):
    """No bytes make a codec do anything else than return or raise what its protocol says."""
    for codec in ALL:
        with contextlib.suppress(ValueError, TypeError, KeyError, ArithmeticError):
            codec.decode(data)


def test_every_codec_has_an_id_of_its_own():
    """Records tell by it who can read them."""
    assert sorted(codec.id for codec in ALL) == [1, 2, 3, 4, 5]
