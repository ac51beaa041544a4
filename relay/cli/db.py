"""`relay db`: the schema, by command or as SQL to read first."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from relay.cli.doctor import lines_of
from relay.cli.main import open_database, settings
from relay.config import require_database
from relay.daemon.diagnosis.finding import Finding
from relay.daemon.diagnosis.foundations import foundations
from relay.database import Connection, explain
from relay.errors import ConfigError
from relay.schema.grants import grants as grants_sql
from relay.schema.install import require_version
from relay.schema.install import upgrade as run_upgrade
from relay.schema.steps import VERSION, script


@click.group()
def db() -> None:
    """The schema `relay` in your database."""


@db.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def upgrade(as_json: bool) -> None:
    """Create or upgrade the schema. Idempotent; safe from many processes at once."""
    steps = run_upgrade(require_database(settings()))
    if as_json:
        click.echo(json.dumps({"steps": steps}))
        return
    done = f"upgraded to version {steps[-1]}" if steps else f"already at version {VERSION}"
    click.echo(f"schema relay: {done}")


@db.command(short_help="Say whether the schema fits this version of Relay.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def check(as_json: bool) -> None:
    """Say whether the schema fits this version of Relay: exit code 0, or 4 with the reason.

    Also looks at what a restore or a switch to another server may have left behind: the encoding, and whether ids still
    count up; exit code 1 if they do not.
    """
    with open_database("db check") as connection:
        found = require_version(connection).version
        looked = _foundations(connection)
    if as_json:
        click.echo(json.dumps({"version": found, "written_for": VERSION, "findings": [asdict(one) for one in looked]}))
    else:
        _say_version(found)
        wrong = [one for one in looked if one.state in ("warning", "failed")]
        if wrong:
            click.echo("\n".join(line for one in wrong for line in lines_of(one)))
    if any(one.state == "failed" for one in looked):
        raise SystemExit(1)


def _foundations(connection: Connection) -> list[Finding]:
    import psycopg

    try:
        return foundations(connection)
    except psycopg.Error as error:
        raise explain(error) from None


def _say_version(found: int) -> None:
    if found == VERSION:
        click.echo(f"schema relay: version {found}, as needed")
    elif found < VERSION:
        click.echo(f"schema relay: version {found}, which will do; `relay db upgrade` takes it to {VERSION}")
    else:
        click.echo(f"schema relay: version {found}, which this code for version {VERSION} can work with")


@db.command()
@click.option("--head", metavar="REVISION", help="The head to follow, where the history has several.")
@click.option("--message", "-m", metavar="TEXT", help="The revision's message.  [default: relay schema N]")
@click.option("--rev-id", metavar="ID", help="The revision's id, where the project does not take random ones.")
@click.option("--config", "-c", metavar="FILE", envvar="ALEMBIC_CONFIG", help="alembic.ini or pyproject.toml.")
@click.option("--name", "-n", metavar="SECTION", default="alembic", help="The section of the .ini file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def revision(
    *, head: str | None, message: str | None, rev_id: str | None, config: str | None, name: str, as_json: bool
) -> None:
    """Write a thin revision into your project's own Alembic history. Needs no connection.

    Run it where you run alembic, then `alembic upgrade head`. After an upgrade of Relay it writes what is new, or says
    that nothing is.
    """
    try:
        from relay.migrations.revision import INCLUDE_NAME, open_project, write
    except ModuleNotFoundError as error:
        what = f"`relay db revision` needs the package {error.name}"
        raise ConfigError("RLY-208", what, "pip install 'relay[migrations]'") from None
    project = open_project(config, name)
    written = write(project, head=head, message=message, revision=rev_id) if project.version < VERSION else None
    todo = INCLUDE_NAME if project.needs_include_name else None
    if as_json:
        nothing = {"revision": None, "down_revision": (), "path": None, "after": project.version, "upto": VERSION}
        click.echo(json.dumps({**(nothing if written is None else asdict(written)), "env_py_needs": todo}))
        return
    if written:
        click.echo(f"wrote {written.path}\nnext: alembic upgrade head")
    else:
        click.echo(f"nothing to do: the history reaches schema version {project.version}")
    if todo:
        click.echo(
            "env.py compares all schemas (include_schemas): unless a filter of yours leaves the schema relay out,\n"
            f"import relay.migrations there and give context.configure {todo}"
        )


@db.command()
@click.option("--from", "after", type=click.IntRange(0, VERSION), default=0, help="The version that is there.")
@click.option("--to", "upto", type=click.IntRange(1, VERSION), default=VERSION, help="The version to reach.")
def sql(after: int, upto: int) -> None:
    """Print the schema as plain SQL, in one transaction. Needs no connection."""
    if after >= upto:
        raise click.UsageError(f"nothing leads from version {after} to {upto}")
    click.echo(script(after, upto), nl=False)


@db.command()
@click.option("--writer", multiple=True, metavar="ROLE", help="Applications that write events.")
@click.option("--relay", multiple=True, metavar="ROLE", help="The role of `relay run`.")
@click.option("--monitor", multiple=True, metavar="ROLE", help="The role of `relay status`; sees no content.")
@click.option("--admin", multiple=True, metavar="ROLE", help="The role of `relay parked`.")
@click.option("--reader", multiple=True, metavar="ROLE", help="Services that load for caches; `relay cache verify`.")
def grants(
    writer: tuple[str, ...],
    relay: tuple[str, ...],
    monitor: tuple[str, ...],
    admin: tuple[str, ...],
    reader: tuple[str, ...],
) -> None:
    """Print the rights that each role needs as SQL. Needs no connection; the roles must exist when it is run."""
    named = {"writer": writer, "relay": relay, "monitor": monitor, "admin": admin, "reader": reader}
    roles = [(part, role) for part, names in named.items() for role in names]
    if not roles:
        raise click.UsageError("name at least one role: --writer, --relay, --monitor, --admin or --reader")
    if any(not role or "\0" in role for _, role in roles):
        raise click.UsageError("a role's name must not be empty")
    click.echo(grants_sql(roles), nl=False)
