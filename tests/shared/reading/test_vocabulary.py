"""Text from ids: as the tokenizers library gives it, from the vocabulary and the decoder alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

from shared.digests import hex_digest
from shared.errors import CorruptError
from shared.reading.vocabulary import TOKENIZER_JSON, read_vocabulary

BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
SENTENCEPIECE = decoders.Sequence([
    decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
])
WORDS = ["▁the", "▁", "low", "er", "##est", "é", "🤷", "Ġnew", "Ċ", "</s>"]
VOCAB = {word: number for number, word in enumerate(WORDS)}

TOKENIZERS = {
    "byte level": Tokenizer(models.BPE({"Ġ": 0, "Ċ": 1, "a": 2, "Ã": 3, "©": 4, "ł": 5}, [])),
    "sentencepiece": Tokenizer(models.BPE(BYTES | {word: 256 + i for i, word in enumerate(WORDS)}, [])),
    "unigram": Tokenizer(models.Unigram([(word, -1.0) for word in [*WORDS, "low"]], unk_id=0)),
    "word piece": Tokenizer(models.WordPiece(VOCAB, unk_token="</s>")),
    "no decoder": Tokenizer(models.WordLevel(VOCAB, unk_token="</s>")),
}
TOKENIZERS["byte level"].decoder = decoders.ByteLevel()
TOKENIZERS["sentencepiece"].decoder = SENTENCEPIECE
TOKENIZERS["unigram"].decoder = decoders.Metaspace()
TOKENIZERS["word piece"].decoder = decoders.WordPiece()
for one in TOKENIZERS.values():
    one.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    one.add_tokens(["  "])


def written(folder, content):
    """The vocabulary of a cache with this tokenizer.json."""
    path = folder / TOKENIZER_JSON
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return read_vocabulary(folder, {TOKENIZER_JSON: hex_digest(content.encode())})


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request, tmp_path_factory):
    theirs = TOKENIZERS[request.param]
    return theirs, written(tmp_path_factory.mktemp("cache"), theirs.to_str())


@given(data=st.data())
def test_ids_become_the_text_that_the_library_gives_them(both, data):
    theirs, ours = both
    ids = data.draw(st.lists(st.integers(0, theirs.get_vocab_size() + 3), max_size=12))  # some are no token
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode_each(ids) == theirs.decode_batch([[number] for number in ids], skip_special_tokens=False)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_models_own_tokenizer_reads_the_same(family, request, tmp_path):
    theirs = AutoTokenizer.from_pretrained(request.getfixturevalue(family))
    ours = written(tmp_path, theirs.backend_tokenizer.to_str())
    ids = list(range(len(theirs)))
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "change",
    [
        {"model": None}, {"model": {}}, {"model": {"vocab": 3}}, {"model": {"vocab": {"a": "b"}}},
        {"model": {"vocab": [1]}}, {"model": {"vocab": {"a": True}}},
        {"added_tokens": [{"content": "a"}]}, {"added_tokens": {"a": 1}},
        {"decoder": []}, {"decoder": "ByteLevel"}, {"decoder": {"type": "Sequence"}},
        {"decoder": {"type": ["ByteLevel"]}}, {"decoder": {"type": "Strip", "content": 5}},
        {"decoder": {"type": "Replace", "pattern": "a", "content": ""}},
        {"decoder": {"type": "Replace", "pattern": {"String": ""}, "content": ""}},
        {"decoder": {"type": "Replace", "pattern": {"String": "a"}, "content": None}},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 9}},
    ],
    ids=str,
)
def test_what_is_no_tokenizer_is_refused(change, tmp_path):
    content = json.loads(TOKENIZERS["no decoder"].to_str()) | change
    with pytest.raises(CorruptError, match="no tokenizer that text can be shown with"):
        written(tmp_path, json.dumps(content))


def test_another_file_than_the_recorded_one_is_refused(tmp_path):
    written(tmp_path, TOKENIZERS["unigram"].to_str())
    with pytest.raises(CorruptError, match="damaged"):
        read_vocabulary(tmp_path, {TOKENIZER_JSON: "0" * 32})
    (tmp_path / TOKENIZER_JSON).unlink()
    with pytest.raises(CorruptError, match="missing"):
        read_vocabulary(tmp_path, {})
