"""Opening a cache for harvesting: its plan and its pass, written now or checked against what is there."""

from pathlib import Path
from typing import Any

from harvest.identity import check_identity, make_identity, tokenizer_digest, tokenizer_files
from harvest.job import Job
from harvest.plan import Choice, choose_conversations, make_plan, write_plan
from shared import storage
from shared.digests import hex_digest
from shared.errors import IdentityError
from shared.format.identity import differences, two_columns
from shared.format.layout import CLAIMS, ENCODED, GROUP, PASSES, PLAN, TMP, Geometry
from shared.format.plan import Pass, Plan, make_cache_id, read_passes, read_plan
from shared.format.zarr_metadata import layer_metadata
from shared.sealed_json import write_sealed
from shared.writing.claims import only_one
from shared.writing.writers import writer_folder


def start_plan(job: Job, processes: int = 1, folder: Path | None = None) -> tuple[Plan, Choice, dict[str, bytes]]:
    """A new plan, chosen and sized but not written.

    Args:
        processes: how many encode conversations.
        folder: where their tokens are kept; None where no plan is to be written.
    """
    files = tokenizer_files(job.tokenizer)
    identity = _identity(job, files, None)
    choice = choose_conversations(
        job.config, job.source, job.template, job.order, job.plan_tokens, folder, processes
    )
    return make_plan(choice, job.source, identity, job.d_model, job.num_layers), choice, files


def _identity(job: Job, files: dict[str, bytes], there: Plan | None) -> dict[str, Any]:
    return make_identity(job.config, job.model, job.source, job.order, tokenizer_digest(files), job.sizes(there))


def check_plan(job: Job, cache: Path) -> Plan:
    """The plan that is there, if it is the plan of this job.

    Raises:
        IdentityError: naming each field that differs.
    """
    plan = read_plan(cache)
    files = tokenizer_files(job.tokenizer)
    check_identity(cache, plan, _identity(job, files, plan), files)
    return plan


def open_plan(job: Job, cache: Path, processes: int = 1) -> Plan:
    """The cache's plan, written now if there is none yet; one that was killed half-way goes on.

    Args:
        processes: how many encode conversations. The plan is the same for any number.
    """
    if (cache / PLAN).exists():
        storage.remove_tree(cache / TMP / ENCODED)  # whoever wrote the plan may have died before it did
        return check_plan(job, cache)
    begun = {TMP, CLAIMS}
    if cache.exists() and any(path.name not in begun for path in cache.iterdir()) and not (cache / GROUP).exists():
        raise IdentityError(f"{cache} is a folder with other files in it. Choose another one: CACHE=name")
    with writer_folder(cache) as writer, only_one(cache, writer):
        if (cache / PLAN).exists():  # another process planned meanwhile, perhaps otherwise
            return check_plan(job, cache)
        folder = cache / TMP / ENCODED / make_cache_id(_identity(job, tokenizer_files(job.tokenizer), None))
        for other in folder.parent.glob("*"):
            if other != folder:  # of a plan of another configuration that was never finished
                storage.remove_tree(other)
        storage.make_folder(folder)
        plan, choice, files = start_plan(job, processes, folder)
        plan = write_plan(cache, plan, choice, job.order, folder, files, writer)
        storage.remove_tree(folder.parent)
        return plan


def open_pass(job: Job, cache: Path, geometry: Geometry, writer: str) -> Pass:
    """The pass of this job, written now if it is not there yet.

    Raises:
        IdentityError: one of its layers belongs to another pass.
    """
    return make_pass(job.pass_(read_passes(cache).values()), cache, geometry, writer)


def make_pass(wanted: Pass, cache: Path, geometry: Geometry, writer: str) -> Pass:
    """A pass of a cache, written now if it is not there yet; raises as `open_pass`."""
    with only_one(cache, writer):
        return _make_pass(wanted, cache, geometry, writer)


def _make_pass(wanted: Pass, cache: Path, geometry: Geometry, writer: str) -> Pass:
    for other in read_passes(cache).values():
        if other.pass_id == wanted.pass_id:
            if other.tier == "archive":
                raise IdentityError(f"{cache} is an archive: nothing is harvested into it. Harvest into the cache that "
                                    f"it was made from, or make one of it: python -m harvest expand {cache} NEW")
            storage.fsync_folder(cache / PASSES)  # whoever wrote it may have died before it was durable
            return other
        if set(other.layers) & set(wanted.layers):
            old, new = (one.model_dump(exclude={"digests"}) for one in (other, wanted))
            raise IdentityError(
                f"{cache} has layers {other.layers} in one pass over the model, made otherwise:\n"
                + "\n".join(two_columns(differences(old, new)))
                + "\nAsk for just those layers made that way, only for others, or use another cache: CACHE=name"
            )
    digests = {}
    for layer in wanted.layers:
        for name, data in layer_metadata(geometry, layer).items():
            path = f"{GROUP}/{name}"
            storage.make_folder((cache / path).parent)
            storage.write_file(cache / path, data, cache / TMP / writer)
            digests[path] = hex_digest(data)
    entry = wanted.model_copy(update={"digests": digests})
    storage.make_folder(cache / PASSES)
    write_sealed(cache / PASSES / f"{entry.pass_id}.json", entry.model_dump(mode="json"), cache / TMP / writer)
    return entry
