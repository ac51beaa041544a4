"""The trace that an event belongs to, where the application traces itself with OpenTelemetry."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def current_trace() -> Mapping[str, str]:
    """The W3C headers of the current span, or nothing. Loads nothing: an application that traces has loaded it."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return {}
    span = api.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    state = span.trace_state.to_header()
    parent = f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return {"traceparent": parent} | ({"tracestate": state} if state else {})
