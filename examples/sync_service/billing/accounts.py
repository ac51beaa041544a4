"""What can happen to an account. Every function works in the caller's transaction."""

from __future__ import annotations

from datetime import date

from relay.outbox import emit, touch
from sqlalchemy import text
from sqlalchemy.orm import Session

from billing.models import Account, Invoice

BILL = """
INSERT INTO invoice (account_id, amount, state, due_on)
SELECT id, CASE plan WHEN 'pro' THEN 49.00 ELSE 9.00 END, 'open', :due_on FROM account
ON CONFLICT DO NOTHING
RETURNING id
"""

REMIND = "UPDATE invoice SET state = 'overdue' WHERE state = 'open' AND due_on < :today RETURNING id"


def sign_up(session: Session, email: str, plan: str) -> Account:
    """Opens an account."""
    account = Account(email=email, plan=plan)
    session.add(account)
    session.flush()
    touch(session, "account", account.id, "created")
    return account


def change_plan(session: Session, account_id: int, plan: str) -> Account:
    """Moves an account to another plan."""
    account = session.get_one(Account, account_id)
    account.plan = plan
    touch(session, "account", account.id)
    return account


def pay(session: Session, invoice_id: int) -> Invoice:
    """Notes that an invoice has been paid; once is enough."""
    invoice = session.get_one(Invoice, invoice_id, with_for_update=True)
    if invoice.state != "paid":
        invoice.state = "paid"
        emit(session, "payments", key=str(invoice.account_id), payload={"invoice": invoice.id})
    return invoice


def bill(session: Session, due_on: date) -> int:
    """Writes an invoice for each account, in one statement. Run again, it adds what is missing."""
    return len(session.execute(text(BILL), {"due_on": due_on}).all())


def remind(session: Session, today: date) -> int:
    """Marks what should have been paid by now, in one statement."""
    return len(session.execute(text(REMIND), {"today": today}).all())
