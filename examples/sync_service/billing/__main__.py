"""The command line, for people and for cron: `python -m billing remind 2030-02-01`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from datetime import date

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from billing import accounts


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command in one transaction."""
    parser = argparse.ArgumentParser(prog="billing")
    commands = parser.add_subparsers(dest="command", required=True)
    sign_up = commands.add_parser("sign-up")
    sign_up.add_argument("email")
    sign_up.add_argument("plan", choices=["basic", "pro"])
    change = commands.add_parser("change-plan")
    change.add_argument("account", type=int)
    change.add_argument("plan", choices=["basic", "pro"])
    commands.add_parser("bill").add_argument("due_on", type=date.fromisoformat)
    commands.add_parser("remind").add_argument("today", type=date.fromisoformat)
    commands.add_parser("pay").add_argument("invoice", type=int)
    given = parser.parse_args(argv)
    with Session(create_engine(os.environ["DATABASE_URL"])) as session, session.begin():
        print(run(session, given))


def run(session: Session, given: argparse.Namespace) -> str:
    """What was done, in words."""
    match given.command:
        case "sign-up":
            return f"account {accounts.sign_up(session, given.email, given.plan).id}"
        case "change-plan":
            return f"plan {accounts.change_plan(session, given.account, given.plan).plan}"
        case "bill":
            return f"{accounts.bill(session, given.due_on)} invoices"
        case "remind":
            return f"{accounts.remind(session, given.today)} overdue"
        case _:
            return f"invoice {accounts.pay(session, given.invoice).state}"


if __name__ == "__main__":
    main()
