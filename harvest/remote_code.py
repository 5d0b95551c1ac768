"""Python code that comes with a model: run only for a hub model, at the one commit that the user has named.

Such code can do whatever the user can. ``trust_remote_code`` is therefore off unless the recipe says so, together
with the commit whose code was read; a commit can not change. That of a local folder is never run.
"""

import json
import re
from pathlib import Path

from shared.errors import RecipeError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_request(name: str, revision: str | None, is_hub_model: bool) -> None:
    """Check that the code which a recipe asks to run is that of one commit.

    Raises:
        RecipeError: the model is none of the hub, or the recipe does not name a commit.
    """
    if not is_hub_model:
        raise RecipeError(f"trust_remote_code = true is for hub models, whose commit says what code is run; {name!r} "
                          "is none. Take it out: --set harvest.trust_remote_code=false")
    if revision is None or not _COMMIT.fullmatch(revision):
        found = f"got revision {revision!r}" if revision else "no revision is given"
        raise RecipeError(
            f"trust_remote_code = true would run Python code that comes with {name!r}. Expected revision with the 40 "
            f"hex digits of the commit whose code you have read; {found}. Add: --set harvest.revision=COMMIT"
        )


def check_pinned(repo: str, folder: Path) -> None:
    """Check that all code which a model names is in its own repository: its commit pins no other.

    Raises:
        RecipeError: it names code of another repository.
    """
    for name in ("config.json", "tokenizer_config.json"):
        path = folder / name
        try:
            classes = json.loads(path.read_bytes()).get("auto_map", {}) if path.is_file() else {}
        except (OSError, ValueError, AttributeError) as error:
            raise RecipeError(f"Cannot read {path} of {repo!r}: {error}. Download it again.") from None
        if "--" in json.dumps(classes):  # "org/other--module.Class"
            raise RecipeError(f"{repo!r} takes code from another repository ({name} has auto_map {classes}), which its "
                              "commit does not pin. Use a model that has its code in its own repository.")


def explain_refusal(revision: str | None) -> str:
    """What to say where transformers cannot go on without running a model's code."""
    if revision is None:
        return ("it needs Python code that comes with it, and that of a local folder is never run. Use a model that "
                "transformers knows.")
    return ("it needs Python code that comes with it, which is not run unless you say so. Once you have read it: "
            f"--set harvest.trust_remote_code=true --set harvest.revision={revision}")
