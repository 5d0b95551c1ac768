"""The model hub: repositories as local folders, and its failures as one clear line each."""

import contextlib
import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
from huggingface_hub import errors

from shared import storage
from shared.errors import RecipeError, TryAgainError

RepoType = Literal["model", "dataset"]

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
"""Errors of the disk that a download is written to, not of the network."""

_LOCAL: dict[RepoType, str] = {
    "model": "MODEL=path/to/folder (config.json, *.safetensors, tokenizer.json)",
    "dataset": "DATA=my.jsonl, or DATA=chitchat for the embedded chats",
}
"""How local files are named in the place of a repository."""

_MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]


@contextlib.contextmanager
def hub_errors(repo: str, repo_type: RepoType, local: str | None = None) -> Iterator[None]:
    """Turn the hub's errors into what a user can do about them.

    Args:
        local: how local files are named instead. Default: as those of a model or of data are.

    Raises:
        RecipeError: unknown or gated repository. TryAgainError: the hub cannot be reached.
    """
    page = f"huggingface.co/{'datasets/' if repo_type == 'dataset' else ''}{repo}"
    try:
        yield
    except errors.GatedRepoError:
        raise RecipeError(
            f"{repo!r} is gated: accept its licence at {page}, then log in with: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise RecipeError(
            f"There is no {repo_type} {repo!r} on the hub, or it is private. Check the name at {page}; "
            "for a private one log in with: hf auth login"
        ) from None
    except errors.RevisionNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{repo!r} has no such revision: {reason} Those there are stand at {page}.") from None
    except errors.HFValidationError as error:
        raise RecipeError(f"{repo!r} is no hub id: {str(error).splitlines()[0]} Expected org/name.") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            with storage.translate_errors(Path(error.filename or repo)):
                raise
        if not is_unreachable(error):
            raise
        raise TryAgainError(
            f"Cannot reach the model hub for {repo!r} ({type(error).__name__}). Check the network, or use local files: "
            + (local or _LOCAL[repo_type])
        ) from None


def is_unreachable(error: Exception) -> bool:
    """Whether an error says that the hub could not be reached or did not answer properly.

    The hub's client has changed its HTTP library within the versions we support (httpx, httpx2), so the
    library's own errors are known by the name of their module.
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return False
    if isinstance(error, (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
        return False
    known = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, OSError)
    return isinstance(error, known) or type(error).__module__.split(".")[0] in {"httpx", "httpx2"}


def kept_commit(repo: str, revision: str | None, kept: Mapping[str, Any] | None) -> str | None:
    """The commit that a plan has kept of a repository, where no revision is asked for."""
    if revision is None and kept is not None and kept.get("name") == repo:
        commit: str | None = kept.get("revision")
        return commit
    return None


def resolve_commit(repo: str, revision: str | None, repo_type: RepoType) -> str:
    """The 40-hex commit of a branch, tag or commit; what is cached locally answers without a network."""
    with hub_errors(repo, repo_type):
        try:
            info = huggingface_hub.HfApi().repo_info(repo, revision=revision, repo_type=repo_type)
        except Exception as error:
            if not is_unreachable(error):
                raise
            cached = _cached_commit(repo, revision or "main", repo_type)
            if cached is None:
                raise
            return cached
        assert info.sha is not None
        return info.sha


def _cached_commit(repo: str, revision: str, repo_type: RepoType) -> str | None:
    found = huggingface_hub.try_to_load_from_cache(
        repo, "config.json" if repo_type == "model" else "README.md", revision=revision, repo_type=repo_type
    )
    return Path(found).parent.name if isinstance(found, str) else None


def is_downloaded(repo: str, commit: str) -> bool:
    """Whether a commit of a model's repository is here already, so that it takes no network."""
    return _cached_commit(repo, commit, "model") is not None


def download_model(repo: str, commit: str, with_code: bool = False) -> Path:
    """A model's config, tokenizer and safetensors as a local folder; never pickles, its code only where asked."""
    patterns = [*_MODEL_FILES, "*.py"] if with_code else _MODEL_FILES
    with hub_errors(repo, "model"):
        return Path(huggingface_hub.snapshot_download(repo, revision=commit, allow_patterns=patterns))


def download_sae(repo: str, subfolder: str, names: Sequence[str]) -> tuple[Path, str]:
    """Those of some files that a folder of an SAE's repository has, as a local folder; and the commit.

    Args:
        subfolder: "" for the repository's own.
        names: of the files; nothing else is downloaded.

    Raises:
        RecipeError: unknown or gated repository. TryAgainError: the hub cannot be reached.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    with hub_errors(repo, "model", local="--sae path/to/folder"):
        snapshot = Path(huggingface_hub.snapshot_download(repo, allow_patterns=[prefix + name for name in names]))
    return snapshot / subfolder, snapshot.name
