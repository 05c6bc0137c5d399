from __future__ import annotations

import json

from shoal_engine.server.replies import ChatChunk, ChatChunkChoice, ChatDelta, event


def test_an_event_is_one_line_for_every_client() -> None:
    text = "a\u2028b\u2029c\u0085d\ne\x0bf\x1eg – é 🦊"
    choice = ChatChunkChoice(index=0, delta=ChatDelta(content=text))
    chunk = ChatChunk(id="1", created=1, model="m", system_fingerprint="f", choices=[choice])
    data = event(chunk).decode()
    assert data.endswith("\n\n")
    assert len(data.splitlines()) == 2
    assert json.loads(data.removeprefix("data: "))["choices"][0]["delta"]["content"] == text
    assert "–" in data
