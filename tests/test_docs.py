"""What README, CONTRIBUTING and docs/ say of files, figures and limits is so."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import train_step
from shared import sealed_json

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8")
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))}
RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "benchmarks" / "results").glob("*.json")}
OURS = ("harvest/", "train/", "shared/", "pipelines/", "tests/", "benchmarks/", "docs/", ".ci/")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page):
    text = PAGES[page]
    named = {word for word in re.findall(r"`([\w./-]+)`", text) if word.startswith(OURS)}
    linked = {link for link in re.findall(r"\]\(([\w./-]+)\)", text)}
    folder = ROOT if page in {"README.md", "CONTRIBUTING.md"} else ROOT / "docs"
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing | {link for link in linked if not (folder / link).exists()}


def speeds():
    """The rows of the README's table of speeds: what, and its figures."""
    table = PAGES["README.md"].partition("## Speed")[2].partition("## ")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_speeds_of_the_readme_are_those_of_the_results():
    plain, bare, reader, batches, verify, ngrams, ngram_memory, plan_memory, *steps, one_pass, memory = speeds()
    harvest = RESULTS["harvest_speed_layer9"]
    assert plain[-1] == f"{harvest['times_plain_loop']:.1f}x"
    assert bare[-1] == f"{harvest['share_of_bare_loop']:.2f}"
    cold, warm = (RESULTS["reader_speed"][state] for state in ("cold", "warm"))
    medians = cold["gb_per_second"]["block reader"] / cold["gb_per_second"]["sequential read"]
    shares = {name: (share, warm["share_of_sequential_read"][name])
              for name, share in cold["share_of_sequential_read"].items()}
    of_cold, of_warm = shares["block reader"]
    assert reader[-1] == f"{of_cold:.2f} (of the medians {medians:.2f}; warm {of_warm:.2f})"
    for row, name in ((batches, "shuffled batches"), (verify, "verify")):
        of_cold, of_warm = shares[name]
        assert row[-1] == f"{of_cold:.2f} (warm {of_warm:.2f})"
    duplicates = RESULTS["deduplicate"]
    speed, ours, loop = duplicates["speed"], duplicates["memory"], duplicates["plain_loop_memory"]
    assert f", {speed['megabytes_a_second']['find_duplicates']:.0f} MB of text" in ngrams[0]
    assert ngrams[-1] == f"{speed['times_as_fast_as_plain_loop']:.1f}x"
    assert f"{duplicates['budget_mib']} MiB for n-grams ({ours['1000000']['peak_mib']:.0f} MiB)" in ngram_memory[0]
    assert f"({ours['30000']['peak_mib']:.0f} MiB; plain Python {loop['30000']['peak_mib']:,.0f})" in ngram_memory[1]
    assert ngram_memory[-1] == f"{ours['1000000']['peak_mib'] / ours['30000']['peak_mib']:.2f}x"
    assert f"about {duplicates['extrapolated']['peak_gib']:.1f} GiB, extrapolated" in PAGES["README.md"]
    few, *_, many = sorted(RESULTS["plan"]["runs"], key=lambda run: (run["conversations"], -run["processes"]))
    assert f"{many['conversations']:,} chats" in plan_memory[0]
    assert f"({many['peak_mib']:.0f} MiB)" in plan_memory[0]
    assert f"{few['conversations']:,} chats ({few['peak_mib']:.0f} MiB)" in plan_memory[1]
    assert plan_memory[-1] == f"{many['peak_mib'] / few['peak_mib']:.2f}x"
    names = [f"train_step_{case.replace('-', '_batch')}" for case in train_step.ALL]
    measured = [train_step.readme_row(RESULTS[name]) for name in names if name in RESULTS]
    assert [f"| {' | '.join(row)} |" for row in steps] == measured
    assert measured
    shared = RESULTS["shared_pass"]
    assert f", {shared['steps']} steps" in one_pass[0]
    assert one_pass[-1] == f"{shared['share_of_sum']:.2f}x the time, {shared['bytes_of_one']:.2f}x one SAE's bytes"
    peak = RESULTS["harvest_memory"]["peak_mib"]
    assert memory == [f"peak memory of a harvest of 500 k tokens ({peak['500000']:.0f} MiB)",
                      f"the same of 50 k tokens ({peak['50000']:.0f} MiB)",
                      f"{RESULTS['harvest_memory']['ratio']:.2f}x"]


def test_the_archive_is_as_much_smaller_as_the_readme_says():
    assert f"{RESULTS['cache_tiers']['archive']['ratio']:.2f}x smaller" in PAGES["README.md"]


def test_templates_are_as_fast_as_the_readme_says():
    embedded, short = (contest["ratio"] for contest in RESULTS["templating"]["contests"].values())
    text = " ".join(PAGES["README.md"].split())
    assert f"types at {embedded:.2f} of its speed for the embedded chats, at {short:.2f} for short ones" in text


def test_the_language_models_metrics_cost_what_the_page_says():
    found = RESULTS["loss_speed"]
    one, two = (found[name]["processor"] for name in ("times_plain_pass", "two_saes_times_plain_pass"))
    text = " ".join(PAGES["metrics.md"].split())
    assert f"take {one:.2f} times the processor seconds" in text
    assert f"each further pass {two - one:.2f} ({found['tokens']:,} tokens" in text


@pytest.mark.parametrize("layer", [9, 15])
def test_the_plain_loop_of_the_quality_page_is_that_of_the_results(layer):
    found = RESULTS[f"plain_loop_layer{layer}"]
    row = f"| {layer} | plain loop | {found['explained_variance']:.4f} | {found['l0']:.1f} |"
    assert row in PAGES["quality.md"]


def test_the_speeds_on_a_gpu_are_those_of_the_results():
    found, page = RESULTS["gpu"], PAGES["gpu.md"]
    for key, step in found["train"].items():
        name, _, batch = key.partition("_batch")
        if batch == "128":
            large = found["train"][f"{name}_batch8192"]
            assert (f"| {large['milliseconds']:.1f} | {large['tokens_per_second']:,.0f} | "
                    f"{large['share_of_products']:.0%} | {step['milliseconds']:.2f} | "
                    f"{320_000 * step['milliseconds'] / 60_000:.1f} |") in page, key
    for case, result in found["peers"].items():
        for peer, ratio in result["ratio"].items():
            assert f"{result['milliseconds_a_step'][peer]:.1f} ({ratio:.1f}x)" in page, (case, peer)
            assert f"{peer} {result['peer_versions'][peer]}" in page
    harvest = found["harvest"]
    for figure in ("compute_tokens_per_second", "end_to_end_tokens_per_second"):
        assert f"{harvest[figure]:,.0f} tokens/s" in page
    assert f"{harvest['plain_write_bytes_per_second'] / 1e9:.2f} GB/s" in page
    assert f"fill {100 * harvest['fill']:.0f} % of" in page
    assert f"{found['limits']['product_flops'] / 1e12:.0f} TFLOP/s" in page
    assert f"{found['limits']['copy_bytes'] / 1e12:.2f} TB/s" in page
    topk = found["train"]["topk_batch8192"]["tokens_per_second"]
    ratios = " / ".join(f"{ratio:.1f}x" for ratio in found["peers"]["topk-8192"]["ratio"].values())
    assert f"{topk / 1e6:.2f} M tokens/s, {ratios}" in PAGES["README.md"].replace("\n", " ")


@pytest.mark.parametrize("result", sorted(name for name in RESULTS if "quality_ablations" in name))
def test_the_ablations_of_the_quality_page_are_those_of_the_results(result):
    found = RESULTS[result]["variants"]
    for name, variant in found.items():
        difference = round(variant["explained_variance"] - found["modern"]["explained_variance"], 4) + 0.0  # no -0
        label, against = ("as it is (`modern`)", "") if name == "modern" else (name, f"{difference:+.4f}")
        row = f"| {label} | {variant['explained_variance']:.4f} | {against} | {variant['dead_latents']} |"
        assert row in PAGES["quality.md"], name


def test_the_bounds_of_json_are_those_that_the_pages_say():
    mib, bounds = sealed_json._MAX_BYTES >> 20, sealed_json._BOUNDS
    assert f"larger than {mib} MiB" in " ".join(PAGES["cache-format.md"].split())
    said = (f"a JSON file over {mib} MiB, {bounds['max_values']:,} values, {bounds['max_containers']:,} lists and "
            f"objects or {bounds['max_nesting']} levels")
    assert said in PAGES["untrusted-caches.md"]


def test_the_table_of_shuffles_is_that_of_the_results():
    assert "\n".join(RESULTS["shuffle_quality"]["table"]) in PAGES["shuffling.md"]
