"""What may be served, when it is refreshed, and how chance keeps processes from doing so together."""

from __future__ import annotations

import pytest

from relay.cache.arguments import digest_of_arguments
from relay.core.freshness import Copy, Verdict, early_by, jittered, judge
from relay.core.policy import Bounded, Eventual, Session, Strong
from relay.core.record import VERSION_MAX
from relay.core.stamps import digest_of

FRESH = Copy(version=5, age=1.0, soft_left=10.0, hard_left=20.0, load=0.1)


@pytest.mark.parametrize(
    ("copy", "need", "policy", "verdict"),
    [
        (FRESH, 5, Eventual(), Verdict.SERVE),
        (FRESH, 6, Eventual(), Verdict.REFUSE),
        (FRESH, 6, Session(), Verdict.REFUSE),
        (FRESH, 0, Strong(), Verdict.REFUSE),
        (FRESH, 0, Bounded(1.0), Verdict.SERVE),
        (FRESH, 0, Bounded(0.9), Verdict.REFUSE),
        (FRESH._replace(age=None), 0, Bounded(1e9), Verdict.REFUSE),
        (FRESH._replace(age=None), 0, Eventual(), Verdict.SERVE),
        (FRESH._replace(soft_left=0.0), 0, Eventual(), Verdict.REFRESH),
        (FRESH._replace(soft_left=None, hard_left=None), 0, Eventual(), Verdict.SERVE),
        (FRESH._replace(hard_left=0.0), 0, Eventual(), Verdict.REFUSE),
    ],
)
def test_a_copy_is_served_if_its_version_its_age_and_its_ttl_are_good_enough(copy, need, policy, verdict):
    assert judge(copy, need, policy, beta=1.0, draw=1.0) is verdict


def test_a_copy_that_takes_long_to_load_is_refreshed_earlier_by_chance():
    slow = FRESH._replace(load=5.0)
    assert judge(slow, 0, Eventual(), beta=1.0, draw=0.13) is Verdict.REFRESH
    assert judge(slow, 0, Eventual(), beta=1.0, draw=0.14) is Verdict.SERVE
    assert judge(slow, 0, Eventual(), beta=0.0, draw=1e-300) is Verdict.SERVE
    assert early_by(2.0, 1.0, 1.0) == 0


def test_a_ttl_is_longer_or_shorter_by_at_most_the_jitter():
    assert jittered(600, 0.1, 0.0) == pytest.approx(540)
    assert jittered(600, 0.1, 1.0) == pytest.approx(660)
    assert jittered(600, 0.0, 0.3) == 600


def test_a_digest_of_stamps_is_a_version_and_zero_if_one_is_missing():
    assert digest_of([b"a", b"b"]) != digest_of([b"ab", b""]) != digest_of([b"b", b"a"])
    assert all(0 < digest_of([bytes([one])]) <= VERSION_MAX for one in range(200))
    assert digest_of([b"a", None]) == 0
    assert digest_of([]) > 0


def test_arguments_that_differ_have_digests_that_differ():
    values = [None, 0, False, 0.0, "", "0", b"", b"0", [], {}, set(), [0], ["0"], [[0]], [0, 0], {"a": 0}, {0: "a"}]
    assert len({digest_of_arguments({"q": value}) for value in values}) == len(values)
    assert digest_of_arguments({"a": 1, "b": 2}) != digest_of_arguments({"a": 12})


def test_arguments_that_mean_the_same_have_the_same_digest_in_every_process():
    assert digest_of_arguments({"q": {"a": 1, "b": [2]}}) == digest_of_arguments({"q": {"b": (2,), "a": 1}})
    assert digest_of_arguments({"q": {3, 1, 2}}) == digest_of_arguments({"q": frozenset([1, 2, 3])})
    assert digest_of_arguments({"q": "x"}) == "19e5f0eadda320c1c15c5fcf43c204aa"


def test_an_argument_of_which_nobody_knows_the_identity_is_refused():
    for value in (object(), lambda: 1, [object()]):
        with pytest.raises(TypeError):
            digest_of_arguments({"q": value})
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(TypeError):
        digest_of_arguments({"q": deep})
