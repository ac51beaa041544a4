"""Kafka's own words about an error, fit to be shown: the daemon, the consumer and the command line all repeat them.

Whether a login is refused, a name is unknown or a broker is down is told to the error callback of a client and nowhere
else: the call itself only times out. So each client keeps what its callback last heard (`LastWords`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

LENGTH_MAX: Final = 300
SECRET: Final = re.compile(
    r"password|secret|\.pem$|jaas|assertion|token|oauthbearer\.config|credential|passphrase", re.IGNORECASE
)
"""Names of properties whose values are not shown: too many rather than one too few."""

STOPWATCH: Final = re.compile(r" \(after \d+ms in state [^()]*(\([^()]*\)[^()]*)*\)")
"""What librdkafka adds to errors of connections. It differs each time, and tells an operator nothing."""

CONSEQUENCES: Final = frozenset({"_ALL_BROKERS_DOWN", "_TIMED_OUT", "_MSG_TIMED_OUT"})
"""They say that there is no answer, never why: another error has the cause."""


def words_of(error: object, properties: Mapping[str, Any] | None = None) -> str:
    """Returns text and name of a foreign error, as in `Broker: Message size too large (MSG_SIZE_TOO_LARGE)`.

    One line, with values of secret properties replaced.

    Args:
        error: a KafkaError, a KafkaException, or anything else that a client raised.
        properties: those of the client, for the secrets among them.
    """
    cause = error.args[0] if isinstance(error, BaseException) and error.args else error
    if hasattr(cause, "code") and hasattr(cause, "name") and hasattr(cause, "str"):
        text, name = str(cause.str()), str(cause.name())
    elif isinstance(error, BaseException):
        text, name = str(error), type(error).__name__
    else:
        text, name = str(error), ""
    plain = "".join(character for character in " ".join(text.split()) if character.isprintable())
    plain = without_secrets(STOPWATCH.sub("", plain), properties or {})
    if len(plain) > LENGTH_MAX:
        plain = plain[: LENGTH_MAX - 3] + "..."
    return f"{plain} ({name})" if plain and name else plain or name


def without_secrets(text: str, properties: Mapping[str, Any]) -> str:
    """Replaces each value of a secret property where it stands in the text as a word."""
    secrets = {str(value) for name, value in properties.items() if SECRET.search(name) and str(value).strip()}
    for secret in sorted(secrets, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "***", text)
    return text


class LastWords:
    """The last error that a client's callback was told. Safe from any thread; `note` is the callback and never raises.

    "All brokers are down" follows every cause and does not replace it.
    """

    def __init__(self, properties: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        self._properties = {name: value for name, value in properties.items() if SECRET.search(name)}
        self._clock = clock
        self._lock = threading.Lock()
        self._held: tuple[str, str, float] | None = None

    def note(self, error: Any) -> None:
        """Keeps an error. The `error_cb` of the client."""
        name, words = str(error.name()), words_of(error, self._properties)
        with self._lock:
            if self._held is None or name not in CONSEQUENCES or self._held[0] in CONSEQUENCES:
                self._held = (name, words, self._clock())

    def forget(self) -> None:
        """Drops the error: the brokers have answered since."""
        with self._lock:
            self._held = None

    @property
    def words(self) -> str:
        """The error in its own words, empty if there was none since the last answer."""
        with self._lock:
            return self._held[1] if self._held else ""

    @property
    def age_seconds(self) -> float | None:
        """How long ago the callback was told, or None."""
        with self._lock:
            return self._clock() - self._held[2] if self._held else None

    def after(self, error: object) -> str:
        """Returns what to show of a failed call: the cause that was noted, or the words of this error."""
        return self.words or words_of(error, self._properties)
