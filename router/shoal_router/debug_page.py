"""/debug as HTML: one template, no asset from elsewhere, readable without scripts. Knows only a View.

Names and messages come from outside: whatever goes into the page is escaped in html_parts.py, and the reply's
policy allows no script but the page's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Final

from shoal_router.debug_view import Choice, Event, Model, Option, Queue, Replica, View
from shoal_router.html_parts import (
    bar,
    cell,
    clock,
    duration,
    markup,
    number,
    percent,
    pill,
    table,
    text,
    tile,
)

CONTENT_TYPE: Final = b"text/html; charset=utf-8"
SHOWN_CHOICES: Final = 60
SHOWN_OPTIONS: Final = 16

# Renews the page in place and keeps what is open; without scripts the page reloads itself.
SCRIPT: Final = """
const main = document.querySelector("main");
setInterval(async () => {
  if (document.hidden || getSelection().toString()) return;
  const reply = await fetch(location.href, {headers: {accept: "text/html"}}).catch(() => null);
  if (!reply || !reply.ok) return;
  const fresh = new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("main");
  for (const open of main.querySelectorAll("details[open]")) {
    const same = fresh.querySelector(`#${CSS.escape(open.id)}`);
    if (same) same.open = true;
  }
  main.replaceChildren(...fresh.childNodes);
}, 2000);
"""
_DIGEST: Final = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY: Final = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
)
_TEMPLATE: Final = Template(files("shoal_router").joinpath("debug_page.html").read_text("utf-8"))

_STATES: Final = {"healthy": "good", "half_open": "warn", "suspect": "bad", "absent": ""}


def page(view: View) -> bytes:
    """The whole page."""
    parts = {
        "state": pill("draining", "warn") if view.draining else pill("serving", "good"),
        "about": text(
            f"{view.version} · process {view.process} · up {duration(view.up_s)} · {clock(view.at)} UTC"
        ),
        "tiles": "".join(tile(name, value, note) for name, value, note in _figures(view)),
        "replica_count": text(
            f"{sum(r.state == 'healthy' for r in view.replicas)} of {len(view.replicas)} healthy"
        ),
        "replicas": table(_REPLICA_COLUMNS, map(_replica, view.replicas), "no replica is known"),
        "models": table(_MODEL_COLUMNS, map(_model, view.models), "no replica has named its models yet"),
        "queues": _queues(view.queues),
        "choices": _choices(view.choices),
        "events": table(_EVENT_COLUMNS, map(_event, view.events), "nothing has gone wrong so far"),
        "script": SCRIPT,
    }
    return _TEMPLATE.substitute(parts).encode()


def _figures(view: View) -> list[tuple[str, object, str]]:
    believed = percent(view.predicted_cached_tokens, view.prompt_tokens)
    return [
        ("requests ended", f"{view.requests:,}", f"own errors: {view.errors:,}"),
        ("in progress", f"{view.active_requests:,}", f"{view.client_connections:,} connections"),
        ("waiting here", f"{view.held_requests:,}", f"{view.held_bytes / 2**20:.1f} MiB"),
        ("prompt from caches", percent(view.cached_tokens, view.prompt_tokens), f"{believed} predicted"),
        ("blocks in the index", f"{view.index_blocks:,}", "of 256 bytes each"),
        ("retries", f"{view.retries:,}", "before a first byte"),
        ("resumed streams", f"{view.resumes:,}", f"quarantined: {view.quarantined:,}"),
    ]


_REPLICA_COLUMNS: Final = (
    *(
        "replica",
        "state",
        "engine says",
        "in flight",
        " queued",
        "KV cache",
        " blocks",
        "hits (predicted)",
    ),
    *(" requests", " faults", " ejections"),
)


def _replica(replica: Replica) -> str:
    limit = replica.seats or replica.ceiling
    total = replica.in_flight + replica.in_flight_from_others
    others = f" + {replica.in_flight_from_others} of others" if replica.in_flight_from_others else ""
    load = f"{replica.in_flight}{others}" + (f" / {limit}" if limit else "")
    state = pill(replica.state.replace("_", " "), _STATES.get(replica.state, ""))
    name = f"<code>{text(replica.name)}</code>"
    if replica.name.removeprefix("http://") != replica.address:
        name += f'<br><span class="faint">{text(replica.address)}</span>'
    report = f"{replica.running} running, {replica.waiting} waiting" + (
        f", {replica.gaps} gaps" if replica.gaps else ""
    )
    link = pill("pushed", "note") if replica.linked else pill("polled")
    hits = percent(replica.cached_tokens, replica.prompt_tokens)
    predicted = percent(replica.predicted_cached_tokens, replica.prompt_tokens)
    return "".join(
        (
            markup(name),
            markup(state + (" " + pill("cordoned", "warn") if replica.cordoned else "")),
            markup(f'{link} <span class="faint">{text(report)}</span>'),
            markup((bar(total / limit) if limit else "") + text(load)),
            number(replica.queued_tokens),
            markup(
                bar(replica.kv_usage) + text(f"{replica.kv_usage:.0%} of {replica.kv_tokens / 1000:,.0f}k")
            ),
            number(replica.index_blocks),
            markup(f'{hits} <span class="faint">({predicted})</span>'),
            number(replica.requests),
            number(replica.faults),
            number(replica.ejections),
        )
    )


_MODEL_COLUMNS: Final = (
    "model",
    "ready",
    " waiting here",
    " bytes per token",
    " cost of a request in flight",
    " cost of a seat",
)


def _model(model: Model) -> str:
    kind = "good" if model.ready == model.replicas and model.ready else "warn" if model.ready else "bad"
    return "".join(
        (
            markup(f"<code>{text(model.name)}</code>"),
            markup(pill(f"{model.ready} of {model.replicas}", kind)),
            number(model.held),
            cell(f"{model.bytes_per_token:.2f}", "n"),
            number(model.in_flight_tokens),
            number(model.seat_tokens),
        )
    )


def _queues(queues: Sequence[Queue]) -> str:
    if not queues:
        return ""
    rows = (
        cell(each.model)
        + cell(each.tenant or "–")
        + cell(each.band)
        + number(each.requests)
        + number(each.tokens)
        for each in queues
    )
    columns = ("model", "tenant", "band", " requests", " tokens")
    return f'<h2>Waiting requests</h2><div class="card">{table(columns, rows)}</div>'


_OPTION_COLUMNS: Final = ("replica", " cost", " cached", " queued", " in flight")


def _choices(choices: Sequence[Choice]) -> str:
    return "".join(map(_choice, choices)) or '<div class="empty">no request has come yet</div>'


def _choice(choice: Choice) -> str:
    picked = next(option for option in choice.options if option.chosen)
    cached = (
        f"{choice.cached_tokens:,} cached"
        if choice.cached_tokens is not None
        else f"{picked.cached:,} believed cached"
    )
    cost = f"cost {picked.cost:,}" + (
        "" if picked.cost == choice.options[0].cost else f" (least {choice.options[0].cost:,})"
    )
    key = f"{choice.at:.6f}-{choice.request_id}"
    shown = [option for at, option in enumerate(choice.options) if at < SHOWN_OPTIONS or option.chosen]
    rows = table(_OPTION_COLUMNS, map(_option, shown))
    left = len(choice.options) - len(shown)
    return (
        f'<details class="choice" id="{text(key)}"><summary><span class="faint">{clock(choice.at)}</span>'
        f"<code>{text(choice.model)}</code><span>{choice.prompt_tokens:,} tokens</span>"
        f"<code>{text(choice.replica)}</code><span>{text(cached)}</span><span>{_result(choice)}</span></summary>"
        f'<div class="empty">request <code>{text(choice.request_id)}</code> · {text(cost)}</div>{rows}'
        + (f'<div class="empty">and {left} dearer ones</div>' if left > 0 else "")
        + "</details>"
    )


def _option(option: Option) -> str:
    numbers = (option.cost, option.cached, option.queued, option.in_flight)
    kind = "picked" if option.chosen else ""
    return f'<tr class="{kind}">{cell(option.replica)}{"".join(map(number, numbers))}</tr>'


def _result(choice: Choice) -> str:
    if not choice.outcome:
        return pill("answering" if choice.status else "waiting", "note")
    if choice.outcome != "done":
        return pill(choice.outcome.replace("_", " "), "bad")
    return pill(choice.status or "left", "good" if 200 <= choice.status < 300 else "warn")


_EVENT_COLUMNS: Final = ("time", "what", "")


def _event(event: Event) -> str:
    kind = _STATES.get(event.kind, "warn")
    return (
        cell(clock(event.at), "faint")
        + markup(pill(event.kind.replace("_", " "), kind))
        + cell(event.text, "wrap")
    )
