"""Settings: from the environment and one TOML file, checked once at the start, each with a name, a unit and a default.

Order: environment, then the file, then the default. `RELAY_DATABASE_URL` and `RELAY_KAFKA_BOOTSTRAP_SERVERS` are the
two that a daemon needs. Any other setting `section.name` is `RELAY_SECTION__NAME`; with `_FILE` appended the variable
names a file that holds the value. Below `[kafka]` every librdkafka property passes through under its own name (in the
environment with `_` for `.`: `RELAY_KAFKA__SASL_PASSWORD`). Unknown names are errors that name the nearest known one.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

from relay.errors import ConfigError
from relay.kafka_properties import checked


def setting(
    default: Any = MISSING,
    *,
    doc: str,
    low: float | None = None,
    high: float | None = None,
    secret: bool = False,
) -> Any:
    """A field of a section with what the documentation says of it and the range that it may have."""
    return field(default=default, repr=not secret, metadata={"doc": doc, "low": low, "high": high, "secret": secret})


@dataclass(frozen=True, slots=True)
class Database:
    """`[database]`"""

    url: str = setting("", doc="Postgres, as a URL or key-value pairs. Several hosts are allowed.", secret=True)
    connect_timeout_seconds: float = setting(5.0, doc="How long one attempt to connect may take.", low=1, high=60)
    deadline_seconds: float = setting(
        10.0,
        doc="How long a statement may take before its connection is given up, from the client's side.",
        low=1,
        high=600,
    )


@dataclass(frozen=True, slots=True)
class Daemon:
    """`[daemon]`"""

    rows_max: int = setting(4000, doc="Events of one unit of work, at most.", low=1, high=50_000)
    bytes_max: int = setting(
        8_388_608,
        doc="Bytes of keys, headers and payloads of one unit of work; one event may exceed it.",
        low=65_536,
        high=1 << 30,
    )
    lanes_max: int = setting(32, doc="Lanes that one unit of work locks, at most.", low=1, high=1024)
    units_in_flight: int = setting(
        2, doc="Units at work at once: one is published while the next is read.", low=1, high=8
    )
    publish_timeout_seconds: float = setting(
        10.0,
        doc="How long an event may wait for Kafka's acknowledgement before its lanes are given up.",
        low=1,
        high=600,
    )
    takeover_seconds: float = setting(
        20.0, doc="After how long the database takes the lanes of a frozen relay away.", low=2, high=3600
    )
    shutdown_seconds: float = setting(
        25.0,
        doc="How long a stopping relay may finish its units; below the orchestrator's grace.",
        low=1,
        high=600,
    )
    poll_seconds_max: float = setting(
        0.025, doc="The longest pause between two looks into the outbox while awake.", low=0.001, high=10
    )
    idle_seconds: float = setting(
        1.0,
        doc="The pause between two looks while asleep: a commit wakes the relay before that.",
        low=0.1,
        high=60,
    )
    topic_retry_seconds: float = setting(
        5.0, doc="The pause before a topic that could not be written is looked at again.", low=0.1, high=600
    )


@dataclass(frozen=True, slots=True)
class Http:
    """`[http]`"""

    enabled: bool = setting(True, doc="Serve /livez, /readyz and /metrics.")
    host: str = setting("127.0.0.1", doc="The address to listen on. Anything else than loopback is your decision.")
    port: int = setting(
        0,
        doc="The port; 0 is 9464, or a free one if another instance on this host has it.",
        low=0,
        high=65_535,
    )


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`"""

    level: Literal["debug", "info", "warning", "error"] = setting("info", doc="The least level that is written.")
    format: Literal["auto", "json", "console"] = setting(
        "auto", doc="Text on a terminal, JSON elsewhere, unless told otherwise."
    )


@dataclass(frozen=True, slots=True)
class Redis:
    """`[redis]`"""

    url: str = setting(
        "", doc="The shared tier of the caches, for `relay cache`: redis://, rediss://, unix://.", secret=True
    )
    namespace: str = setting("relay", doc="The namespace of its keys, as the services name it.")


@dataclass(frozen=True, slots=True)
class Topic:
    """`[topics."NAME"]`, and `[topics."*"]` for all others."""

    order: Literal["pipelined", "strict"] = setting(
        "pipelined", doc="`strict` keeps one unacknowledged event per key: no repeated suffix, less speed."
    )
    poison: Literal["park", "block", "topic"] = setting(
        "park",
        doc="What happens to an event that Kafka refuses: `park` it, `block` its key, or a dead-letter `topic`.",
    )
    dead_letter: str = setting("", doc="The dead-letter topic of `topic`; empty is the topic's name with `.dead`.")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that was set, checked. `kafka` holds librdkafka's properties under their own names."""

    database: Database = field(default_factory=Database)
    kafka: Mapping[str, Any] = field(default_factory=dict, repr=False)
    daemon: Daemon = field(default_factory=Daemon)
    topics: Mapping[str, Topic] = field(default_factory=dict)
    http: Http = field(default_factory=Http)
    log: Log = field(default_factory=Log)
    redis: Redis = field(default_factory=Redis)

    def topic(self, name: str) -> Topic:
        """What holds for a topic: its own section, else that of `*`, else the defaults."""
        return self.topics.get(name) or self.topics.get("*") or Topic()


SECTIONS: dict[str, type[Any]] = {"database": Database, "daemon": Daemon, "http": Http, "log": Log, "redis": Redis}
SHORT: dict[str, tuple[str, str]] = {
    "RELAY_DATABASE_URL": ("database", "url"),
    "RELAY_KAFKA_BOOTSTRAP_SERVERS": ("kafka", "bootstrap.servers"),
    "RELAY_REDIS_URL": ("redis", "url"),
}
APART = {"RELAY_CONFIG", "RELAY_FAILPOINTS", "RELAY_ENV", "RELAY_TEST_CACHE", "RELAY_BENCH_SCALE"}
"""Variables with our prefix that are no settings."""

SERVICE_LINK = re.compile(
    r"RELAY(_[A-Z0-9]+)*_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9]+)*|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
SERVICE_PORT = re.compile(r"RELAY(_[A-Z0-9]+)*_PORT")
SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")
"""What Kubernetes injects into every container beside a service named relay or relay-*. `RELAY_HTTP_PORT` is such a
name, too, and a setting that somebody mistyped: the value tells."""

KAFKA_FILES = {
    "sasl.oauthbearer.assertion.file",
    "sasl.oauthbearer.assertion.private.key.file",
    "sasl.oauthbearer.assertion.jwt.template.file",
}
"""Properties of librdkafka that end in `file` themselves: in the environment they hold a path, not a secret's place."""


class Given(NamedTuple):
    """A value before it is checked, and where it comes from."""

    value: object
    origin: str


Raw = dict[str, dict[str, Given]]


def load(environ: Mapping[str, str]) -> Settings:
    """The settings of this process.

    Raises:
        ConfigError: names the field, the kind of value it got (never the value) and the fix. Nothing was started.
    """
    return load_with_origins(environ)[0]


def load_with_origins(environ: Mapping[str, str]) -> tuple[Settings, dict[str, str]]:
    """As `load`, and what set each `section.name`: a variable or the file. What is absent there is a default."""
    raw: Raw = {name: {} for name in (*SECTIONS, "kafka", "topics")}
    _read_file(environ.get("RELAY_CONFIG", ""), raw)
    _read_environment(environ, raw)
    plain = {section: {name: given.value for name, given in values.items()} for section, values in raw.items()}
    sections = {name: _section(name, plain[name], cls) for name, cls in SECTIONS.items()}
    topics = {name: _section(f'topics."{name}"', values, Topic) for name, values in plain["topics"].items()}
    _check_topics(topics)
    settings = Settings(kafka=checked(plain["kafka"]), topics=topics, **sections)
    _check_relations(settings)
    origins = {f"{section}.{name}": given.origin for section, values in raw.items() for name, given in values.items()}
    return settings, origins


def _read_file(path: str, raw: Raw) -> None:
    file = Path(path or "relay.toml")
    if not path and not file.is_file():
        return
    try:
        with file.open("rb") as opened:
            content = tomllib.load(opened)
    except (OSError, ValueError) as error:
        # TOMLDecodeError and UnicodeDecodeError are ValueErrors.
        kind = error.strerror if isinstance(error, OSError) else "it is not valid TOML"
        raise ConfigError(
            "RLY-205", f"cannot read the settings file {file.name}: {kind}", "correct RELAY_CONFIG or the file"
        ) from None
    for section, values in content.items():
        if section not in raw:
            raise ConfigError("RLY-202", f"unknown section [{section}] in {file.name}", _nearest(section, list(raw)))
        if not isinstance(values, dict):
            raise ConfigError(
                "RLY-203", f"{section} in {file.name} is a {_kind(values)}, not a section", f"write [{section}]"
            )
        for name, value in (_flat(values) if section == "kafka" else values).items():
            _take_from_file(raw, section, name, value, file.name)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """TOML reads `bootstrap.servers = ...` without quotes as tables in tables; a property has one dotted name."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out.update(_flat(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def _take_from_file(raw: Raw, section: str, name: str, value: object, file: str) -> None:
    """`url_file = "path"` stands for `url` with the content of that file. Topics may be called anything."""
    wanted, content = name, value
    if section != "topics" and name.endswith("_file"):
        wanted = name.removesuffix("_file")
        content = _secret_file(f"{section}.{name}", str(value))
    if wanted in raw[section]:
        raise _twice(f"{section}.{wanted}", f"{wanted} and {wanted}_file in {file}")
    raw[section][wanted] = Given(content, f"file {file}")


def _read_environment(environ: Mapping[str, str], raw: Raw) -> None:
    """Variables win over the file. Two variables for one setting contradict each other, whatever their order."""
    taken: dict[tuple[str, str], str] = {}
    for variable, text in environ.items():
        if not variable.startswith("RELAY_") or variable in APART or _is_service_link(variable, text):
            continue
        section, key, is_file = _name_of(variable)
        if (section, key) in taken:
            raise _twice(f"{section}.{key}", " and ".join(sorted((taken[section, key], variable))))
        taken[section, key] = variable
        raw[section][key] = Given(_secret_file(variable, text) if is_file else text, f"env {variable}")


def _is_service_link(variable: str, text: str) -> bool:
    if SERVICE_LINK.fullmatch(variable):
        return True
    return SERVICE_PORT.fullmatch(variable) is not None and SERVICE_URL.match(text) is not None


def _name_of(variable: str) -> tuple[str, str, bool]:
    """The setting that a variable names, and whether the variable holds the path of a file with its value."""
    for name, is_file in ((variable, False), (variable.removesuffix("_FILE"), True)):
        if name in SHORT:
            return *SHORT[name], is_file
        section, _, key = name.removeprefix("RELAY_").lower().partition("__")
        if section in SECTIONS and key in {f.name for f in fields(SECTIONS[section])}:
            return section, key, is_file
        prop = key.replace("_", ".")
        if section == "kafka" and prop and (is_file or not prop.endswith(".file") or prop in KAFKA_FILES):
            # librdkafka has one property with an underscore.
            return section, "log_level" if prop == "log.level" else prop, is_file
    raise ConfigError("RLY-202", f"unknown setting {variable}", _nearest(variable, _variables()))


def _twice(name: str, ways: str) -> ConfigError:
    return ConfigError("RLY-204", f"{name} is set twice, by {ways}", "keep one of them")


def _variables() -> list[str]:
    """Every variable that is known, for the nearest match."""
    named = [f"RELAY_{s.upper()}__{f.name.upper()}" for s, cls in SECTIONS.items() for f in fields(cls)]
    return [*SHORT, *named, "RELAY_CONFIG"]


def _secret_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        kind = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            "RLY-205", f"cannot read the file that {name} names: {kind}", "correct the path or its rights"
        ) from None


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {close[0]}?" if close else "remove it; docs/OPERATING.md lists all settings"


def _kind(value: object) -> str:
    return {str: "text", bool: "boolean", int: "integer", float: "number", list: "list", dict: "table"}.get(
        type(value), "value"
    )


def _section(section: str, values: object, cls: type[Any]) -> Any:
    if not isinstance(values, dict):
        raise ConfigError("RLY-203", f"[{section}] is a {_kind(values)}, not a table", f"write [{section}]")
    known = {f.name: f for f in fields(cls)}
    types = get_type_hints(cls)
    for name, value in values.items():
        if name not in known:
            if isinstance(value, dict):
                raise ConfigError(
                    "RLY-202",
                    f"unknown setting {section}.{name}, a table",
                    'write a topic\'s name in quotes: [topics."a.b"]',
                )
            raise ConfigError("RLY-202", f"unknown setting {section}.{name}", _nearest(name, list(known)))
    return cls(**{name: _value(f"{section}.{name}", known[name], types[name], value) for name, value in values.items()})


def _value(name: str, spec: Any, wanted: Any, value: object) -> Any:
    """The value in the field's type. An error never shows the value: it may be a secret that hit the wrong field."""
    if choices := get_args(wanted):
        if value not in choices:
            raise ConfigError("RLY-203", f"{name} is none of its values", "use one of " + ", ".join(choices))
        return value
    converted = _convert(value, wanted)
    if converted is None:
        kind = _kind(value)
        raise ConfigError(
            "RLY-203",
            f"{name} is a {kind} that is not a {_kind(wanted())}",
            f"see {name} in docs/OPERATING.md",
        )
    low, high = spec.metadata["low"], spec.metadata["high"]
    if low is not None and not low <= converted <= high:
        raise ConfigError("RLY-203", f"{name} is out of its range", f"use {low:g} to {high:g}")
    return converted


TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def _check_topics(topics: Mapping[str, Topic]) -> None:
    """Refuses names that no topic can have: a dead-letter topic is needed first when something is broken already."""
    for name, topic in topics.items():
        for field_name, given in (("", name if name != "*" else "any"), (".dead_letter", topic.dead_letter or "any")):
            if not TOPIC_NAME.fullmatch(given):
                raise ConfigError(
                    "RLY-203",
                    f"topics.{name[:60]!a}{field_name} is no name of a topic",
                    "use 1 to 249 of the characters A-Z a-z 0-9 . _ -",
                )


WORDS = dict.fromkeys(("true", "1", "yes", "on"), True) | dict.fromkeys(("false", "0", "no", "off"), False)


def _convert(value: object, wanted: type[Any]) -> Any:
    """None if it cannot be one. Never a loss: 2.5 is no integer, and 5 no text."""
    if wanted is bool:
        return WORDS.get(str(value).lower())
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if (wanted is str and not isinstance(value, str)) or (wanted is int and isinstance(value, float)):
        return None
    try:
        return wanted(value)
    except ValueError:
        return None


def _check_relations(settings: Settings) -> None:
    daemon = settings.daemon
    # An event may be acknowledged as late as its publish time-out. If the lanes were taken away before that, another
    # relay would publish what this one is still sending.
    if daemon.takeover_seconds < daemon.publish_timeout_seconds * 2:
        raise ConfigError(
            "RLY-204",
            "daemon.takeover_seconds is less than twice daemon.publish_timeout_seconds",
            f"set daemon.takeover_seconds to {daemon.publish_timeout_seconds * 2:g} or more",
        )
    if daemon.shutdown_seconds <= daemon.publish_timeout_seconds:
        raise ConfigError(
            "RLY-204",
            "daemon.shutdown_seconds is not above daemon.publish_timeout_seconds",
            f"set daemon.shutdown_seconds above {daemon.publish_timeout_seconds:g}",
        )


def require_database(settings: Settings) -> str:
    """The database URL, or an error that names the setting."""
    if not settings.database.url:
        raise ConfigError("RLY-201", "database.url is not set", "set RELAY_DATABASE_URL")
    return settings.database.url


def require_redis(settings: Settings) -> str:
    """The URL of the shared tier, or an error that names the setting."""
    if not settings.redis.url:
        raise ConfigError("RLY-201", "redis.url is not set", "set RELAY_REDIS_URL")
    return settings.redis.url


def require_kafka(settings: Settings) -> Mapping[str, Any]:
    """The Kafka properties with an address, or an error that names the setting."""
    if not settings.kafka.get("bootstrap.servers"):
        raise ConfigError("RLY-201", "kafka.bootstrap.servers is not set", "set RELAY_KAFKA_BOOTSTRAP_SERVERS")
    return settings.kafka
