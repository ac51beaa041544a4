"""Accounts, their plans, and what they owe for them."""
