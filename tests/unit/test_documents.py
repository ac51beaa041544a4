"""The documents say what the code does: codes, settings, metrics, log events, commands, fields, links and tests."""

from __future__ import annotations

import ast
import inspect
import re
from collections import deque
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from relay import logs
from relay.cache import numbers
from relay.cache.tiers import Progress
from relay.daemon.diagnosis.examine import ORDER
from relay.daemon.diagnosis.finding import Finding
from relay.daemon.explanation import Explanation
from relay.daemon.glance import Glance, ParkedGroup
from relay.daemon.overview import Overview, TopicBacklog
from relay.daemon.parked import ParkedEvent
from relay.daemon.reach import Answer
from relay.daemon.sightings import Record, Search
from relay.daemon.verification import report
from relay.daemon.verification.knowledge import Tally
from relay.daemon.verification.survey import Survey
from relay.daemon.whereabouts import Aside, Holder, Waiting, Whereabouts
from relay.errors import CODES
from relay.migrations.revision import Revision
from relay.schema.capture import Captured
from tests.support.documents import DOCS, MARKED, ROOT, commands, documents, log_rows, rendered

SOURCES = [*sorted((ROOT / "relay").rglob("*.py")), *sorted((ROOT / "migrations").rglob("*.py"))]
LINK = re.compile(r"\[[^\]]+\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE = re.compile(r"RLY-\d{3}")


COMMANDS = {path: command.callback for path, command in commands()}
STATUS, PARKED, CONFIG, TOP, EXPLAIN, CACHE = (
    inspect.getmodule(COMMANDS[f"relay {path}"])
    for path in ("status", "parked list", "config check", "top", "explain", "cache status")
)

OTHER_NAMES = {"env.py", "relay.toml", "relay.outbox", "sasl.password"}
"""What looks like a setting or an event in docs/OPERATING.md and is neither."""


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


# What is written from the code


@pytest.mark.parametrize("file", documents(), ids=named)
def test_the_generated_parts_are_those_of_today(file):
    """`make docs` writes them; what is committed is what it would write."""
    text = file.read_text(encoding="utf-8")
    assert rendered(text) == text, f"run `make docs` and look at {named(file)}"


def test_every_kind_of_table_has_its_place():
    """Settings, metrics, log events and every command are somewhere, once."""
    places = [found[1] for file in documents() for found in MARKED.findall(file.read_text(encoding="utf-8"))]
    wanted = {f"cli {path.removeprefix('relay ')}" for path, _ in commands()}
    wanted |= {f"settings {section}" for section in ("database", "daemon", "http", "log", "redis", "topics")}
    wanted |= {"kafka-defaults", "kafka-guarded", "metrics", "cache-metrics", "log-events", "families", "exit"}
    assert sorted(places) == sorted(wanted)


# Errors


def test_every_code_has_a_section_with_cause_and_cure():
    """One section per code, under its meaning, and none for a code that does not exist."""
    section = re.compile(r"^### (RLY-\d{3}): ([^\n]+)\nCause: (.+?)\nWhat to do: (.+?)\n(?:\n|\Z)", re.M | re.S)
    sections = section.findall(read("ERRORS.md"))
    assert {code: meaning for code, meaning, _, _ in sections} == CODES
    assert [code for code, *_ in sections] == sorted(CODES)
    assert read("ERRORS.md").count("\n### ") == len(CODES)


def test_every_code_is_used_and_every_used_code_exists():
    """In Python, in SQL and in the documents."""
    files = [*SOURCES, *sorted((ROOT / "relay").rglob("*.sql"))]
    texts = [file.read_text(encoding="utf-8") for file in files if file.name != "errors.py"]
    assert {code for text in texts for code in CODE.findall(text)} == set(CODES)
    assert {code for file in documents() for code in CODE.findall(file.read_text(encoding="utf-8"))} <= set(CODES)


# Log events


def logged() -> dict[str, list[tuple[str, set[str], bool]]]:
    """Event to the calls that write it: level, fields, and whether there are more that the source does not name."""
    found: dict[str, list[tuple[str, set[str], bool]]] = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                continue
            target, name = node.func.value, node.args[0]
            of_log = (isinstance(target, ast.Attribute) and target.attr == "_log") or (
                isinstance(target, ast.Name) and target.id == "log"
            )
            if of_log and node.func.attr in ("debug", "info", "warning", "error"):
                assert isinstance(name, ast.Constant), f"{named(file)}:{node.lineno} has no constant event"
                given = {word.arg for word in node.keywords if word.arg}
                call = (node.func.attr, given, any(word.arg is None for word in node.keywords))
                found.setdefault(str(name.value), []).append(call)
    return found


def test_every_log_event_is_listed_with_its_level_and_fields():
    """The table in relay/logs.py, from which the document is written, is what the source writes."""
    listed = {name: (level, set(given)) for name, level, given in log_rows()}
    written = logged()
    assert set(listed) == set(written) == logs.EVENTS
    for name, calls in written.items():
        for level, given, has_more in calls:
            assert level == listed[name][0], name
            assert given <= listed[name][1] if has_more else given == listed[name][1], name


def test_every_event_and_metric_that_the_documents_name_exists():
    """An alert on a name that nobody writes never rings."""
    text = read("OPERATING.md")
    generated = "".join(found.group(0) for found in MARKED.finditer(text))
    prose = MARKED.sub("", text)
    for metric in re.findall(r"`(relay_[a-z_]+)", prose):
        assert f"`{metric}`" in generated, metric
    for event in re.findall(r"`([a-z]+\.[a-z_]+)`", prose):
        assert f"| `{event}` |" in generated or event in OTHER_NAMES, event


def test_every_metric_of_a_cache_is_counted_somewhere():
    """A figure that is always zero says that all is well."""
    names = {name for name, value in vars(numbers).items() if isinstance(value, numbers.Metric)}
    texts = [file.read_text(encoding="utf-8") for file in SOURCES if file.name != "numbers.py"]
    counted = {name for name in names if any(re.search(rf"\b{name}\b", text) for text in texts)}
    assert counted == names


# JSON fields


def documented(heading: str, until: str) -> set[str]:
    """The names in the tables of fields between two places of docs/CLI.md."""
    text = read("CLI.md")
    start = text.index(heading)
    part = text[start : text.index(until, start) if until else None]
    return set(re.findall(r"^\| `([a-z_.\[\]]+)` \|", part, re.MULTILINE))


def names_of(value: object, prefix: str = "") -> set[str]:
    """Every field of a report, as the document writes it."""
    found: set[str] = set()
    if isinstance(value, dict):
        for name, child in value.items():
            found |= {prefix + name} | names_of(child, f"{prefix}{name}.")
    elif isinstance(value, list):
        for child in value:
            found |= names_of(child, f"{prefix.removesuffix('.')}[].")
    return found


def test_the_fields_of_status_are_documented():
    """All of them, and no others."""
    overview = Overview([TopicBacklog("t", 1, 1.0)], 1, 1, 1.0, 64, {"s": 1}, ["r"])
    assert documented("## relay status", "## relay top") == names_of(STATUS.as_data(overview, Answer(True)))


def test_the_fields_of_parked_events_are_documented():
    """In the list, and what `show` adds to it."""
    now = datetime.now(UTC)
    event = ParkedEvent(1, UUID(int=1), "t", "park", False, "RLY-703", "r", 1, now, now, None, 1, 1)
    listed = documented("generated: cli parked list", "generated: cli parked show")
    assert listed == set(PARKED._data(event))
    shown = documented("generated: cli parked show", "generated: cli parked retry")
    source = inspect.getsource(COMMANDS["relay parked show"])
    assert shown == set(re.findall(r'"(header_names|key|headers|payload)":', source))


def test_the_fields_of_retry_drop_config_and_check_are_documented():
    """As the source writes them."""
    say = inspect.getsource(PARKED._say)
    fields_of_say = {"retried", "dropped", *re.findall(r'"(moved|refused)":', say)}
    refused = {f"refused[].{name}" for name in re.findall(r'"([a-z]+)": ', say) if name not in ("moved", "refused")}
    assert documented("generated: cli parked drop", "## relay cache") == fields_of_say | refused
    assert documented("generated: cli capture list", "## relay config") == {spec.name for spec in fields(Captured)}
    assert documented("## relay config", "## relay completion") == set(CONFIG.Line._fields)
    assert documented("generated: cli db upgrade", "generated: cli db check") == {"steps"}
    assert 'json.dumps({"steps": steps})' in inspect.getsource(COMMANDS["relay db upgrade"])
    assert documented("generated: cli db check", "generated: cli db revision") == {"version", "written_for", "findings"}
    revision = {spec.name for spec in fields(Revision)} | {"env_py_needs"}
    assert documented("generated: cli db revision", "generated: cli db sql") == revision
    assert '{"version": found, "written_for": VERSION, "findings": ' in inspect.getsource(COMMANDS["relay db check"])


def test_the_fields_of_the_shared_tier_are_documented():
    """Of what lies in it, and of what the checker found."""
    tally = Tally([1.0], healed_seconds=[1.0])
    verifier = SimpleNamespace(tally=tally, share=1.0, unhealed=0, tier_failures=0)
    verified = names_of(report.as_data(verifier, 1.0))
    assert documented("generated: cli cache verify", "## relay capture") == verified
    seen = CACHE._status(Progress(b"e", {("t", 0): 1}), Survey(), {("t", 0): 0})
    assert documented("generated: cli cache status", "generated: cli cache reset") == names_of(seen)
    fields_of_reset = set(re.findall(r'"(before|after)": ', inspect.getsource(COMMANDS["relay cache reset"])))
    assert documented("generated: cli cache reset", "generated: cli cache verify") == fields_of_reset


def test_the_fields_and_checks_of_doctor_are_documented():
    """Each field, and each check by its name."""
    assert documented("## relay doctor", "## relay status") == {spec.name for spec in fields(Finding)}
    line = next(line for line in read("CLI.md").splitlines() if line.startswith("| `check` |"))
    assert set(re.findall(r"`([a-z]+)`", line)) == {"check", *ORDER}


def test_the_fields_of_top_and_explain_are_documented():
    """All of them, and no others."""
    holder = Holder(1, "s", "r", "idle", 1.0)
    now = Glance(1.0, 1, 1, {"t": 1}, 1.0, 64, {"s": 1}, ["r"], [ParkedGroup("t", "RLY-703", 1, 1.0)], [holder])
    assert documented("## relay top", "## relay explain") == names_of(TOP.as_data(deque([now]), Answer(True)))
    where = Whereabouts(
        waiting=[Waiting(1, "e", "t", 1, 1.0, 1)],
        parked=[Aside(1, "e", "t", "park", False, "RLY-703", "r", 1.0)],
        lane=1,
        lane_holders=[holder],
        blocked_by=None,
        key_holders=[holder],
        writers=[holder],
        relays=1,
        hidden=[],
    )
    explanation = Explanation("waiting", [], where, [Search("t", found=[Record("t", 1, 1, "e", 1.0)])])
    assert documented("## relay explain", "## relay parked") == names_of(EXPLAIN.as_data(explanation))


# Links, files and tests


@pytest.mark.parametrize("file", documents(), ids=named)
def test_every_link_leads_somewhere(file):
    """To a file of the repository, and to a heading of it."""
    for target, anchor in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        place = (file.parent / target).resolve() if target else file
        assert place.exists(), target
        if anchor:
            headings = HEADING.findall(place.read_text(encoding="utf-8"))
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("file", documents(), ids=named)
def test_every_file_that_a_document_names_exists(file):
    """Documents point at the code, and code moves."""
    for path in re.findall(r"`((?:relay|tests|migrations|docs)/[\w/.]+)`", file.read_text(encoding="utf-8")):
        assert (ROOT / path).exists(), path


def test_every_guarantee_names_a_test_that_exists():
    """A sentence whose test is gone is a claim."""
    text = read("GUARANTEES.md")
    promised = text[: text.index("## Not guaranteed")]
    rows = [line for line in promised.splitlines() if line.startswith("| ") and not line.startswith("| sentence")]
    assert rows
    for row in rows:
        tests = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", row)
        assert tests, row
        for path, name in tests:
            assert (ROOT / path).is_file(), path
            assert not name or f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"


def test_every_field_of_a_parked_event_is_shown_to_operators():
    """What the class has, the list has: `waits` is there twice, as a flag and as a state."""
    assert {spec.name for spec in fields(ParkedEvent)} <= documented(
        "generated: cli parked list", "generated: cli parked show"
    )
