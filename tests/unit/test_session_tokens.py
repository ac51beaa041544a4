"""Session tokens: what one process signs another reads, and nobody else can make or change one."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import token
from relay.core.token import Floor, Floors, Refusal, fingerprint, merged, signed, trimmed, verified

KEY, OTHER = b"k" * 32, b"o" * 32
NOW = 1_800_000_000

versions = st.integers(1, 2**53 - 1)
floor = st.builds(Floor, versions, st.integers(NOW - 50, NOW + 200), st.booleans())
forgotten = st.sampled_from([0, NOW - 5, NOW + 30])
floors = st.builds(Floors, st.dictionaries(st.binary(min_size=8, max_size=8), floor, max_size=60), forgotten)
few_floors = st.builds(Floors, st.dictionaries(st.sampled_from([b"a" * 8, b"b" * 8, b"c" * 8]), floor), forgotten)


def least(known: Floors, name: bytes, now: int) -> float:
    """What a session asks of an entity: a version, 0 for any, infinity for the primary."""
    found = known.by_entity.get(name)
    if found is not None and found.until > now:
        return found.version
    return float("inf") if known.forgotten_until > now else 0


@given(floors, st.integers(0, 300))
def test_a_token_asks_for_no_less_than_its_session_did(known, later):
    """At any later time, of any entity, also of those that had no room in it."""
    read = verified(signed(known, KEY, "shop", NOW), [KEY], "shop", NOW + later)
    if isinstance(read, Refusal):
        assert read is Refusal.EXPIRED
        read = token.NOTHING
    for name in [*known.by_entity, b"unknown!"]:
        assert least(read, name, NOW + later) >= least(known, name, NOW + later)


@given(floors)
def test_a_small_session_comes_back_as_it_was(known):
    """Up to 32 floors: nothing is forgotten, so that nothing goes to the primary that need not."""
    alive = {name: one for name, one in known.by_entity.items() if one.until > NOW}
    read = verified(signed(known, KEY, "shop", NOW), [KEY], "shop", NOW)
    if len(alive) <= token.FLOORS_MAX and (alive or known.forgotten_until > NOW):
        assert read == Floors(alive, known.forgotten_until if known.forgotten_until > NOW else 0)


@given(floors)
def test_a_token_is_small_enough_for_a_cookie(known):
    """Whatever the session holds, and of characters that a cookie may have."""
    text = signed(known, KEY, "shop", NOW)
    assert len(text) <= 1000
    assert text.isascii()
    assert text.replace("-", "").replace("_", "").isalnum()


@given(floors, st.data())
def test_a_changed_token_is_refused(known, data):
    """Any one character changed, any end cut off, anything appended."""
    text = signed(known, KEY, "shop", NOW)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters().filter(lambda c: c != text[place]))
    for changed in (text[:place] + character + text[place + 1 :], text[:place], text + character):
        assert verified(changed, [KEY], "shop", NOW) in (Refusal.FORGED, Refusal.MALFORMED)


@given(floors, floors)
def test_two_tokens_cannot_be_put_together(one, other):
    """The body of one under the signature of the other."""
    first, second = (token._decoded(signed(each, KEY, "shop", NOW)) for each in (one, other))
    if first[:-32] != second[:-32]:
        crossed = token.urlsafe_b64encode(first[:-32] + second[-32:]).decode().rstrip("=")
        assert verified(crossed, [KEY], "shop", NOW) is Refusal.FORGED


@given(st.text(max_size=2100))
def test_any_text_is_refused_and_none_is_an_exception(text):
    """Half a surrogate pair, other alphabets, two kilobytes: the request goes on."""
    expected = {Refusal.OVERSIZED} if len(text) > 2048 else {Refusal.MALFORMED, Refusal.FORGED}
    assert verified(text, [KEY], "shop", NOW) in expected


@pytest.mark.parametrize(("keys", "namespace"), [([OTHER], "shop"), ([], "shop"), ([KEY], "shop2"), ([KEY], "")])
def test_a_foreign_token_is_refused(keys, namespace):
    """Of another key or another namespace."""
    text = signed(Floors({b"12345678": Floor(1, NOW + 9, True)}), KEY, "shop", NOW)
    assert verified(text, keys, namespace, NOW) is Refusal.FORGED


def test_a_namespace_does_not_run_into_the_body():
    """A token for `a` with a body that begins with b is none for `ab`: the length is signed too."""
    text = signed(token.NOTHING, KEY, "a", NOW)
    body = token._decoded(text)[:-32]
    assert token._mac(body[1:], KEY, "a" + body[:1].decode("latin-1")) != token._mac(body, KEY, "a")


def test_keys_rotate_without_a_lost_session():
    """First accepted everywhere, then signing, then gone."""
    known = Floors({b"12345678": Floor(7, NOW + 9, True)})
    old = signed(known, OTHER, "shop", NOW)
    assert verified(old, [KEY, OTHER], "shop", NOW) == known
    assert verified(signed(known, KEY, "shop", NOW), [OTHER, KEY], "shop", NOW) == known
    assert verified(old, [KEY], "shop", NOW) is Refusal.FORGED


def test_a_token_ends():
    """When its last floor has ended, and not before."""
    text = signed(Floors({b"12345678": Floor(7, NOW + 9, True)}), KEY, "shop", NOW)
    assert isinstance(verified(text, [KEY], "shop", NOW + 8), Floors)
    assert verified(text, [KEY], "shop", NOW + 9) is Refusal.EXPIRED


def test_a_newer_format_under_our_key_is_refused():
    """While two versions of the program run side by side."""
    body = b"\x02" + token._decoded(signed(token.NOTHING, KEY, "shop", NOW))[1:-32]
    text = token.urlsafe_b64encode(body + token._mac(body, KEY, "shop")).decode().rstrip("=")
    assert verified(text, [KEY], "shop", NOW) is Refusal.MALFORMED


@given(few_floors, few_floors, few_floors)
def test_merging_keeps_what_each_has_and_asks_for_no_order(one, two, three):
    """Requests of one session meet in any order."""
    assert merged(one, two) == merged(two, one)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))
    assert merged(one, one) == one
    for name in {*one.by_entity, *two.by_entity}:
        for each in (one, two):
            found = each.by_entity.get(name)
            if found is not None and found.until > NOW:
                assert least(merged(one, two), name, NOW) >= found.version


def test_writes_stay_longer_than_reads():
    """A page of a hundred reads does not push out what was written."""
    wrote = {b"written!": Floor(3, NOW + 10, True)}
    saw = {bytes([n]) * 8: Floor(1, NOW + 100, False) for n in range(100)}
    kept = trimmed(Floors(saw | wrote), NOW)
    assert len(kept.by_entity) == 32
    assert b"written!" in kept.by_entity
    assert kept.forgotten_until == NOW + 100


def test_names_are_told_apart():
    """Entities of one id, ids of one entity, and no accident of where the colon is: names have none."""
    assert len({fingerprint("user", "1"), fingerprint("order", "1"), fingerprint("user", "2")}) == 3


def test_signatures_are_compared_in_constant_time(monkeypatch):
    """Through `hmac.compare_digest`, once for each key: also when the first one fits."""
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(1) or a == b)
    verified(signed(token.NOTHING, KEY, "shop", NOW), [KEY, OTHER], "shop", NOW)
    assert len(compared) == 2
