"""Health checks, ejection and return, with real replicas; and what is read from an engine's metrics."""

from __future__ import annotations

from dataclasses import replace

from shoal_router.endpoints import Report
from shoal_router.engine_metrics import read_metrics
from shoal_router.health import HealthSettings
from tests.router.conftest import Run
from tests.router.scripted import FAST, Replica, chat, get, post, rig, until

METRICS = b"""# HELP vllm:num_requests_running x
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 100.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="2048"} 1.0
process_start_time_seconds 1.7e+09
shoal:max_num_seqs{engine="0",model_name="m"} 32.0
shoal:max_num_seqs{engine="1",model_name="m"} 32.0
shoal:max_requests{engine="0",model_name="m"} 100.0
"""


def test_load_cache_size_and_start_are_read_from_an_engines_metrics() -> None:
    report = read_metrics(METRICS, Report())
    assert (report.running, report.waiting, report.kv_tokens, report.started_at_s) == (7, 2, 32_768, 1.7e9)
    assert (report.max_num_seqs, report.max_requests) == (64, 100)


def test_what_metrics_do_not_say_stays_as_it_was() -> None:
    before = Report(kv_tokens=5, started_at_s=7.0, max_num_seqs=3, max_requests=4)
    assert read_metrics(b"vllm:cache_config_info{} 1\nsomething_else 3\n", before) == before


def test_replica_that_comes_up_later_is_used_then(run: Run) -> None:
    async def scenario() -> None:
        late = Replica(ready=503)
        async with rig(late, wait=False) as r:
            assert (await r.ask(get("/ready"))).status == 503
            answer = await r.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            assert int(answer.headers["retry-after"]) >= 1
            late.ready = 200
            await r.state("healthy")
            assert (await r.ask(get("/ready"))).status == 200
            assert (await r.ask(post())).status == 200

    run(scenario())


def test_replica_that_says_it_drains_gets_nothing_more_and_no_fault(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(), Replica()) as r:
            r.replicas[0].ready = 503
            await r.state("absent", "healthy")
            for _ in range(10):
                assert (await r.ask(post())).headers["x-shoal-replica"] == r.replicas[1].url
            assert [e.tally.faults for e in r.router.endpoints] == [0, 0]
            r.replicas[1].ready = 503
            await r.state("absent", "absent")
            answer = await r.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready"), "known, but nobody is ready"

    run(scenario())


def test_killed_replica_is_taken_out_forgotten_and_comes_back_half_open(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(), Replica(), settings=replace(FAST, health=HealthSettings(0.05, 1.0))) as r:
            for i in range(20):
                await r.ask(post(body=chat(f"{i}" * 1000)))
            endpoint = next(iter(r.router.endpoints))
            assert r.router.index.size(endpoint.slot) > 0
            await r.replicas[0].kill()
            await r.state("suspect", "healthy")
            await until(lambda: r.router.index.size(endpoint.slot) == 0)
            await r.replicas[0].start()
            await r.state("half_open", "healthy")
            for i in range(20):
                assert (await r.ask(post(body=chat(f"again {i}")))).status == 200
            await r.state("healthy", "healthy")
            assert endpoint.tally.ejections == 1

    run(scenario())


def test_all_replicas_ejected_is_panic_and_they_are_tried_all_the_same(run: Run) -> None:
    async def scenario() -> None:
        # Nobody asks how they are for a long time, so only requests can find out.
        async with rig(Replica(), settings=replace(FAST, health=HealthSettings(60.0, 1.0))) as r:
            replica = r.replicas[0]
            await replica.kill()
            answer = await r.ask(post())
            assert (answer.status, answer.code) == (503, "no_replica_ready")
            await r.state("suspect")
            await replica.start()
            assert (await r.ask(post())).status == 200

    run(scenario())


def test_restarted_engine_is_believed_to_hold_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(metrics=METRICS)) as r:
            (endpoint,) = r.router.endpoints
            await r.ask(post(body=chat("x" * 2000)))
            assert r.router.index.size(endpoint.slot) > 5
            r.replicas[0].metrics = METRICS.replace(b"1.7e+09", b"1.8e+09")
            await until(lambda: r.router.index.size(endpoint.slot) == 0)

    run(scenario())


def test_index_is_as_large_as_the_engines_cache(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(metrics=METRICS.replace(b"2048", b"128"))) as r:
            (endpoint,) = r.router.endpoints
            for i in range(30):
                await r.ask(post(body=chat(f"{i}" * 2000)))
            await until(lambda: r.router.index.size(endpoint.slot) == 128 * 16 * 4 // 256)

    run(scenario())


def test_engine_without_ready_is_judged_by_health(run: Run) -> None:
    class OnlyHealth(Replica):
        def _control(self, path: str) -> bytes:
            answer = super()._control(path)
            return answer.replace(b"200", b"404", 1) if path == "/ready" else answer

    async def scenario() -> None:
        async with rig(OnlyHealth()) as r:
            assert (await r.ask(post())).status == 200

    run(scenario())


def test_models_loaded_later_are_found(run: Run) -> None:
    async def scenario() -> None:
        async with rig(Replica(models=("m",))) as r:
            assert (await r.ask(post(body={"model": "lora"}))).code == "model_not_found"
            r.replicas[0].models = ("m", "lora")
            await until(lambda: any(e.serves("lora") for e in r.router.endpoints))
            assert (await r.ask(post(body={"model": "lora"}))).status == 200

    run(scenario())


def test_router_key_opens_the_model_list_of_a_guarded_engine(run: Run) -> None:
    async def scenario() -> None:
        settings = replace(FAST, api_keys=(b"k",), health=replace(FAST.health, api_key="k"))
        async with rig(Replica(), settings=settings) as r:
            assert (await r.ask(post(headers="Authorization: Bearer k\r\n"))).status == 200

    run(scenario())
