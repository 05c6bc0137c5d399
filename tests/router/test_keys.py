"""Keys: what a file of them may say, how one is found, and what of it reaches a replica."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal_router.errors import Unauthorized
from shoal_router.key_file import KeyFileError, read_keys
from shoal_router.key_watch import KeyWatch
from shoal_router.keys import MAX_REMEMBERED, Key, Keyring, Limits, Priority, digest_of
from tests.router.conftest import Run
from tests.router.scripted import FAST, Replica, Rig, chat, get, post, rig

SECRET = "sk-0123456789abcdef"
OTHER = "sk-fedcba9876543210"

WHOLE = f"""
keys:
  - name: team-a
    key: {SECRET}
    tenant: a
    priority: high
    requestsPerMinute: 600
    tokensPerMinute: 200000
    maxInFlight: 32
    sharedCache: true
    expires: 2100-01-01T00:00:00Z
  - name: team-b
    keySha256: {hashlib.sha256(OTHER.encode()).hexdigest()}
"""


def test_file_says_all_of_a_key_and_defaults_are_a_tenant_of_its_own_without_limits() -> None:
    a, b = read_keys(WHOLE.encode())
    assert a == Key(
        "team-a", digest_of(SECRET.encode()), "a", Priority.HIGH, Limits(600, 200_000, 32), "", 4102444800.0
    )
    assert b == Key("team-b", digest_of(OTHER.encode()), "team-b", cache_salt="team-b")


def test_the_example_of_the_documentation_can_be_used() -> None:
    page = (Path(__file__).parents[2] / "docs" / "tenants.md").read_text()
    search, batch = read_keys(page.split("```yaml")[1].split("```")[0].encode())
    assert (search.tenant, search.priority, batch.priority) == ("search", Priority.HIGH, Priority.LOW)


def test_json_is_read_as_yaml_is() -> None:
    entry = {"name": "x", "key": SECRET, "expires": "2100-01-01T01:00:00+01:00", "maxInFlight": 1}
    (key,) = read_keys(json.dumps({"keys": [entry]}).encode())
    assert (key.expires_s, key.limits) == (4102444800.0, Limits(max_in_flight=1))


def entry(**fields: Any) -> bytes:
    return json.dumps({"keys": [{"name": "team-a", "key": SECRET, **fields}]}).encode()


BROKEN: dict[str, tuple[bytes, str]] = {
    "no mapping": (b"- a", "one field, `keys`"),
    "another field": (b"keys: []\nkey: x", "one field, `keys`"),
    "no YAML": (f"keys:\n  - key: '{SECRET}\n".encode(), "is not valid YAML"),
    "an alias that is none": (f"keys:\n  - key: *{SECRET}\n".encode(), "line 2"),
    "not UTF-8": (b"keys: \x80\x81", "neither YAML nor JSON"),
    "entry no mapping": (json.dumps({"keys": [SECRET]}).encode(), "keys[0]: must be a mapping"),
    "no name": (json.dumps({"keys": [{"key": SECRET}]}).encode(), "keys[0]: name: must be"),
    "unknown field": (entry(**{SECRET: 1}), "keys[0] (team-a): has a field that is none of name, key"),
    "number for a key": (entry(key=123456789012345678), "keys[0] (team-a): key: must be 16 to 512 visible"),
    "short key": (entry(key="sk-0123"), "keys[0] (team-a): key: must be 16"),
    "key with a space": (entry(key=SECRET + " x"), "keys[0] (team-a): key: must be 16"),
    "two kinds of key": (entry(keySha256="0" * 64), "give either key or keySha256"),
    "no key": (b'{"keys":[{"name":"team-a"}]}', "keys[0] (team-a): give either"),
    "no digest": (entry(key=None, keySha256=SECRET), "keySha256: must be 64 lower-case"),
    "limit of nothing": (entry(requestsPerMinute=0), "requestsPerMinute: must be a whole number"),
    "limit in words": (entry(tokensPerMinute=SECRET), "tokensPerMinute: must be a whole number"),
    "priority": (entry(priority=SECRET), "priority: must be high, normal or low"),
    "tenant": (entry(tenant="a\r\nx-shoal-resume: 1"), "tenant: must be 1 to 63"),
    "time without a zone": (entry(expires="2030-01-01T00:00:00"), "expires: must be a time with its zone"),
    "no time": (entry(expires=SECRET), "expires: must be a time with its zone"),
    "same name": (
        json.dumps({"keys": [{"name": "x", "key": SECRET}, {"name": "x", "key": OTHER}]}).encode(),
        "same name: x and x",
    ),
    "same key": (
        json.dumps({"keys": [{"name": "x", "key": SECRET}, {"name": "y", "key": SECRET}]}).encode(),
        "same key: x and y",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_error_names_the_entry_and_shows_no_key(name: str) -> None:
    text, said = BROKEN[name]
    with pytest.raises(KeyFileError) as error:
        read_keys(text)
    assert said in str(error.value)
    assert SECRET not in str(error.value)
    assert "sk-0123" not in str(error.value)


def bearer(secret: str, scheme: str = "Bearer") -> bytes:
    return f"{scheme} {secret}".encode()


def test_key_is_found_by_what_was_presented_and_by_nothing_else() -> None:
    ring = Keyring(read_keys(WHOLE.encode()), asks=True)
    for _ in range(2):  # the second time it is remembered
        assert ring.find(bearer(SECRET)).name == "team-a"
        assert ring.find(bearer(OTHER, "bearer")).name == "team-b"
    wrong = [
        b"",
        b"Bearer",
        bearer(SECRET, "Basic"),
        bearer(SECRET + "x"),
        bearer(SECRET[:-1]),
        SECRET.encode(),
    ]
    digest = digest_of(SECRET.encode())
    for presented in [*wrong, bearer(digest.hex()), b"Bearer " + digest]:
        with pytest.raises(Unauthorized):
            ring.find(presented)


def test_what_is_remembered_of_keys_has_a_bound() -> None:
    ring = Keyring([Key.plain(SECRET.encode())], asks=True)
    for number in range(MAX_REMEMBERED + 10):
        ring.find(b"Bearer " + b" " * number + SECRET.encode())
    assert len(ring._remembered) <= MAX_REMEMBERED
    for number in range(MAX_REMEMBERED + 10):
        with pytest.raises(Unauthorized):
            ring.find(bearer(f"wrong{number}"))
    assert len(ring._remembered) <= 10, "wrong keys are not remembered"


def test_key_ends_when_it_expires_also_one_that_is_remembered() -> None:
    now = 99.0
    ring = Keyring([replace(Key.plain(SECRET.encode()), expires_s=100.0)], asks=True, unix_s=lambda: now)
    assert ring.find(bearer(SECRET))
    now = 100.0
    with pytest.raises(Unauthorized, match="expired"):
        ring.find(bearer(SECRET))


def secret_volume(at: Path, text: str) -> Path:
    """A file as the kubelet mounts a Secret: a link into a directory that is itself a link."""
    version = at / f"..{len(list(at.iterdir()))}"
    version.mkdir()
    (version / "keys.yaml").write_text(text)
    (at / "new").symlink_to(version.name)
    os.replace(at / "new", at / "..data")
    if not (at / "keys.yaml").exists():
        (at / "keys.yaml").symlink_to("..data/keys.yaml")
    return at / "keys.yaml"


def only(name: str, secret: str = SECRET, **fields: object) -> str:
    return json.dumps({"keys": [{"name": name, "key": secret, **fields}]})


async def test_new_keys_count_when_the_secret_has_changed_and_broken_ones_never(tmp_path: Path) -> None:
    path = secret_volume(tmp_path, only("one"))
    seen: list[str] = []
    watch = KeyWatch(str(path), lambda keys: seen.append(",".join(key.name for key in keys)))
    watch.load()
    await watch.check()
    assert seen == ["one"], "nothing has changed"
    secret_volume(tmp_path, only("two"))
    await watch.check()
    assert seen == ["one", "two"]
    for broken in ("keys: [", '{"keys": [{"name": "x"}]}'):
        secret_volume(tmp_path, broken)
        await watch.check()
        await watch.check()
    path.unlink()
    await watch.check()
    assert (seen, watch.usable, watch.failures) == (["one", "two"], False, 3)
    path.symlink_to("..data/keys.yaml")
    secret_volume(tmp_path, only("three"))
    await watch.check()
    assert (seen[2:], watch.usable) == (["three"], True)


def test_router_without_a_usable_file_takes_no_requests(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(KeyFileError, match="cannot be read"):
            KeyWatch(str(path), lambda keys: None).load()


def with_keys(path: Path, **fields: Any) -> Any:
    return replace(FAST, api_keys_file=str(path), **fields)


async def ask(r: Rig, secret: str | None, content: str = "hi", path: str = "/v1/chat/completions") -> Any:
    headers = "" if secret is None else f"Authorization: Bearer {secret}\r\n"
    return await r.ask(post(path, chat(content), headers))


def test_engine_learns_the_tenant_and_not_the_key(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = secret_volume(tmp_path, WHOLE)
        async with rig(Replica(), settings=with_keys(path, engine_api_key="engines'")) as r:
            assert (await ask(r, None)).code == "invalid_api_key"
            assert (await r.ask(get("/health"))).status == 200
            forged = f"Authorization: Bearer {OTHER}\r\nX-Shoal-Cache-Salt: a\r\n"
            assert (await r.ask(post(headers=forged))).status == 200
            assert (await ask(r, SECRET)).status == 200
            b, a = r.replicas[0].requests
            assert (b.headers["authorization"], b.headers["x-shoal-cache-salt"]) == (
                "Bearer engines'",
                "team-b",
            )
            assert a.headers["authorization"] == "Bearer engines'"
            assert "x-shoal-cache-salt" not in a.headers, "it shares its cache"
            secret_volume(tmp_path, only("team-b", OTHER))
            assert r.router.gate.watch is not None
            await r.router.gate.watch.check()
            assert (await ask(r, SECRET)).status == 401
            assert (await ask(r, OTHER)).status == 200

    run(scenario())


def test_without_keys_of_the_router_a_clients_own_is_for_the_engine(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica()) as r:
            await ask(r, "for-the-engine")
            await r.ask(post(headers="Authorization: Bearer x\r\nConnection: authorization\r\n"))
            first, second = r.replicas[0].requests
            assert first.headers["authorization"] == "Bearer for-the-engine"
            assert "authorization" not in second.headers, "its client meant it for the router alone"

    run(scenario())


def test_tenants_share_no_cached_prompt_in_the_routers_books_unless_they_want_to(
    run: Run, tmp_path: Path
) -> None:
    entries = [
        {"name": name, "key": f"sk-0123456789abcde{name}", "sharedCache": name in "yz"} for name in "abyz"
    ]

    async def scenario() -> None:
        path = secret_volume(tmp_path, json.dumps({"keys": entries}))
        async with rig(Replica(), settings=with_keys(path)) as r:
            sizes = []
            for name in "abyz":
                await ask(r, f"sk-0123456789abcde{name}", "x" * 1000)
                sizes.append(len(r.router.index))
            own = sizes[0]
            assert own > 0
            assert sizes == [own, 2 * own, 3 * own, 3 * own]

    run(scenario())


def test_reload_in_a_running_router_is_noticed_by_itself(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = secret_volume(tmp_path, only("one"))
        async with rig(Replica(), settings=with_keys(path)) as r:
            assert (await ask(r, OTHER)).status == 401
            secret_volume(tmp_path, only("one", OTHER))
            async with asyncio.timeout(5):
                while (await ask(r, OTHER)).status == 401:
                    await asyncio.sleep(0.05)
            assert (await ask(r, SECRET)).status == 401

    run(scenario())
