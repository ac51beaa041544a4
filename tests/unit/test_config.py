"""Settings: where they come from, who wins, and what an error says and keeps to itself."""

from __future__ import annotations

import pytest

from relay.config import (
    SECTIONS,
    Database,
    Settings,
    load,
    load_with_origins,
    require_database,
    require_kafka,
)
from relay.database import masked, parse
from relay.errors import ConfigError
from relay.kafka_properties import KAFKA_DEFAULTS, KAFKA_GUARDED, KAFKA_OURS, KAFKA_RANGES

URL = "RELAY_DATABASE_URL"
KAFKA = "RELAY_KAFKA_BOOTSTRAP_SERVERS"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """A folder without a relay.toml."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toml(tmp_path):
    def write(text: str | bytes) -> dict[str, str]:
        file = tmp_path / "settings.toml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return {"RELAY_CONFIG": str(file)}

    return write


def error(environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(environ)
    assert "\n" not in str(caught.value)
    return caught.value


# Where values come from


def test_nothing_set_is_all_defaults():
    settings, origins = load_with_origins({"PATH": "/bin", "HOME": "/"})
    assert settings == Settings(kafka=KAFKA_DEFAULTS)
    assert origins == {}


def test_the_two_that_a_daemon_needs_have_short_names():
    settings = load({URL: "postgresql://h/d", KAFKA: "b:9092"})
    assert require_database(settings) == "postgresql://h/d"
    assert require_kafka(settings)["bootstrap.servers"] == "b:9092"


@pytest.mark.parametrize(("need", "variable"), [(require_database, URL), (require_kafka, KAFKA)])
def test_a_missing_one_is_named_with_its_variable(need, variable):
    with pytest.raises(ConfigError, match=f"RLY-201.*Fix: set {variable}"):
        need(load({}))
    with pytest.raises(ConfigError, match="RLY-201"):
        need(load({variable: ""}))


def test_nested_names_by_environment():
    settings = load(
        {
            "RELAY_DAEMON__ROWS_MAX": "17",
            "RELAY_DAEMON__POLL_SECONDS_MAX": "0.5",
            "RELAY_HTTP__ENABLED": "off",
            "RELAY_LOG__LEVEL": "debug",
            "RELAY_DATABASE__URL": "postgresql://h/d",
        }
    )
    assert settings.daemon.rows_max == 17
    assert settings.daemon.poll_seconds_max == 0.5
    assert settings.http.enabled is False
    assert settings.log.level == "debug"
    assert settings.database.url == "postgresql://h/d"


def test_the_environment_wins_over_the_file_and_the_file_over_defaults(toml):
    environ = toml("[daemon]\nrows_max = 10\nlanes_max = 3\n") | {"RELAY_DAEMON__ROWS_MAX": "20"}
    settings, origins = load_with_origins(environ)
    assert (settings.daemon.rows_max, settings.daemon.lanes_max) == (20, 3)
    assert origins == {
        "daemon.rows_max": "env RELAY_DAEMON__ROWS_MAX",
        "daemon.lanes_max": "file settings.toml",
    }


def test_relay_toml_of_the_working_folder_is_read(tmp_path):
    (tmp_path / "relay.toml").write_text("[http]\nport = 9999\n")
    assert load({}).http.port == 9999


def test_a_secret_from_a_file_loses_its_line_end(tmp_path, toml):
    (tmp_path / "url").write_text("postgresql://h/d\n")
    (tmp_path / "word").write_text("hidden\n")
    settings, origins = load_with_origins(
        {
            f"{URL}_FILE": str(tmp_path / "url"),
            "RELAY_KAFKA__SASL_PASSWORD_FILE": str(tmp_path / "word"),
        }
    )
    assert settings.database.url == "postgresql://h/d"
    assert settings.kafka["sasl.password"] == "hidden"
    assert origins["database.url"] == f"env {URL}_FILE"
    by_toml = load(toml('[database]\nurl_file = "url"\n[kafka]\n"sasl.password_file" = "word"\n'))
    assert by_toml.database.url == "postgresql://h/d"
    assert by_toml.kafka["sasl.password"] == "hidden"


def test_properties_that_end_in_file_are_librdkafkas_own():
    settings = load({"RELAY_KAFKA__SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_FILE": "/no/such/file"})
    assert settings.kafka["sasl.oauthbearer.assertion.private.key.file"] == "/no/such/file"


def test_every_librdkafka_property_passes_through(toml):
    environ = toml(
        '[kafka]\n"socket.timeout.ms" = 5000\nssl.ca.location = "/ca"\nenable.ssl.certificate.verification = true\n'
    )
    environ |= {"RELAY_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512", "RELAY_KAFKA__SOCKET_TIMEOUT_MS": "6000"}
    kafka = load(environ).kafka
    assert kafka["socket.timeout.ms"] == "6000"
    assert kafka["ssl.ca.location"] == "/ca"
    assert kafka["enable.ssl.certificate.verification"] is True
    assert kafka["sasl.mechanism"] == "SCRAM-SHA-512"


def test_what_relay_sets_of_librdkafka_can_be_overridden():
    assert load({"RELAY_KAFKA__LINGER_MS": "20"}).kafka["linger.ms"] == "20"
    assert load({}).kafka["partitioner"] == "murmur2_random"


def test_topics_have_their_own_section_or_that_of_all(toml):
    settings = load(
        toml('[topics."*"]\npoison = "block"\n[topics."a.b"]\norder = "strict"\n[topics.my_file]\npoison = "topic"\n')
    )
    assert settings.topic("a.b").order == "strict"
    assert settings.topic("a.b").poison == "park"
    assert settings.topic("my_file").poison == "topic"
    assert settings.topic("other").poison == "block"
    assert load({}).topic("other").poison == "park"


def test_variables_that_are_no_settings_are_left_alone():
    load({"RELAY_FAILPOINTS": "x", "RELAY_ENV": "production", "RELATED": "x", "RELAY_TEST_CACHE": "/c"})


#: What Kubernetes puts into each container of a namespace with a service of that name.
SERVICE_LINKS = {
    "{}_SERVICE_HOST": "10.0.171.239",
    "{}_SERVICE_PORT": "9464",
    "{}_SERVICE_PORT_HTTP": "9464",
    "{}_SERVICE_PORT_HTTP_METRICS": "9464",
    "{}_PORT": "tcp://10.0.171.239:9464",
    "{}_PORT_9464_TCP": "tcp://10.0.171.239:9464",
    "{}_PORT_9464_TCP_PROTO": "tcp",
    "{}_PORT_9464_TCP_PORT": "9464",
    "{}_PORT_9464_TCP_ADDR": "10.0.171.239",
    "{}_PORT_53_UDP": "udp://[fd00::a]:53",
    "{}_PORT_53_UDP_PROTO": "udp",
    "{}_PORT_53_UDP_ADDR": "fd00::a",
}


@pytest.mark.parametrize("service", ["relay", "relay-metrics", "relay-kafka", "relay-kafka-bootstrap", "relay-http"])
def test_what_kubernetes_injects_for_a_service_is_no_setting(service):
    """A service named relay, or relay-something, must not end the start of every relay beside it."""
    prefix = service.upper().replace("-", "_")
    injected = {name.format(prefix): value for name, value in SERVICE_LINKS.items()}
    settings, origins = load_with_origins({URL: "postgresql://h/d", **injected})
    assert settings == Settings(database=Database(url="postgresql://h/d"), kafka=KAFKA_DEFAULTS)
    assert set(origins) == {"database.url"}


# What is refused


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_HTTP_PORT", "8080"),
        ("RELAY_PORT", "8080"),
        ("RELAY_HTTP__SERVICE_HOST", "10.0.0.1"),
        ("RELAY_SERVICE_HOSTS", "10.0.0.1"),
        ("RELAY_PORT_9464_TCP_NAME", "x"),
        ("RELAY_PORT_HTTP_TCP", "tcp://10.0.0.1:9464"),
    ],
)
def test_what_only_looks_like_it_is_an_unknown_setting(variable, value):
    """A port that somebody meant to set is none that Kubernetes announces."""
    caught = error({variable: value})
    assert (caught.code, variable in caught.message) == ("RLY-202", True)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("RELAY_DATABASE_URI", "RELAY_DATABASE_URL"),
        ("RELAY_DAEMON__ROW_MAX", "RELAY_DAEMON__ROWS_MAX"),
        ("RELAY_DEMON__ROWS_MAX", "RELAY_DAEMON__ROWS_MAX"),
        ("RELAY_KAFKA_BOOTSTRAP_SERVER", "RELAY_KAFKA_BOOTSTRAP_SERVERS"),
        ("RELAY_CONFG", "RELAY_CONFIG"),
        ("RELAY_DAEMON_ROWS_MAX", "RELAY_DAEMON__ROWS_MAX"),
    ],
)
def test_an_unknown_variable_names_the_nearest(variable, nearest):
    caught = error({variable: "geheim"})
    assert caught.code == "RLY-202"
    assert variable in caught.message
    assert caught.fix == f"did you mean {nearest}?"


@pytest.mark.parametrize("variable", ["RELAY_QQQQ", "RELAY_TOPICS__X", "RELAY_QQQQ_FILE"])
def test_an_unknown_variable_without_a_near_one(variable):
    assert error({variable: "/no/such/file"}).code == "RLY-202"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("[daemon]\nrow_max = 1", "RLY-202", ["daemon.row_max", "did you mean rows_max?"]),
        ("[deamon]\nrows_max = 1", "RLY-202", ["[deamon]", "did you mean daemon?"]),
        ("[topics.a]\npolicy = 'x'", "RLY-202", ['topics."a".policy']),
        ("[topics.a.b]\norder = 'strict'", "RLY-202", ["in quotes"]),
        ("daemon = 1", "RLY-203", ["daemon", "integer", "[daemon]"]),
        ("[topics]\nx = 1", "RLY-203", ['topics."x"', "integer"]),
        ("[kafka]\nacks = ['all']", "RLY-203", ["kafka.acks", "list"]),
        ("[database]\nurl = 'x'\nurl_file = '/dev/null'", "RLY-204", ["database.url", "twice"]),
        ("not toml", "RLY-205", ["settings.toml", "not valid TOML"]),
        (b"\xff\xfe[daemon]", "RLY-205", ["settings.toml", "not valid TOML"]),
        ("[database]\nurl_file = '/no/such'", "RLY-205", ["database.url_file", "No such file"]),
        ('[database]\nurl_file = "a\\u0000b"', "RLY-205", ["database.url_file"]),
    ],
)
def test_what_is_wrong_in_the_file_is_named(toml, text, code, words):
    caught = error(toml(text))
    assert caught.code == code
    for word in words:
        assert word in str(caught)


@pytest.mark.parametrize("path", ["/no/such/file.toml", "/"])
def test_a_settings_file_that_cannot_be_read(path):
    caught = error({"RELAY_CONFIG": path})
    assert caught.code == "RLY-205"
    assert "RELAY_CONFIG" in caught.fix


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("RELAY_DAEMON__ROWS_MAX", "many"),
        ("RELAY_DAEMON__ROWS_MAX", "2.5"),
        ("RELAY_DAEMON__ROWS_MAX", ""),
        ("RELAY_DAEMON__ROWS_MAX", "0"),
        ("RELAY_DAEMON__ROWS_MAX", "50001"),
        ("RELAY_DAEMON__IDLE_SECONDS", "nan"),
        ("RELAY_DAEMON__IDLE_SECONDS", "inf"),
        ("RELAY_DAEMON__IDLE_SECONDS", "-1"),
        ("RELAY_HTTP__ENABLED", "perhaps"),
        ("RELAY_HTTP__PORT", "65536"),
        ("RELAY_LOG__LEVEL", "loud"),
        ("RELAY_LOG__FORMAT", "xml"),
    ],
)
def test_a_wrong_value_names_the_field_and_not_the_value(variable, value):
    caught = error({variable: value})
    assert caught.code == "RLY-203"
    section, _, name = variable.removeprefix("RELAY_").lower().partition("__")
    assert f"{section}.{name}" in caught.message
    if len(value) > 3:
        assert value not in caught.message


@pytest.mark.parametrize(
    "text",
    ["[daemon]\nrows_max = 2.5", "[daemon]\nrows_max = true", "[http]\nhost = 5", "[http]\nenabled = 'maybe'",
     "[daemon]\nrows_max = [1]", "[log]\nlevel = 3", "[daemon]\nrows_max = 1979-05-27"],
)  # fmt: skip
def test_a_value_of_another_type_is_not_bent_into_shape(toml, text):
    assert error(toml(text)).code == "RLY-203"


@pytest.mark.parametrize(
    "environ",
    [
        {"RELAY_DAEMON__TAKEOVER_SECONDS": "15"},
        {"RELAY_DAEMON__PUBLISH_TIMEOUT_SECONDS": "11"},
        {"RELAY_DAEMON__SHUTDOWN_SECONDS": "10"},
    ],
)
def test_times_that_contradict_each_other(environ):
    caught = error(environ)
    assert caught.code == "RLY-204"
    assert "daemon.publish_timeout_seconds" in caught.message
    assert caught.fix.startswith("set daemon.")


def test_one_setting_by_two_variables_is_a_contradiction():
    caught = error({URL: "postgresql://h/geheim", "RELAY_DATABASE__URL": "postgresql://h/geheim"})
    assert caught.code == "RLY-204"
    assert "RELAY_DATABASE_URL and RELAY_DATABASE__URL" in caught.message
    assert "geheim" not in str(caught)


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "wrong") for name in KAFKA_GUARDED]
    + [(name, "1") for name in KAFKA_OURS]
    + [(name, value) for name, (low, high, _) in KAFKA_RANGES.items() for value in (str(low - 1), str(high + 1), "x")]
    + [("partitioner", "random"), ("partitioner", "consistent_random"), ("queuing.strategy", "lifo")]
    + [("allow.auto.create.topics", "true"), ("retries", "0"), ("retries", "10"), ("acks", "1"), ("acks", "0")],
)
def test_a_property_that_carries_the_promise_is_guarded(toml, name, value):
    caught = error(toml(f'[kafka]\n"{name}" = "{value}"\n'))
    assert caught.code == "RLY-207"
    assert f"kafka.{name}" in caught.message
    if "_" not in name.replace("log_level", ""):
        assert error({"RELAY_KAFKA__" + name.upper().replace(".", "_"): value}).code == "RLY-207"


@pytest.mark.parametrize(
    ("name", "values"),
    [*((name, guard.values) for name, guard in KAFKA_GUARDED.items()),
     *((name, (str(low), str(high))) for name, (low, high, _) in KAFKA_RANGES.items())],
)  # fmt: skip
def test_a_guarded_property_may_say_what_holds_anyway(toml, name, values):
    for value in values:
        load(toml(f'[kafka]\n"{name}" = "{value}"\n'))


def test_the_queue_has_room_for_the_largest_event(toml):
    """librdkafka would refuse it for ever, as if the queue were full."""
    caught = error(toml('[kafka]\n"queue.buffering.max.kbytes" = 9000\n'))
    assert caught.code == "RLY-204"
    assert "kafka.queue.buffering.max.kbytes" in caught.message
    load(toml('[kafka]\n"queue.buffering.max.kbytes" = 2000\n"message.max.bytes" = 2000000\n'))


# What is kept secret


def test_the_representation_of_settings_holds_no_secret():
    settings = load({URL: "postgresql://u:geheim@h/d", "RELAY_KAFKA__SASL_PASSWORD": "geheim"})
    assert "geheim" not in repr(settings) + str(settings) + repr(settings.database)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:geheim@h/d", "host=h user=u password=geheim", "postgresql+psycopg://u:geheim@h/d",
     "postgresql://h/d?password=geheim", "postgresql://u:ge/heim@h/d", "nonsense geheim"],
)  # fmt: skip
def test_a_shown_url_has_no_password(url):
    assert "geheim" not in masked(url)
    assert "heim" not in masked(url)


def test_a_shown_url_still_says_where():
    assert masked("postgresql://u:geheim@h:5433/d") == "user=u password=*** dbname=d host=h port=5433"


@pytest.mark.parametrize(
    "url",
    ["geheim", "http://geheim/", "postgresql://u:ge/heim@h/d", "postgresql://u:ge@heim@h/d", "postgresql://h:heim/d",
     "postgresql://u:100%@heim/d", "postgresql://h/d?heim=1"],
)  # fmt: skip
def test_a_url_that_cannot_be_read_is_not_repeated(url):
    with pytest.raises(ConfigError, match=r"RLY-203: database\.url") as caught:
        parse(url)
    assert "heim" not in str(caught.value)


def test_every_setting_has_a_sentence_and_a_default_within_its_range():
    for cls in SECTIONS.values():
        for spec in cls.__dataclass_fields__.values():
            assert spec.metadata["doc"].endswith(".")
            if spec.metadata["low"] is not None:
                assert spec.metadata["low"] <= spec.default <= spec.metadata["high"]
    assert Database.__dataclass_fields__["url"].metadata["secret"]
