"""The rules of the house: who may import whom, and how large a file gets. tests/ and benchmarks/ are free."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("shared", "harvest", "train", "pipelines")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
files = pytest.mark.parametrize("name", NAMES)

MAY_IMPORT = {
    "shared": {"shared"},
    "harvest": {"harvest", "shared"},
    "train": {"train", "shared"},
    "pipelines": {"pipelines", "harvest", "train", "shared"},
}
"""Our own folders that a folder may import from."""

DOORS = {
    "transformers": r"harvest/(model|template)\.py|pipelines/.*",
    "datasets": r"harvest/hub_dataset\.py",
    "pyarrow": r"harvest/arrow_files\.py",
    "huggingface_hub": r"harvest/hub\.py|harvest/hub_dataset\.py",
    "zarr": r"shared/format/zarr_metadata\.py",
    "numcodecs": r"shared/format/blosc_frames\.py",
    "click": r".*/__main__\.py|.*/commands/.*\.py",
    "tensorstore": r"nowhere",
    "matplotlib": r"pipelines/.*",
    "jinja2": r"shared/showing/page\.py|harvest/template\.py",
    "safetensors": r"harvest/model\.py|shared/.*|train/.*|pipelines/.*",
}
"""Where a third-party package may be imported, as a pattern of file names."""

SHARED = ("", "format", "reading", "writing", "upkeep", "showing")
"""The floors of shared, from the ground: a file imports from its own floor and from those below."""

WITHOUT_ZARR = ("storage", "sealed_json", "format.commits", "format.layout", "format.plan", "reading.cache",
                "writing.shards", "writing.writers", "writing.claims", "upkeep.verify")
"""Modules of shared that committing and verifying use: neither they nor what they import may load zarr."""


def tree(name):
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def imports(name):
    """Dotted names of the modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def calls(name):
    """Every call of a file as (dotted name, keywords)."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


def test_there_is_something_to_check():
    assert {name.split("/")[0] for name in NAMES} >= {"shared", "harvest", "train"}


@files
def test_folders_import_only_whom_they_may(name):
    folder = name.split("/")[0]
    ours = {module.split(".")[0] for module in imports(name)} & {*FOLDERS, "tests", "benchmarks"}
    assert ours <= MAY_IMPORT[folder]


@files
def test_each_package_enters_at_its_door(name):
    for module in {module.split(".")[0] for module in imports(name)} & DOORS.keys():
        assert re.fullmatch(DOORS[module], name), f"{name} imports {module}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shared/")])
def test_shared_imports_neither_torch_nor_transformers(name):
    modules = imports(name)
    assert not {module.split(".")[0] for module in modules} & {"torch", "transformers", "datasets", "click"}
    assert not modules & {"safetensors.torch"}


@pytest.mark.parametrize("start", WITHOUT_ZARR)
def test_committing_and_verifying_load_no_zarr(start):
    seen, waiting = set(), {f"shared.{start}"}
    assert (ROOT / "shared" / start.replace(".", "/")).with_suffix(".py").is_file()
    while waiting:
        module = waiting.pop()
        path = Path(*module.split(".")).with_suffix(".py")
        if module in seen or not (ROOT / path).is_file():
            continue
        seen.add(module)
        modules = imports(str(path))
        assert not {name.split(".")[0] for name in modules} & {"zarr", "torch"}, f"{start} reaches {path}"
        waiting |= {name for name in modules if name.startswith("shared.")}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shared/")])
def test_the_floors_of_shared_rest_on_those_below(name):
    def floor(path):
        return SHARED.index("" if len(path) == 2 else path[1])

    ours = floor(name.split("/")) if name != "shared/__init__.py" else len(SHARED)
    for module in imports(name):
        path = Path(*module.split(".")).with_suffix(".py")
        if module.startswith("shared.") and (ROOT / path).is_file():
            assert floor(path.parts) <= ours, f"{name} imports {module}"


@files
def test_a_file_has_at_most_400_lines(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 400


@files
def test_a_file_says_what_it_is_and_is_named_after_it(name):
    assert Path(name).stem not in {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
    if (ROOT / name).read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(name)), "a module's docstring says what its subject is"


WRITES = re.compile(r"os\.(open|write|pwrite\w*|rename|replace|link|symlink|unlink|remove|mkdir|rmdir|chmod|truncate|"
                    r"fsync|fdatasync|posix_fallocate)|shutil\.\w+|.*(?<!storage)\.(write_bytes|write_text|unlink|rename|"
                    r"symlink_to|hardlink_to|mkdir|touch|rmdir|chmod)")
"""Calls that change files, but for those of the I/O module."""

BESIDE_THE_IO_MODULE = {
    "shared/storage.py": None,
    "shared/upkeep/doctor.py": None,  # tries what the I/O module rests on
    "shared/plain_files.py": {"os.open"},  # to read
    "shared/writing/writers.py": {"os.open", "os.pwrite", "os.fdatasync", "unlocked.rename", "cache.rename"},
}
"""Who may change files by itself, or None for any call: heartbeats, which promise nothing, and the first step of
--fresh."""


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("shared/")])
def test_files_of_a_cache_are_changed_through_the_one_io_module(name):
    allowed = BESIDE_THE_IO_MODULE.get(name, set())
    found = {function for function, _ in calls(name) if WRITES.fullmatch(function)}
    assert allowed is None or found <= allowed


@pytest.mark.parametrize("name", [name for name in NAMES if re.match(r"shared/(format|writing|reading|storage)", name)])
def test_no_clock_of_the_wall_decides_anything_about_a_cache(name):
    """Machines' clocks differ and jump: who is dead is told by counters that stand still, what is newest by numbers."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"\btime\.(time|ctime|localtime|gmtime)\b|\bdatetime\b|st_[mac]time|getmtime", text)


@files
def test_nothing_is_printed_but_through_click_and_rich(name):
    assert not [function for function, _ in calls(name) if function == "print"]


def test_architectures_are_a_literal_dictionary():
    path = "train/architectures/__init__.py"
    values = [node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Assign | ast.AnnAssign)
              and "ARCHITECTURES" in ast.unparse(node)]
    assert any(isinstance(value, ast.Dict) for value in values)
