"""Opening a cache for harvesting: its plan and its pass, written now or checked against what is there."""

from pathlib import Path

from harvest.job import Job
from harvest.plan import (
    Choice,
    choose_conversations,
    make_identity,
    make_plan,
    tokenizer_digest,
    tokenizer_files,
    write_plan,
)
from shared import storage
from shared.digests import hex_digest
from shared.errors import IdentityError
from shared.layout import GROUP, PASSES, PLAN, TMP, Geometry
from shared.plan import Pass, Plan, differing_fields, read_passes, read_plan
from shared.sealed_json import write_sealed
from shared.writers import writer_folder
from shared.zarr_metadata import layer_metadata


def start_plan(job: Job) -> tuple[Plan, Choice, dict[str, bytes]]:
    """A new plan, chosen and sized but not written."""
    files = tokenizer_files(job.tokenizer)
    choice = choose_conversations(job.config, job.source, job.template, job.plan_tokens)
    identity = make_identity(job.config, job.model, job.source, tokenizer_digest(files), job.sizes(None))
    return make_plan(choice, job.source, identity, job.d_model, job.num_layers), choice, files


def check_plan(job: Job, cache: Path) -> Plan:
    """The plan that is there, if it is the plan of this job.

    Raises:
        IdentityError: naming each field that differs.
    """
    plan = read_plan(cache)
    files = tokenizer_files(job.tokenizer)
    wanted = make_identity(job.config, job.model, job.source, tokenizer_digest(files), job.sizes(plan))
    lines = differing_fields(plan.identity, wanted)
    if lines:
        raise IdentityError(
            f"{cache} was made from another configuration:\n  " + "\n  ".join(lines)
            + "\nHarvest into another cache (CACHE=name), or start this one over: --fresh"
        )
    return plan


def open_plan(job: Job, cache: Path) -> Plan:
    """The cache's plan, written now if there is none yet."""
    if (cache / PLAN).exists():
        return check_plan(job, cache)
    if cache.exists() and any(path.name != TMP for path in cache.iterdir()) and not (cache / GROUP).exists():
        raise IdentityError(f"{cache} is a folder with other files in it. Choose another one: CACHE=name")
    with writer_folder(cache) as writer:
        plan, choice, files = start_plan(job)
        return write_plan(cache, plan, choice, files, writer)


def open_pass(job: Job, cache: Path, geometry: Geometry, writer: str) -> Pass:
    """The pass of this job, written now if it is not there yet.

    Raises:
        IdentityError: one of its layers belongs to another pass.
    """
    wanted = job.pass_()
    for other in read_passes(cache).values():
        if other.pass_id == wanted.pass_id:
            return other
        shared_layers = sorted(set(other.layers) & set(wanted.layers))
        if shared_layers:
            raise IdentityError(
                f"{cache} has layers {other.layers} in one pass ({other.compute_dtype}, {other.attention}); asked: "
                f"{wanted.layers} ({wanted.compute_dtype}, {wanted.attention}). Ask for just those, or only others."
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
