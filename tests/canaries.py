"""Secrets that must never be seen again: in the environment and in a home folder of harvest commands under test."""

from pathlib import Path

SECRET = "canary"


def canary(name: str) -> str:
    """A secret that can be told from every other, and found wherever it goes."""
    return f"{SECRET}-{name}-9f8e7d6c5b4a"


ENVIRONMENT = {
    "HF_TOKEN": f"hf_{canary('hub')}",
    "HUGGING_FACE_HUB_TOKEN": canary("oldhub"),
    "AWS_ACCESS_KEY_ID": canary("awsid"),
    "AWS_SECRET_ACCESS_KEY": canary("aws"),
    "AWS_SESSION_TOKEN": canary("session"),
    "WANDB_API_KEY": canary("wandb"),
    "GITHUB_TOKEN": canary("github"),
    "DB_PASSWORD": canary("database"),
    "HTTPS_PROXY": f"http://user:{canary('proxy')}@127.0.0.1:9",
    "HF_ENDPOINT": f"http://user:{canary('endpoint')}@127.0.0.1:9",
    "PIP_INDEX_URL": f"https://user:{canary('index')}@127.0.0.1:9/simple",
}

_FILES = {
    ".netrc": f"machine 127.0.0.1 login user password {canary('netrc')}\n",
    ".cache/huggingface/token": f"hf_{canary('tokenfile')}",
    ".aws/credentials": f"[default]\naws_secret_access_key = {canary('credentials')}\n",
    ".git-credentials": f"https://user:{canary('git')}@127.0.0.1\n",
}


def make_home(folder: Path) -> dict[str, str]:
    """Write a home folder full of secrets; returns the variables of an environment that has more of them."""
    for name, text in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return ENVIRONMENT | {"HOME": str(folder), "NETRC": str(folder / ".netrc")}
