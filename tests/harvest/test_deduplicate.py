"""Deduplication against Algorithm 1 written down plainly, with sets of tuples, on sets made to confuse it."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harvest.config import Deduplicate
from harvest.conversation import Skipped
from harvest.deduplicate import find_duplicates
from harvest.ngrams import Ngrams, mix, window_hashes, word_hashes
from harvest.occurrences import stable_order
from tests import tiny

SPACES = (" ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "\u0085", "\u2028", "\x1c", "  ")
"""All of them are unicode whitespace."""

NO_SPACES = ("\u200b", "\ufeff")
"""Invisible, but not whitespace to `str.split`."""


def turns_of(sample, options):
    texts = [message.content for message in sample.messages if not options.roles or message.role in options.roles]
    turns = [tuple(text.split()) if options.unit == "words" else tuple(text) for text in texts]
    return [turn for turn in turns if turn]


def ngrams_of(sample, options):
    turns, n = turns_of(sample, options), options.n
    found = {turn[at : at + n] for turn in turns for at in range(len(turn) - n + 1)}
    if options.short_texts == "turns":
        found |= {turn for turn in turns if len(turn) < n}
    if options.short_texts == "samples" and turns and not found:
        found = {("the whole sample", *turns)}
    return found


def algorithm_1(samples, options):
    """Number and original of each dropped sample."""
    seen, dropped = {}, {}
    for number, sample in enumerate(samples):
        ngrams = ngrams_of(sample, options)
        if earlier := [seen[ngram] for ngram in ngrams if ngram in seen]:
            dropped[number] = min(earlier)
        else:
            seen |= dict.fromkeys(ngrams, number)
    return dropped


def connected(samples, options):
    """Number of each sample that is connected with an earlier one, and of the first one that it is connected with."""
    having = [ngrams_of(sample, options) for sample in samples]
    first = {}
    for start in range(len(samples)):
        waiting = [start] if start not in first else []
        while waiting:
            one = waiting.pop()
            first.setdefault(one, start)
            waiting += [other for other in range(len(samples)) if other not in first and having[one] & having[other]]
    return {number: original for number, original in first.items() if number != original}


def run(samples, options, memory_bytes=1 << 20):
    found = find_duplicates(lambda: iter(samples), options, memory_bytes=memory_bytes)
    return dict(zip(found.number.tolist(), found.original.tolist(), strict=True))


def sample(*texts):
    roles = ("user", "assistant")
    return tiny.conversation(*((roles[number % 2], text) for number, text in enumerate(texts)))


WORDS = st.sampled_from(["a", "b", "c", "ab", "é", "e\u0301", "\u200b", "A"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from(SPACES)), max_size=12).map(
    lambda pairs: "".join(word + space for word, space in pairs))
MESSAGES = st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS)
SAMPLES = st.lists(st.lists(MESSAGES, min_size=1, max_size=4).map(lambda pairs: tiny.conversation(*pairs)), max_size=12)
OPTIONS = st.builds(
    Deduplicate, n=st.integers(1, 7), unit=st.sampled_from(["words", "characters"]),
    roles=st.sampled_from([None, ["user"], ["user", "assistant"], ["nobody"]]),
    short_texts=st.sampled_from(["keep", "turns", "samples"]),
)
BUDGETS = (0, 5_000, 1 << 24)
"""From a sample a run and every bucket of hashes for itself, in files, to all in memory at once."""


@settings(max_examples=80)
@given(SAMPLES, OPTIONS)
def test_what_is_dropped_and_for_whom_is_what_algorithm_1_says_at_every_memory(samples, options):
    expected = algorithm_1(samples, options)
    for memory_bytes in BUDGETS:
        assert run(samples, options, memory_bytes) == expected


@settings(max_examples=60)
@given(SAMPLES, OPTIONS.map(lambda options: options.model_copy(update={"action": "together"})))
def test_together_leaves_no_ngram_on_two_sides(samples, options):
    for memory_bytes in BUDGETS[1:]:
        assert run(samples, options, memory_bytes) == connected(samples, options)


def realistic(num_samples, seed, num_passages=40):
    """Samples of passages that overlap, are cut, repeated, permuted and shared, among words of their own."""
    rng = random.Random(seed)
    words = [f"w{number}" for number in range(500)]
    passages = [[rng.choice(words) for _ in range(rng.randint(15, 60))] for _ in range(num_passages)]
    samples = []
    for _ in range(num_samples):
        texts = []
        for _ in range(rng.randint(1, 4)):
            text = [rng.choice(words) for _ in range(rng.randint(0, 50))]
            if rng.random() < 0.4:
                passage = rng.choice(passages)
                start = rng.randint(0, 20)
                text += passage[start : start + rng.randint(5, 50)] * rng.choice([1, 1, 3]) + [rng.choice(words)]
            texts.append(rng.choice(SPACES).join(text))
        samples.append(sample(*texts))
        if samples and rng.random() < 0.1:
            samples.append(rng.choice(samples))
    rng.shuffle(samples)
    return samples


@pytest.mark.parametrize("seed", range(2))
def test_samples_as_in_real_sets_are_kept_and_dropped_by_algorithm_1_at_every_memory(seed):
    samples, options = realistic(400, seed), Deduplicate()
    expected = algorithm_1(samples, options)
    assert 50 < len(expected) < 350
    everything = []
    for memory_bytes in (1, 30_000, 300_000, 1 << 26):
        found = find_duplicates(lambda: iter(samples), options, memory_bytes=memory_bytes)
        assert dict(zip(found.number.tolist(), found.original.tolist(), strict=True)) == expected
        everything.append(b"".join(array.tobytes() for array in (found.number, found.key, found.ngram)))
    assert len({*everything}) == 1


def test_the_order_decides_and_a_dropped_sample_counts_for_nothing():
    words = [f"w{number}" for number in range(100)]
    a, b, c = (sample(" ".join(words[start : start + 40])) for start in (0, 20, 40))
    options = Deduplicate()
    assert run([a, b, c], options) == {1: 0}
    assert run([b, a, c], options) == {1: 0, 2: 0}
    assert run([a, c, b], options) == {2: 0}
    together = Deduplicate(action="together")
    assert run([a, b, c], together) == {1: 0, 2: 0}
    assert run([a, c, b], together) == {1: 0, 2: 0}


def test_twenty_words_in_common_drop_a_sample_and_nineteen_do_not():
    words = [f"w{number}" for number in range(60)]
    first = sample(" ".join(words[:40]))
    assert run([first, sample("x " + " ".join(words[20:40]) + " y")], Deduplicate()) == {1: 0}
    assert run([first, sample("x " + " ".join(words[21:40]) + " y")], Deduplicate()) == {}


def test_no_ngram_crosses_a_turn():
    words = [f"w{number}" for number in range(30)]
    whole, parts = sample(" ".join(words)), sample(" ".join(words[:15]), " ".join(words[15:]))
    assert run([whole, parts], Deduplicate()) == {}
    assert run([parts, parts], Deduplicate()) == {}, "15 words a turn have no n-gram of 20"
    assert run([parts, parts], Deduplicate(n=15)) == {1: 0}


def test_words_are_what_unicode_whitespace_separates():
    words = [f"w{number}" for number in range(20)]
    for space in SPACES:
        assert run([sample(" ".join(words)), sample(space.join(words) + space)], Deduplicate()) == {1: 0}, repr(space)
    for glue in NO_SPACES:
        assert run([sample(" ".join(words)), sample(glue.join(words))], Deduplicate()) == {}, repr(glue)
    assert run([sample(" ".join(words)), sample(" ".join(words).upper())], Deduplicate()) == {}


def test_a_system_prompt_counts_unless_roles_leave_it_out():
    prompt = " ".join(f"w{number}" for number in range(30))
    samples = [tiny.conversation(("system", prompt), ("user", f"question {number}")) for number in range(4)]
    assert run(samples, Deduplicate()) == {1: 0, 2: 0, 3: 0}
    assert run(samples, Deduplicate(roles=["user", "assistant"])) == {}


def test_short_chats_that_are_equal_are_found_only_on_demand():
    samples = [sample("Hello", "Hi there"), sample("Hello", "Good day"), sample("Hello", " Hi  there"), sample("", " ")]
    samples.append(samples[-1])
    assert run(samples, Deduplicate()) == {}
    assert run(samples, Deduplicate(short_texts="samples")) == {2: 0}
    assert run(samples, Deduplicate(short_texts="turns")) == {1: 0, 2: 0}


def test_skipped_rows_are_not_counted_and_a_duplicate_is_found_by_its_number():
    long = [sample(" ".join(f"{letter}{number}" for number in range(25))) for letter in "abc"]
    rows = [Skipped("x:1", "bad_role"), long[0], long[1], Skipped("x:2", "bad_role"), long[1], long[2], long[0]]
    found = find_duplicates(lambda: iter(rows), Deduplicate())
    assert found.num_read == 5
    assert [found.key_of(number) for number in range(6)] == [None, None, long[1].key, None, long[0].key, None]
    assert [found.find(number) for number in (-1, 2, 4, 99)] == [None, 0, 1, None]
    assert len(find_duplicates(lambda: iter([]), Deduplicate())) == 0


@settings(max_examples=60)
@given(SAMPLES, OPTIONS)
def test_the_ngram_of_a_duplicate_is_found_in_it_and_in_its_original(samples, options):
    found = find_duplicates(lambda: iter(samples), options)
    ngrams = Ngrams(options)
    for number, original, ngram in zip(found.number, found.original, found.ngram, strict=True):
        text = ngrams.text_of(samples[number], int(ngram))
        assert text
        assert ngrams.text_of(samples[original], int(ngram)) == text
    absent = int(mix(np.array([1], np.uint64))[0])
    assert all(ngrams.text_of(one, absent) is None for one in samples)


ANY_TEXT = st.text(st.sampled_from([*SPACES[:-1], *NO_SPACES, *"abé世🌍", "\x00"]) | st.characters(codec="utf-8"))
LONG_WORDS = st.integers(0, 140).map(lambda length: ("0123456789é" * 20)[:length])


@settings(max_examples=60)
@given(st.lists(ANY_TEXT | st.lists(ANY_TEXT | LONG_WORDS).map("".join), max_size=6))
def test_words_are_those_of_str_split_and_equal_if_and_only_if_their_hashes_are(texts):
    hashes, counts = word_hashes(texts)
    assert counts.tolist() == [len(text.split()) for text in texts]
    words = [word for text in texts for word in text.split()]
    assert len(hashes) == len(words)
    assert len({*zip(hashes.tolist(), words, strict=True)}) == len({*words}) == len({*hashes.tolist()})


def test_words_of_every_length_that_differ_in_one_byte_have_other_hashes():
    words = {word for length in range(1, 150) for at in range(length)
             for word in ("a" * length, "a" * at + "b" + "a" * (length - at - 1))}
    hashes, _ = word_hashes([" ".join(sorted(words))])
    assert len({*hashes.tolist()}) == len(words)


def test_unicode_whitespace_separates_words_and_nothing_else_does():
    characters = [chr(point) for point in [*range(0xD800), *range(0xE000, 0x12000), *range(0x12000, 0x110000, 97)]]
    _, counts = word_hashes([f"a{character}b" for character in characters])
    assert [count == 2 for count in counts.tolist()] == [character.isspace() for character in characters]


def test_windows_of_repetitive_text_have_hashes_of_their_own():
    """All 2^12 texts of two letters, and words of Thue and Morse, which break polynomials modulo 2^64."""
    letters = mix(np.arange(1, 3, dtype=np.uint64))
    texts = (np.arange(1 << 12)[:, None] >> np.arange(12)) & 1
    assert len({int(window_hashes(letters[text], 12)[0]) for text in texts}) == 1 << 12
    morse = np.array([number.bit_count() & 1 for number in range(4096)])
    windows = window_hashes(letters[morse], 2048)
    assert len({*windows.tolist()}) == len({tuple(morse[at : at + 2048]) for at in range(len(windows))})


@given(st.lists(st.integers(0, 1 << 12) | st.integers(0, 2**64 - 1), max_size=300), st.integers(0, 63))
def test_the_order_of_hashes_is_the_stable_one_though_many_differ_in_their_lower_bits_alone(values, shift):
    hashes = np.array(values, np.uint64) << np.uint64(shift)
    assert np.array_equal(stable_order(hashes), np.argsort(hashes, kind="stable"))


@given(st.integers(1, 70), st.lists(st.integers(0, 3), max_size=90))
def test_equal_windows_have_equal_hashes_wherever_they_stand(n, values):
    elements = mix(np.array(values, np.uint64))
    hashes = window_hashes(elements, n).tolist()
    windows = [tuple(values[at : at + n]) for at in range(len(values) - n + 1)]
    assert len(hashes) == len(windows)
    assert Counter(Counter(hashes).values()) == Counter(Counter(windows).values())
    assert len({*zip(hashes, windows, strict=True)}) == len({*windows})
