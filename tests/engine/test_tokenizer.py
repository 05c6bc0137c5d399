"""Tokens are those the model was trained on: the same ids as the tokenizers that the models were published with."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from shoal_engine.config import ModelConfig, read_config
from shoal_engine.errors import InvalidRequest, ModelLoadError
from shoal_engine.gguf import open_gguf
from shoal_engine.gguf_splits import SPLITS
from shoal_engine.tokenizer import Tokenizer, load_tokenizer
from tests.builders import smollm2
from tests.engine.gguf_files import (
    BPE_METADATA,
    BPE_TOKENS,
    BYTES,
    MERGES,
    SPM_METADATA,
    SPM_TOKENS,
    WORDS,
    model_metadata,
    model_tensors,
    write_gguf,
)

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces   three",
    "it's I'LL you'Re 'sam",
    "12345 3.14 ½²٣ １２",
    "tabs\tand\nlines\n\n\r\n  \n x",
    "日本語のテキスト、한국어 العربية हिन्दी ไทย",
    "emoji 👩‍👩‍👧 🏳️‍🌈 e\u0301 é ﬁ ſ",
    "def f(x):\n    return x**2  # path/to/file.py\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "\x00\x01 \ufeff \u200b \u00a0 \u3000",
    "a" * 300,
    "snake_case CamelCase HTTPServer ABCdef",
]
FAST = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def packaged() -> Tokenizer:
    return load_tokenizer(smollm2(), read_config(smollm2()))


@pytest.fixture(scope="module")
def published() -> tokenizers.Tokenizer:
    """SmolLM2's tokenizer.json as it was published: its vocabulary behind cuts at digits and GPT-2's own."""
    metadata = open_gguf(smollm2()).metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    inner = tokenizers.Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:17]])
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def assert_published(ours: Tokenizer, theirs: tokenizers.Tokenizer, text: str) -> None:
    ids = ours.encode(text)
    assert ids == theirs.encode(text).ids
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def assert_same_tokens(ours: Tokenizer, theirs: Any, text: str) -> None:
    """Against transformers; what a tokenizer.json says of truncation and padding is a leftover of its training."""
    ids = ours.encode(text)
    assert ids == theirs.encode(text, padding=False, truncation=False)
    bare = theirs.encode(text, add_special_tokens=False, padding=False, truncation=False)
    assert ours.encode(text, add_special_tokens=False) == bare
    for skip in (True, False):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", TEXTS)
def test_the_packaged_model_has_its_published_tokens(packaged: Tokenizer, published: Any, text: str) -> None:
    assert_published(packaged, published, text)


@FAST
@given(text=st.text(max_size=60))
def test_the_packaged_model_has_its_published_tokens_for_any_text(
    packaged: Tokenizer, published: Any, text: str
) -> None:
    assert_published(packaged, published, text)


@FAST
@given(ids=st.lists(st.integers(0, 49_151), max_size=12), skip=st.booleans())
def test_any_ids_decode_as_their_decoder_decodes_them(
    packaged: Tokenizer, published: Any, ids: list[int], skip: bool
) -> None:
    assert packaged.decode(ids, skip) == published.decode(ids, skip_special_tokens=skip)


def test_the_packaged_model_knows_its_special_tokens_and_template(packaged: Tokenizer) -> None:
    assert packaged.vocab_size == 49_152
    assert packaged.bos_token_id == 1
    assert packaged.eos_token_ids == (2, 0)
    assert packaged.special_tokens["eos_token"] == "<|im_end|>"
    assert packaged.token_id("<|im_end|>") == 2
    assert "<|im_start|>" in (packaged.chat_template or "")


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_a_byte_level_file_has_the_tokens_that_transformers_reads(tmp_path: Path, split: str) -> None:
    path = write_tokenizer(tmp_path, BPE_METADATA, pre=split, add_bos_token=True)
    ours, theirs = load(path), transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    for text in [*TEXTS, "hello<think> world<|im_end|>12"]:
        if "\u0301" not in text:  # transformers leaves out the composition in Qwen2's own tokenizer.json
            assert_same_tokens(ours, theirs, text)


@pytest.mark.parametrize("name", sorted(SPLITS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()))
def test_a_split_cuts_as_the_published_pattern_does(name: str) -> None:
    theirs = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
    ours = cuts(name)
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def cuts(name: str) -> pre_tokenizers.PreTokenizer:
    patterns = SPLITS[name].patterns
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(each), "isolated") for each in patterns])


CUTS = {
    "gpt-2": "it|'s| 1234|  | x|!!|\n",
    "smollm": "it|'s| |1|2|3|4|  | x|!!|\n",
    "default": "it|'|s| |123|4|  | x|!!|\n",
    "llama-bpe": "it|'s| |123|4|  | x|!!\n",
    "qwen2": "it|'s| |1|2|3|4|  | x|!!\n",
    "tekken": "it|'s| |1|2|3|4|  | x|!!\n",
    "gpt-4o": "it's| |123|4|  | x|!!\n",
    "deepseek-coder": "it|'|s| |1|2|3|4|  | x|!!|\n",
}


@pytest.mark.parametrize(("name", "pieces"), CUTS.items(), ids=list(CUTS))
def test_each_family_of_splits_has_its_own_cuts(name: str, pieces: str) -> None:
    text = pieces.replace("|", "")
    assert "|".join(piece for piece, _ in cuts(name).pre_tokenize_str(text)) == pieces


def write_tokenizer(folder: Path, base: dict[str, Any], **changes: Any) -> Path:
    """A GGUF file with another tokenizer; `changes` are keys behind "tokenizer.ggml.", None leaves one out."""
    changed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    metadata = {key: value for key, value in (base | changed).items() if value is not None}
    tensors = model_tensors("llama", len(base["tokenizer.ggml.tokens"]))
    return write_gguf(folder / "m.gguf", model_metadata("llama") | metadata, tensors)


def load(path: Path) -> Tokenizer:
    return load_tokenizer(path, read_config(path))


def sentencepiece_ids(text: str) -> list[int]:
    """By definition: join the neighbours whose whole scores best, leftmost first; spell the rest in bytes."""
    scores = dict(zip(SPM_TOKENS, SPM_METADATA["tokenizer.ggml.scores"], strict=True))
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        wholes = [(-scores[a + b], at) for at, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not wholes:
            break
        _, at = min(wholes)
        pieces[at : at + 2] = ["".join(pieces[at : at + 2])]
    spelt = [
        [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()] for piece in pieces
    ]
    return [SPM_TOKENS.index(each) for group in spelt for each in group]


WORDY = st.lists(st.sampled_from(["hello", " ", "world", "l", "日本", "he", "x"])).map("".join)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load(write_tokenizer(tmp_path_factory.mktemp("spm"), SPM_METADATA))


@FAST
@given(text=st.one_of(st.text(max_size=20), WORDY))
def test_a_sentencepiece_vocabulary_merges_by_score(sentencepiece: Tokenizer, text: str) -> None:
    ids = sentencepiece.encode(text)
    assert ids == [1, *sentencepiece_ids(text)]
    assert sentencepiece.decode(ids) == text
    assert sentencepiece.encode(text, add_special_tokens=False) == ids[1:]


def test_a_sentencepiece_vocabulary_may_do_without_the_space_in_front(tmp_path: Path) -> None:
    tokens = load(write_tokenizer(tmp_path, SPM_METADATA, add_space_prefix=False, add_bos_token=False))
    ids = tokens.encode("hello world")
    assert ids == [SPM_TOKENS.index("hello"), SPM_TOKENS.index("▁world")]
    assert tokens.decode(ids) == "hello world"
    assert tokens.decode(tokens.encode(" hello")) == " hello"


def test_texts_begin_and_end_as_the_file_says(tmp_path: Path) -> None:
    start, end = BPE_TOKENS.index("<|start|>"), BPE_TOKENS.index("<|im_end|>")
    hello = [BPE_TOKENS.index("hello")]
    for changes, expected in (
        ({}, hello),
        ({"add_bos_token": True}, [start, *hello]),
        ({"add_bos_token": True, "add_eos_token": True}, [start, *hello, end]),
        ({"pre": "llama-bpe"}, [start, *hello]),
        ({"pre": "llama-bpe", "add_bos_token": False}, hello),
    ):
        assert load(write_tokenizer(tmp_path, BPE_METADATA, **changes)).encode("hello") == expected


def test_special_tokens_in_a_text_are_those_tokens(tmp_path: Path) -> None:
    tokens = load(write_tokenizer(tmp_path, BPE_METADATA))
    ids = tokens.encode("hello<|im_end|><think>")
    assert ids == [BPE_TOKENS.index(each) for each in ("hello", "<|im_end|>", "<think>")]
    assert tokens.decode(ids) == "hello<think>"  # <think> is taken whole, but it is text
    assert tokens.decode(ids, skip_special_tokens=False) == "hello<|im_end|><think>"


def test_a_piece_that_is_a_token_is_taken_whole_where_merges_are_ignored(tmp_path: Path) -> None:
    base = BPE_METADATA | {"tokenizer.ggml.tokens": [*BPE_TOKENS, "xyz"]}
    del base["tokenizer.ggml.token_type"]
    assert len(load(write_tokenizer(tmp_path, base, pre="smollm")).encode("xyz")) == 3
    whole = load(write_tokenizer(tmp_path, base, pre="tekken", add_bos_token=False))
    assert whole.encode("xyz") == [len(BPE_TOKENS)]


def test_qwen2_composes_characters_first(tmp_path: Path) -> None:
    apart, composed = "e\u0301", "\u00e9"
    qwen2 = load(write_tokenizer(tmp_path, BPE_METADATA, pre="qwen2"))
    assert qwen2.encode(apart) == qwen2.encode(composed)
    other = load(write_tokenizer(tmp_path, BPE_METADATA, pre="smollm"))
    assert other.encode(apart) != other.encode(composed)


@pytest.mark.parametrize("base", [BPE_METADATA, SPM_METADATA], ids=["byte-level", "sentencepiece"])
def test_the_bytes_of_the_tokens_are_the_bytes_of_the_text(tmp_path: Path, base: dict[str, Any]) -> None:
    tokens = load(write_tokenizer(tmp_path, base))
    for text in TEXTS:
        ids = tokens.encode(text, add_special_tokens=False)
        prefix = " " if tokens.strips_space and text else ""
        assert b"".join(map(tokens.token_bytes, ids)) == (prefix + text).encode()
    assert tokens.token_bytes(tokens.vocab_size) == tokens.token_bytes(-1) == b""


def test_half_a_character_shows_as_one_replacement(tmp_path: Path) -> None:
    tokens = load(write_tokenizer(tmp_path, BPE_METADATA))
    first, *_ = tokens.encode("日")
    assert tokens.token_bytes(first) == "日".encode()[:1]
    assert tokens.token_text(first) == "\ufffd"


@pytest.mark.parametrize("text", ["\ud800", "a\udfff b"])
def test_half_a_surrogate_pair_is_the_clients_error(packaged: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidRequest, match="half a surrogate pair"):
        packaged.encode(text)


def test_a_special_token_outside_the_vocabulary_is_none(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path, BPE_METADATA, bos_token_id=2**32 - 1, eos_token_id=9999)
    tokens = load(path)
    assert tokens.special_tokens == {}
    assert tokens.bos_token_id is None
    assert tokens.eos_token_ids == (BPE_TOKENS.index("<|im_end|>"),)  # by its name


def test_templates_of_a_gguf_file_have_names(tmp_path: Path) -> None:
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "T"}
    tokens = load(write_tokenizer(tmp_path, BPE_METADATA | named))
    assert tokens.chat_templates == {"default": BPE_METADATA["tokenizer.chat_template"], "tool_use": "T"}
    assert load(write_tokenizer(tmp_path, SPM_METADATA)).chat_template is None


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another kind": (BPE_METADATA, {"model": "bert"}, "'bert', expected one of gpt2, llama"),
    "another split": (BPE_METADATA, {"pre": "poro-chat"}, "'poro-chat', expected one of"),
    "no vocabulary": (BPE_METADATA, {"tokens": None, "token_type": None}, "has no vocabulary"),
    "a merge of one": (BPE_METADATA, {"merges": ["he"]}, "'he', expected two tokens"),
    "a merge of strangers": (BPE_METADATA, {"merges": ["h zz"]}, "not usable"),
    "an endless piece": (SPM_METADATA, {"tokens": [*SPM_TOKENS[:-1], "x" * 600]}, "up to 512 characters"),
    "too few scores": (SPM_METADATA, {"scores": [0.0]}, "one per token"),
    "no scores": (SPM_METADATA, {"scores": None}, "one per token"),
    "types of other length": (BPE_METADATA, {"token_type": [1, 3]}, "one per token"),
    "texts that begin with no token": (
        BPE_METADATA,
        {"bos_token_id": 9999, "add_bos_token": True},
        "9999 is outside",
    ),
    "more tokens than embeddings": (BPE_METADATA, {"tokens": [*BPE_TOKENS, "x1", "x2"]}, "embeddings for"),
}


@pytest.mark.parametrize(("base", "changes", "reason"), REFUSED.values(), ids=list(REFUSED))
def test_a_refused_tokenizer_is_named_with_its_file(
    tmp_path: Path, base: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    path = write_tokenizer(tmp_path, base, **changes)
    with pytest.raises(ModelLoadError, match=reason) as refusal:
        load(path)
    assert str(path) in str(refusal.value)


THINK = BPE_TOKENS.index("<think>")
CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=len(BPE_TOKENS),
    hidden_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=8,
    max_position_embeddings=64,
    bos_token_id=BPE_TOKENS.index("<|start|>"),
    eos_token_ids=(THINK,),
)


def write_folder(folder: Path, **tokenizer_config: Any) -> Path:
    """A folder as published models have it: Llama 3's shape with the small vocabulary."""
    vocabulary = {token: number for number, token in enumerate([*BYTES, *WORDS])}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in MERGES]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = [AddedToken(each, special=True, normalized=False) for each in ("<|start|>", "<|im_end|>")]
    inner.add_special_tokens(special)
    inner.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    inner.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", CONFIG.bos_token_id)]
    )
    inner.enable_truncation(4)
    inner.enable_padding(length=4)
    inner.save(str(folder / "tokenizer.json"))
    written = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|start|>",
        "eos_token": {"content": "<|im_end|>", "__type": "AddedToken"},
        "pad_token": None,
        **tokenizer_config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


ADDED = {
    "none": {},
    "as they are": {str(THINK): {"content": "<think>", "normalized": False, "special": False}},
    "become special": {str(THINK): {"content": "<think>", "special": True}},
    "a word becomes a token": {
        str(BPE_TOKENS.index("hello")): {"content": "hello", "lstrip": True, "special": True}
    },
}


@pytest.mark.parametrize("added", ADDED.values(), ids=list(ADDED))
def test_a_folder_has_the_tokens_that_transformers_reads(tmp_path: Path, added: dict[str, Any]) -> None:
    ours = load_tokenizer(write_folder(tmp_path, added_tokens_decoder=added), CONFIG)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "hello<think> world<|im_end|>12", "  hello  hello"]:
        assert_same_tokens(ours, theirs, text)


def test_a_folder_names_its_special_tokens(tmp_path: Path) -> None:
    tokens = load_tokenizer(write_folder(tmp_path), CONFIG)
    assert tokens.special_tokens == {"bos_token": "<|start|>", "eos_token": "<|im_end|>"}
    assert tokens.bos_token_id == CONFIG.bos_token_id
    # What the model's config says, and what its tokenizer says.
    assert tokens.eos_token_ids == (THINK, BPE_TOKENS.index("<|im_end|>"))


def test_a_folder_without_tokenizer_config_takes_special_tokens_from_the_model(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "tokenizer_config.json").unlink()
    tokens = load_tokenizer(tmp_path, CONFIG)
    assert tokens.special_tokens == {"bos_token": "<|start|>", "eos_token": "<think>"}
    assert tokens.chat_template is None


TEMPLATES: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str]]] = {
    "a text": ({"chat_template": "A"}, {}, {"default": "A"}),
    "a list": (
        {"chat_template": [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]},
        {},
        {"default": "A", "tool_use": "B"},
    ),
    "a file wins": ({"chat_template": "A"}, {"chat_template.jinja": "F"}, {"default": "F"}),
    "more files": (
        {},
        {"chat_template.jinja": "F", "additional_chat_templates/tool_use.jinja": "G"},
        {"default": "F", "tool_use": "G"},
    ),
}


@pytest.mark.parametrize(("fields", "files", "expected"), TEMPLATES.values(), ids=list(TEMPLATES))
def test_a_folder_has_its_templates_where_transformers_looks(
    tmp_path: Path, fields: dict[str, Any], files: dict[str, str], expected: dict[str, str]
) -> None:
    write_folder(tmp_path, **fields)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert load_tokenizer(tmp_path, CONFIG).chat_templates == expected
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
    assert (theirs if isinstance(theirs, dict) else {"default": theirs}) == expected


def test_a_folder_without_tokenizer_json_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is missing.*save_pretrained"):
        load_tokenizer(tmp_path, CONFIG)


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json is not a usable tokenizer"):
        load_tokenizer(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("decoder", "reason"), [(decoders.WordPiece(), "'WordPiece'"), (None, "has no decoder")]
)
def test_a_decoder_that_looks_at_whole_texts_is_refused(tmp_path: Path, decoder: Any, reason: str) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    if decoder is not None:
        inner.decoder = decoder
    inner.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ModelLoadError, match=reason):
        load_tokenizer(tmp_path, CONFIG)


LLAMA2_DECODER = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize(
    "decoder",
    [LLAMA2_DECODER, decoders.Metaspace(), decoders.Metaspace(prepend_scheme="never")],
    ids=["llama 2", "metaspace", "metaspace without prefix"],
)
def test_a_text_decodes_as_its_decoder_says(tmp_path: Path, decoder: Any) -> None:
    vocabulary = {token: number for number, token in enumerate(SPM_TOKENS)}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoder
    inner.save(str(tmp_path / "tokenizer.json"))
    tokens = load_tokenizer(tmp_path, replace(CONFIG, bos_token_id=None, eos_token_ids=()))
    for words in (["▁hello", "▁world"], ["hello", "▁"], ["▁", "▁hello"], ["日本"]):
        ids = [vocabulary[word] for word in words]
        assert tokens.decode(ids) == inner.decode(ids)
