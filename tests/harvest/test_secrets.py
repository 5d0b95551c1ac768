"""No secret gets into a file or a log: not from the environment or files of tokens, nor from what is typed.

Every harvest command of these tests runs in an environment full of them (tests/canaries.py).
"""

import pytest
from click.testing import CliRunner

from shared.errors import UserError
from shared.redaction import without_secrets
from tests.canaries import ENVIRONMENT, SECRET, canary
from tests.harvest.test_run import SET
from train.__main__ import main as train_main

TYPED = {
    "--dataset": f"https://user:{canary('dataset')}@host.invalid/org/chats.jsonl?token={canary('query')}",
    "--model": f"https://user:{canary('model')}@host.invalid/org/name?token={canary('modelquery')}#{canary('part')}",
    "--cache": f"s3://{canary('s3id')}:{canary('s3')}@bucket/cache",
    "--recipe": f"https://user:{canary('recipe')}@host.invalid/recipe.toml?{canary('recipequery')}",
}
OVERRIDES = [
    f"harvest.dataset=https://user:{canary('set')}@host.invalid/x?key={canary('setquery')}",
    f"https://user:{canary('table')}@host.invalid/x",
    f"harvest.seed=https://user:{canary('seed')}@host.invalid/x",
]

LEAKS = (
    "import os, harvest.run\n"
    "def leak(*given, **more):\n"
    "    try:\n"
    "        raise OSError(f\"GET {os.environ['HF_ENDPOINT']}/x?sig={os.environ['AWS_SESSION_TOKEN']} failed\")\n"
    "    except OSError as error:\n"
    "        raise RuntimeError(f\"Illegal header value b'Bearer {os.environ['HF_TOKEN']}'\") from error\n"
    "harvest.run.fill = leak\n"
)
"""A bug in the middle of a harvest whose exception quotes secrets, as libraries do."""

KILL = (
    "import os, signal, harvest.run\n"
    "harvest.run.fill = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
)


@pytest.fixture(scope="module")
def arguments(llama, chat_file):
    options = ["--model", llama, "--dataset", chat_file, "--layers", "0 2", "--num-tokens", 1024, "--threads", 1]
    return [*options, *(word for item in SET for word in ("--set", item))]


def assert_clean(*texts):
    for text in texts:
        assert SECRET not in text, text


def test_a_full_run_with_crashes_leaves_no_secret_in_files_or_output(command, arguments, tmp_path, monkeypatch):
    cache = ["--cache", tmp_path / "caches" / "spied"]
    killed = command.run("run", *arguments, *cache, prelude=KILL, cwd=tmp_path)
    assert killed.code == -9
    crashed = command.run("run", *arguments, *cache, prelude=LEAKS, cwd=tmp_path)
    assert crashed.code == 1
    assert "RuntimeError: Illegal header value b'Bearer ***'" in crashed.err
    assert "OSError: GET http://127.0.0.1:9/x failed" in crashed.err
    done = command.run("run", *arguments, *cache, cwd=tmp_path)
    assert done.code == 0, done.err
    again = [command.run(name, tmp_path / "caches" / "spied", cwd=tmp_path) for name in ("status", "verify")]
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    trained = CliRunner().invoke(train_main, [
        "run", "--cache", "spied", "--layer", "2",
        "--set", "train.num_tokens=256", "--set", "train.batch_size=64", "--expansion", "1", "--set", "sae.k=2"
    ])
    assert trained.exit_code == 0, trained.output
    for ended in (killed, crashed, done, *again):
        assert_clean(ended.out, ended.err)
    assert_clean(trained.output)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"plan.json", "provenance.jsonl", "run.json", "tokenizer_config.json"}
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("option", TYPED)
def test_a_url_with_credentials_in_place_of_a_name_is_refused_without_them(command, arguments, tmp_path, option):
    ended = command.run("run", *arguments, option, TYPED[option], cwd=tmp_path)
    assert ended.code == 2, ended.err
    host = "s3://bucket/cache" if option == "--cache" else "https://host.invalid/"
    assert host in ended.err  # quoted, so that the user sees which name is meant
    assert_clean(ended.out, ended.err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", OVERRIDES)
def test_overrides_are_quoted_without_credentials(command, arguments, tmp_path, override):
    without_dataset = [*arguments[:2], *arguments[4:]]
    ended = command.run("run", *without_dataset, "--set", override, cwd=tmp_path)
    assert ended.code == 2, ended.err
    assert "https://host.invalid/x" in ended.err
    assert_clean(ended.out, ended.err)


def test_a_hub_that_cannot_be_reached_is_told_without_the_credentials_of_its_address(command, tmp_path):
    online = "import huggingface_hub.constants as constants\nconstants.HF_HUB_OFFLINE = False\n"
    ended = command.run("run", "--model", "org/name", "--dataset", "org/chats", cwd=tmp_path, prelude=online)
    assert ended.code == 75, ended.err
    assert "Cannot reach the model hub" in ended.err
    assert "Offline" not in ended.err  # it was tried
    assert_clean(ended.out, ended.err)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:p@ss@host/a/b?token=1#x end", "https://host/a/b end"),
        ("got 's3://key:secret@bucket/x'.", "got 's3://bucket/x'."),
        ("see huggingface.co/a, or http://127.0.0.1:9/api", "see huggingface.co/a, or http://127.0.0.1:9/api"),
        ("(https://h.co/x?y=z), next", "(https://h.co/x), next"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqrstuv is it", "*** is it"),
        ("mail a@b.c; 3 > 2 ? yes : no", "mail a@b.c; 3 > 2 ? yes : no"),
    ],
)
def test_what_is_taken_out_and_what_stays(text, clean):
    assert without_secrets(text) == clean
    assert str(UserError(text)) == clean


def test_values_of_variables_named_like_secrets_are_taken_out(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "abcdefgh1234")
    monkeypatch.setenv("OTHER_API_KEY", "abcdefgh1234567")
    monkeypatch.setenv("SHORT_TOKEN", "yes")
    monkeypatch.setenv("MAX_TOKENS", "123456789")
    monkeypatch.setenv("SSL_PRIVATE_KEY", "/etc/ssl/key.pem")
    text = "abcdefgh1234567 abcdefgh1234 yes 123456789 /etc/ssl/key.pem"
    assert without_secrets(text) == "*** *** yes 123456789 /etc/ssl/key.pem"


def test_no_option_takes_a_token(command):
    for arguments in (["--help"], ["run", "--help"]):
        words = command.run(*arguments).out.lower().split()
        assert not {"--token", "--hf-token", "--api-key", "--password"} & {word.strip(",") for word in words}
