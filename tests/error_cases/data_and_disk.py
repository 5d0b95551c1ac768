"""Exit codes 65, 74 and 75: conversations, files, and what works later."""

import errno
import gzip
import os
import shutil
from pathlib import Path

import pyarrow.parquet
import torch

from harvest import encoding
from harvest.config import Deduplicate
from harvest.conversation import Skipped
from harvest.data_files import read_file
from harvest.deduplicate import find_duplicates
from harvest.encoding import Batches, Encoding
from harvest.hub_dataset import stream_rows
from harvest.kept_chats import write_kept
from harvest.model import find_model
from harvest.opening import open_plan
from harvest.run import harvest
from harvest.sources import check_skipped, find_source
from shared import storage
from shared.format.plan import read_plan
from shared.writing.writers import remove_cache, writer_folder
from tests import tiny
from tests.error_cases.case import ONE_SAE, case
from tests.train import tiny_run
from tests.train.fake_cache import FakeCache, planted
from train.evaluation.evaluate import evaluate_saes
from train.export import load_sae
from train.locks import locked
from train.policy import TokenPolicy, training_mask


@case(65, "empty", then="Expected rows with messages")
def an_empty_data_set(w):
    check_skipped(0, {}, [], 1.0)


BAD_ROW = [Skipped("a.jsonl:1", "bad_role", "expected a role like 'user'; got 3")]


@case(65, "11 of 1,000", "a.jsonl:1: bad_role", then="--set harvest.max_skipped=")
def too_many_malformed_rows(w):
    check_skipped(1000, {"bad_role": 11}, BAD_ROW, 0.01)


@case(65, "All 5 rows", "a.jsonl:1: bad_role", then='Expected rows of {"messages"')
def only_malformed_rows(w):
    check_skipped(5, {"bad_role": 5}, BAD_ROW, 1.0)


@case(65, "data.jsonl", "(data.jsonl:1)", then="--set harvest.dataset_layout=")
def rows_of_plain_text(w):
    Path("data.jsonl").write_text('{"text": "Once upon a time"}\n')
    list(find_source("data.jsonl").read())


@case(65, "'data.parquet'", "title, body", then="Expected one of: messages")
def a_table_of_other_columns(w):
    pyarrow.parquet.write_table(pyarrow.table({"title": ["a"], "body": ["b"]}), "data.parquet")
    list(find_source("data.parquet").read())


@case(65, "'data.jsonl.gz'", "end-of-stream", then="Copy or download it again")
def a_data_file_that_is_cut_short(w):
    Path("data.jsonl.gz").write_bytes(gzip.compress(b'{"messages": 3}\n')[:-4])
    list(find_source("data.jsonl.gz").read())


@case(65, "split 'tset'", "['train']", then="--set harvest.dataset_split=")
def a_split_that_a_data_set_does_not_have(w):
    (w.tmp / "hub").mkdir()
    shutil.copy(w.data, w.tmp / "hub" / "train.jsonl")
    list(stream_rows(str(w.tmp / "hub"), "main", "tset"))


@case(65, "data.jsonl", then="the same command again")
def data_that_changes_while_it_is_deduplicated(w):
    Path("data.jsonl").write_bytes(w.data.read_bytes() * 2)
    source, options = find_source("data.jsonl"), Deduplicate()
    duplicates = find_duplicates(source.read, options)
    Path("data.jsonl").write_bytes(w.data.read_bytes())
    write_kept(source, duplicates, options, None, None)


@case(74, "data.jsonl", "No such file", then="Check the disk")
def a_data_file_that_goes_away(w):
    list(read_file(Path("data.jsonl")))


@case(65, "of layer 2", "conversation", then="--set harvest.nonfinite=keep")
def a_row_that_is_not_finite(w):
    w.patch.setattr("harvest.forward.nonfinite_rows", lambda rows: torch.arange(len(rows)) == 3)
    tiny.make_cache(w.tmp / "cache", w.llama, w.data, nonfinite="error", layers=[2])


@case(65, "of unit", "layer 2", then="--set harvest.compute_dtype=float32")
def a_model_that_computes_only_nan(w):
    w.patch.setattr("harvest.forward.nonfinite_rows", lambda rows: torch.ones(len(rows), dtype=torch.bool))
    tiny.make_cache(w.tmp / "cache", w.llama, w.data, layers=[2])


@case(65, "keep role system", "layer 3", then="Loosen [train.policy]")
def a_policy_that_keeps_nothing(w):
    training_mask(tiny_run.cache(), 3, TokenPolicy(keep_roles=("system",)))


@case(65, "layer 3", then="Run the harvest further")
def no_training_rows_yet(w):
    rows, _ = planted(256, d_in=24)
    training_mask(FakeCache(rows, num_train_rows=0), 3, TokenPolicy())


@case(74, "nosuch", then="make harvest")
def a_cache_that_was_never_made(w):
    read_plan(w.tmp / "nosuch")


@case(74, "Cannot write", "file: File exists", then="permissions")
def a_folder_that_cannot_be_made(w):
    Path("file").write_text("x")
    open_plan(w.job(), w.tmp / "file" / "cache")


@case(74, "Cannot write", "Read-only file system", then="permissions")
def a_read_only_disk(w):
    def refuse(operation, path):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with storage.observe(refuse):
        open_plan(w.job(), w.tmp / "cache")


@case(74, "nosuch", "cfg.json", then="permissions")
def no_sae_in_a_folder(w):
    load_sae(w.tmp / "nosuch")


@case(74, "sae_weights.safetensors", "missing", then="--fresh")
def an_sae_without_its_weights(w):
    cache, [folder] = tiny_run.train(w.tmp, ONE_SAE)
    (folder / "sae_weights.safetensors").unlink()
    evaluate_saes(cache, 3, [folder])


@case(65, "holds out 1 conversation", "conversation 95", then="Harvest it anew")
def held_out_conversations_that_were_trained_on(w):
    cache, [folder] = tiny_run.train(w.tmp, ONE_SAE)
    cache.keys[95] = cache.keys[0]
    evaluate_saes(cache, 3, [folder])


@case(75, "'org/name'", then="MODEL=path/to/folder")
def a_hub_that_cannot_be_reached(w):
    find_model("org/name")


@case(75, "'org/chats'", then="DATA=my.jsonl")
def a_data_set_whose_hub_cannot_be_reached(w):
    find_source("org/chats")


@case(75, "No space left for /", then="run the same command again")
def a_full_disk(w):
    def refuse(operation, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with storage.observe(refuse):
        open_plan(w.job(), w.tmp / "cache")


@case(75, "GB needed", then="CACHE=/scratch/name")
def a_disk_that_is_too_small(w):
    w.patch.setattr(storage, "free_bytes", lambda path: 1000)
    harvest(w.job(layers=[1]), w.copy())


@case(75, "checkpoints", then="Wait, or stop it")
def two_trainings_of_one_layer(w):
    with locked(w.tmp / "checkpoints", ["a", "b"]), locked(w.tmp / "checkpoints", ["b", "c"]):
        pass


@case(75, "cache is being written by", then="Stop it first")
def starting_over_while_a_writer_works(w):
    with writer_folder(w.tmp / "cache"):
        remove_cache(w.tmp / "cache")


class Dying:
    """Ends the process that encodes with it."""

    def encode(self, conversations):
        os._exit(9)


@case(75, "was killed", then="--processes 1")
def a_process_of_the_plan_that_is_killed(w):
    w.patch.setattr(encoding, "_ALONE", 0)
    with Encoding(Dying(), 10, Batches(w.tmp), processes=2) as work:
        list(work.put([tiny.conversation(("user", "hello"))]))
        list(work.rest())
