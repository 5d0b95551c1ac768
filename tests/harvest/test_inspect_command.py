"""`python -m harvest inspect` as it is typed."""

from shared.format.layout import PLAN


def test_data_is_shown_and_nothing_but_the_page_is_written(command, llama, chat_file, tmp_path):
    ended = command.run("inspect", "--model", llama, "--dataset", chat_file, "--number", 3, "--html", "look.html",
                        cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("3: chats.jsonl:4, ")
    assert "tokens, by class" in ended.out
    assert ended.out.endswith("page     look.html\n")
    assert "\x1b" not in ended.out
    assert [path.name for path in tmp_path.iterdir()] == ["look.html"]


def test_a_cache_is_shown_as_it_was_planned_and_left_as_it_is(command, cache_folder):
    before = {path: path.stat().st_mtime_ns for path in cache_folder.rglob("*")}
    ended = command.run("inspect", cache_folder, "--conversations", 1)
    assert ended.code == 0, ended.err
    assert "all 60 conversations of the plan" in ended.out
    assert {path: path.stat().st_mtime_ns for path in cache_folder.rglob("*")} == before


def test_a_terminal_without_our_signs_gets_their_numbers(command, llama, chat_file):
    prelude = "import sys; sys.stdout.reconfigure(encoding='ascii')"
    ended = command.run("inspect", "--model", llama, "--dataset", chat_file, "--sample", 2, prelude=prelude)
    assert ended.code == 0, ended.err
    assert "\\u250a" in ended.out


def test_what_cannot_be_shown_is_told_in_one_line(command, llama, chat_file, cache_folder, tmp_path):
    for code, words, arguments in (
        (2, "No model given", []),
        (74, f"no {PLAN}", [tmp_path / "nosuch"]),
        (2, "does not go with a cache", [cache_folder, "--place", "a:1"]),
        (2, "--sample 'many'", ["--model", llama, "--dataset", chat_file, "--sample", "many"]),
        (2, "fewer rows", ["--model", llama, "--dataset", chat_file, "--number", 60]),
        (74, "Cannot write", ["--model", llama, "--dataset", chat_file, "--html", "/proc/nosuch/page.html"]),
    ):
        ended = command.run("inspect", *arguments)
        assert (ended.code, words in ended.err, "Traceback" in ended.err) == (code, True, False), ended
