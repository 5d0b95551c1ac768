"""A writer that is paused anywhere, taken for dead, and wakes late loses cleanly, even when its bytes differ.

The writer stops before its n-th operation; another, whose numbers are others, does all that is left; then the
first goes on. Whatever n is, every committed file must be the one that its record describes.
"""


from shared import storage
from shared.format.commits import read_record
from shared.writing.writers import Watch, recover
from tests.crash import small_harvest
from tests.crash.mutants import commit_with_the_record_last
from tests.crash.oracle import damage, leftovers
from tests.crash.recordings import operations_of
from tests.crash.small_harvest import committed_units, harvest_alone, new_process

OTHER_SEED = 7


def interrupted(cache, before):
    """A harvest in the middle of which, before one of its operations, another does the rest; units acknowledged."""
    acknowledged = []
    count = iter(range(10**9))

    def pause(operation, path):
        if next(count) == before:
            with storage.observe(lambda *_: None):
                harvest_alone(cache, acknowledged.append, seed=OTHER_SEED, watch=Watch(0.0))

    new_process(cache)
    with storage.observe(pause):
        harvest_alone(cache, acknowledged.append)
    return acknowledged


def harm(cache, acknowledged):
    """What is wrong with a cache that two writers of different bytes have filled."""
    found = damage(cache)
    if sorted(acknowledged) != [0, 1, 2]:
        found.append(f"acknowledged: {acknowledged}")
    recover(cache)
    return found + leftovers(cache) + damage(cache)


def test_wherever_a_writer_is_paused_its_late_work_does_no_harm(fresh, share, counts):
    winners = set()
    with counts.timed("late writers"):
        operations = operations_of(fresh(), harvest_alone)
        for before in share.of(range(len(operations)), at_least=12):
            cache = fresh()
            acknowledged = interrupted(cache, before)
            assert harm(cache, acknowledged) == [], (before, operations[before - 2 : before + 1])
            assert committed_units(cache) == {0, 1, 2}
            winners.add(tuple(read_record(path).writer for path in sorted(cache.glob("commits/*/*.json"))))
            counts.add("late writers", "pauses")
    assert any(len(set(writers)) == 2 for writers in winners), "there was no pause in the middle"


def test_with_files_that_get_their_names_before_the_record_it_would_do_harm(fresh, share, counts, monkeypatch):
    operations = operations_of(fresh(), harvest_alone)
    monkeypatch.setattr(small_harvest, "commit", commit_with_the_record_last)
    points = [number + 1 for number, name in enumerate(operations) if name == "rename"]
    harmed = 0
    for before in share.of(points, at_least=3):
        cache = fresh()
        harmed += bool(harm(cache, interrupted(cache, before)))
    assert harmed
    counts.add("mutants", "the record comes last, with a late writer: states judged", len(points))
    counts.add("mutants", "the record comes last, with a late writer: harmed", harmed)
