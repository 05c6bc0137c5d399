"""Options on a command line, in a file and in Python are the same options."""

from __future__ import annotations

import argparse
import json

import pytest
import yaml
from hypothesis import given, settings

from shoal_api.flags import OptionError, add_flags, from_args, parse_flags, to_args, to_config
from shoal_api.options import EngineOptions, RouterOptions, ServeOptions
from shoal_api.routing_options import PrefixHash
from tests.api.strategies import any_of

quick = settings(max_examples=40, deadline=None)


def parse(model, argv):
    return parse_flags(argparse.ArgumentParser("shoal"), model, argv)


@pytest.mark.parametrize("model", [ServeOptions, RouterOptions])
def test_every_option_survives_the_way_over_a_command_line(model):
    @quick
    @given(any_of(model))
    def round_trip(options):
        assert parse(model, to_args(options)) == options

    round_trip()


@pytest.mark.parametrize("model", [ServeOptions, RouterOptions])
def test_every_option_survives_the_way_over_a_config_file(model, tmp_path):
    file = tmp_path / "options.yaml"

    @quick
    @given(any_of(model))
    def round_trip(options):
        file.write_text(yaml.safe_dump(to_config(options)), encoding="utf-8")
        assert parse(model, ["--config", str(file)]) == options

    round_trip()


def test_only_what_differs_from_the_defaults_is_written():
    assert to_args(ServeOptions(model="m")) == ["m"]
    assert to_args(RouterOptions()) == []
    assert to_config(ServeOptions(model="m", block_size=32)) == {"model": "m", "blockSize": 32}


def test_flags_are_spelt_as_documented():
    options = ServeOptions(
        model="m", enable_prefix_caching=False, enable_lora=True, lora=("a=/x", "b=/y"), kv_cache_dtype="fp8"
    )
    assert sorted(to_args(options)) == [
        "--enable-lora", "--kv-cache-dtype=fp8", "--lora=a=/x", "--lora=b=/y", "--no-enable-prefix-caching", "m",
    ]  # fmt: skip
    nested = RouterOptions(prefix_hash=PrefixHash(mean_load_percent=150))
    assert to_args(nested) == ["--prefix-hash-mean-load-percent=150"]


def test_every_engine_option_of_the_contract_is_a_flag():
    contract = {
        "--served-model-name", "--dtype", "--device", "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens",
        "--gpu-memory-utilization", "--kv-cache-memory-bytes", "--block-size", "--kv-cache-dtype",
        "--enable-prefix-caching", "--no-enable-prefix-caching", "--tensor-parallel-size",
        "--pipeline-parallel-size", "--quantization", "--enable-lora", "--max-loras", "--max-lora-rank", "--lora",
        "--speculative-model", "--speculative-method", "--num-speculative-tokens", "--load-format", "--seed",
        "--api-key", "--host", "--port", "--grpc-port",
    }  # fmt: skip
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeOptions)
    known = {option for action in parser._actions for option in action.option_strings}
    assert contract <= known


BAD = [
    (["m", "--block-size", "3"], "--block-size", "power of two"),
    (["m", "--block-size", "x"], "--block-size", "whole number"),
    (["m", "--dtype", "half"], "--dtype", "bfloat16"),
    (["m", "--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization", "at most 1"),
    (["m", "--gpu-memory-utilization", "nan"], "--gpu-memory-utilization", ""),
    (["m", "--port", "70000"], "--port", "at most 65535"),
    (["m", "--lora", "adapter"], "--lora", "NAME=PATH"),
    (["m", "--max-num-seqs", "8", "--max-num-batched-tokens", "4"], "--max-num-seqs", "maxNumBatchedTokens"),
    (["m", "--speculative-method", "draft"], "--speculative-model", "both or neither"),
    (["m", "--num-speculative-tokens", "4"], "--num-speculative-tokens", "speculativeMethod"),
    (["m", "--max-model", "4"], "--max-model", "unrecognized"),
    (["m", "--max-model-len"], "--max-model-len", "expected one argument"),
    ([], "MODEL", "is required"),
]


@pytest.mark.parametrize(("argv", "flag", "why"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_a_bad_value_ends_the_command_with_an_error_that_names_the_flag(argv, flag, why, capsys):
    with pytest.raises(SystemExit) as end:
        parse(ServeOptions, argv)
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2
    assert flag in last_line
    assert why in last_line


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://a/v1", "ftp://a", "http://"])
def test_an_endpoint_has_to_be_a_base_url(url, capsys):
    with pytest.raises(SystemExit):
        parse(RouterOptions, ["--endpoint", url])
    assert "--endpoint" in capsys.readouterr().err


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"model": "m", "blockSize": 64, "maxNumSeqs": 8}))
    options = parse(ServeOptions, ["--config", str(file), "--block-size", "32"])
    assert (options.block_size, options.max_num_seqs, options.max_loras) == (32, 8, 1)


def test_a_flag_of_a_block_keeps_what_the_file_says_of_the_rest(tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text("prefixHash: {meanLoadPercent: 150, prefixChars: 512}\n")
    options = parse(RouterOptions, ["--config", str(file), "--prefix-hash-mean-load-percent", "200"])
    assert (options.prefix_hash.mean_load_percent, options.prefix_hash.prefix_chars) == (200, 512)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("blockSize: 3", "blockSize: must be a power of two"),
        ("blokSize: 16", "blokSize: unknown field"),
        ("block_size: 16", "block_size: unknown field"),
        ("- model", "must hold a mapping"),
        ("a: [", "options.yaml"),
        ("maxNumSeqs: '8'", "maxNumSeqs: must be a whole number"),
    ],
)
def test_a_bad_config_file_is_named_with_its_field(text, why, tmp_path):
    file = tmp_path / "options.yaml"
    file.write_text(text)
    with pytest.raises(OptionError, match="--config") as refusal:
        from_args(argparse.Namespace(config=str(file), model="m"), ServeOptions)
    assert why in str(refusal.value)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"absent\.yaml"):
        from_args(argparse.Namespace(config=str(tmp_path / "absent.yaml")), ServeOptions)


def test_help_explains_every_flag_in_a_sentence():
    parser = argparse.ArgumentParser()
    add_flags(parser, ServeOptions)
    for action in parser._actions:
        if action.dest != "help":
            assert action.help
            assert action.help.split(" Default:")[0].endswith(".")
    assert "%" not in parser.format_help()


def test_options_are_frozen_and_strict():
    options = EngineOptions()
    with pytest.raises(ValueError, match="frozen"):
        options.block_size = 32  # type: ignore[misc]
    with pytest.raises(ValueError, match="block_sise"):
        EngineOptions(block_sise=16)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="integer"):
        EngineOptions(max_num_seqs="8")  # type: ignore[arg-type]
