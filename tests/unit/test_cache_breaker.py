"""The breaker lets readers wait once for a server that does not answer, and finds out when it does again."""

from __future__ import annotations

import pytest
from redis import exceptions

from relay.cache.redis.failures import Breaker, tier_error
from relay.cache.tiers import TierError


class Time:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def broken(time: Time, failures: int = 1, **settings) -> Breaker:
    """A breaker that draws no chance, after so many time-outs."""
    breaker = Breaker(clock=time, draw=lambda: 0.5, **settings)
    for _ in range(failures):
        breaker.failed("timeout")
    return breaker


def is_bypassed(breaker: Breaker) -> bool:
    try:
        breaker.admit()
    except TierError as error:
        return error.reason == "bypassed"
    return False


def test_one_failure_keeps_everybody_away_for_a_while():
    """After a time-out nobody asks until the while is over; then exactly one does."""
    time = Time()
    breaker = broken(time)
    assert is_bypassed(breaker)
    time.now += 0.0999
    assert is_bypassed(breaker)
    time.now += 0.0002
    assert not is_bypassed(breaker)
    assert is_bypassed(breaker)


def test_an_answer_lets_everybody_in():
    """A probe that is answered ends the bypass."""
    time = Time()
    breaker = broken(time)
    time.now += 1
    breaker.admit()
    breaker.succeeded()
    assert not any(is_bypassed(breaker) for _ in range(10))


def test_the_while_doubles_up_to_a_bound():
    """Each failed probe doubles the wait, and no wait is longer than the bound."""
    time = Time()
    breaker = broken(time, 0)
    waits = []
    for _ in range(40):
        breaker.failed("connection")
        since = time.now
        while is_bypassed(breaker):
            time.now += 0.01
        waits.append(round(time.now - since, 1))
    assert waits[:7] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert set(waits[7:]) == {5.0}


def test_a_prober_that_is_never_heard_of_again_is_replaced():
    """A probe that was cancelled keeps nobody out for ever."""
    time = Time()
    breaker = broken(time)
    time.now += 1
    breaker.admit()
    assert is_bypassed(breaker)
    time.now += 1
    assert not is_bypassed(breaker)


def test_failures_before_the_limit_bypass_nothing():
    """With a limit of three, two failures in a row change nothing, and an answer forgets them."""
    time = Time()
    breaker = broken(time, 2, failures_max=3)
    assert not is_bypassed(breaker)
    breaker.succeeded()
    breaker.failed("timeout")
    breaker.failed("timeout")
    assert not is_bypassed(breaker)
    breaker.failed("timeout")
    assert is_bypassed(breaker)


@pytest.mark.parametrize("reason", ["memory", "readonly", "auth", "cluster", "wrongtype", "refused", "script"])
def test_a_server_that_says_no_is_still_asked(reason):
    """A quick no to one operation says nothing about others, and costs nobody a wait."""
    breaker = Breaker()
    for _ in range(10):
        breaker.failed(reason)
    assert not is_bypassed(breaker)


def test_processes_do_not_come_back_together():
    """The wait is drawn between half and one and a half of its middle."""
    for draw, wait in ((0.0, 0.05), (1.0, 0.15)):
        time = Time()
        breaker = Breaker(clock=time, draw=lambda draw=draw: draw)
        breaker.failed("timeout")
        time.now += wait - 0.001
        assert is_bypassed(breaker)
        time.now += 0.002
        assert not is_bypassed(breaker)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (exceptions.TimeoutError("Timeout reading from socket"), "timeout"),
        (TimeoutError(), "timeout"),
        (exceptions.ConnectionError("Error 111 connecting to secret:6379. Connection refused."), "connection"),
        (ConnectionResetError(104, "reset"), "connection"),
        (exceptions.MaxConnectionsError("Too many connections"), "connections"),
        (exceptions.BusyLoadingError("Redis is loading the dataset in memory"), "loading"),
        (exceptions.ReadOnlyError("You can't write against a read only replica."), "readonly"),
        (exceptions.ResponseError("OOM command not allowed when used memory > 'maxmemory'."), "memory"),
        (
            exceptions.ResponseError("Error running script (call to f_1): @user_script:12: -OOM command not allowed"),
            "memory",
        ),
        (exceptions.ResponseError("Error running script: @user_script:12: -READONLY You can't write"), "readonly"),
        (exceptions.ResponseError("MOVED 3999 127.0.0.1:6381"), "cluster"),
        (exceptions.ResponseError("CLUSTERDOWN Hash slot not served"), "cluster"),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "readonly"),
        (exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"), "wrongtype"),
        (exceptions.NoPermissionError("this user has no permissions"), "auth"),
        (exceptions.AuthenticationError("NOAUTH Authentication required."), "auth"),
        (exceptions.ResponseError("NOAUTH Authentication required."), "auth"),
        (exceptions.ResponseError("unknown command `secret`"), "refused"),
        (exceptions.InvalidResponse("Protocol error"), "reply"),
        (exceptions.DataError("Invalid input"), "client"),
    ],
)
def test_every_foreign_error_has_a_reason_and_keeps_its_words(error, reason):
    """The reason is one of few words; what the server said, which repeats arguments, is not passed on."""
    told = tier_error(error)
    assert told.reason == reason
    assert str(told) == reason
