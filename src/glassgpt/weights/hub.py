"""Models on the Hugging Face hub, by name: fetched into the cache that all of its tools share.

The `huggingface_hub` library does the work, and reads the environment: ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``. Of a repository only what a model takes is fetched: its configuration, its tokenizer, and its
weights as safetensors; an older pytorch_model.bin only where there are no safetensors.
"""

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glassgpt.errors import CheckpointError, MissingExtraError
from glassgpt.weights.sources import INDEX, OLD_INDEX, OLD_SINGLE, SINGLE, weight_files

#: Names without an organisation: only these are looked up on the hub, so that a mistyped run is not.
CLASSICS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
#: What is fetched beside the weights, as far as there is any; of two tokenizers the first.
_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+|" + "|".join(CLASSICS) + r")(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubName:
    """A repository, and which of its versions: a branch, a tag or a commit."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def parse(text: str, revision: str | None = None) -> HubName | None:
    """``gpt2``, ``ORG/NAME`` or ``ORG/NAME@REVISION``; None for what can be no name of a model on the hub.

    Args:
        text: what was written. ``runs/x`` is no name where there is a folder ``runs``.
        revision: wins over one that was written.
    """
    match = _NAME.fullmatch(text)
    if match is None or text.endswith((".gguf", ".safetensors", ".json")) or ".." in text or text.startswith("."):
        return None
    if "/" in match["repo"] and Path(match["repo"].split("/")[0]).exists():
        return None
    return HubName(match["repo"], revision or match["revision"])


def fetch(name: HubName, token: str | None = None) -> Path:
    """The folder of the shared cache that holds a model, fetched as far as it is not there.

    A dropped connection is taken up where it broke off; whole files of an earlier attempt are not fetched again.
    Offline (or where the hub cannot be reached) the version that was fetched last serves.

    Args:
        name: of the model.
        token: that gives access; by default the one that ``hf auth login`` or HF_TOKEN left.

    Raises:
        CheckpointError: if there is no such model, it may not be read, has no weights that are read here, or cannot
            be fetched and is not in the cache.
        MissingExtraError: if `huggingface_hub` is not installed.
    """
    try:
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
    except ImportError:
        raise MissingExtraError("huggingface_hub", "hf", "fetching a model from the hub") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        if _switch():
            raise errors.OfflineModeIsEnabled
        return _fetch(name, token)
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: its owner gives access at {_endpoint()}/{name.repo}. Ask for it there, then log in with "
            "`hf auth login` or give a token with --token or HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no model {name.repo} at {_endpoint()}, or it is private; check the name, and for a private one "
            "log in with `hf auth login` or give a token with --token or HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(
            f"{name.repo} has no revision {name.revision!r}; its branches, tags and commits are listed at "
            f"{_endpoint()}/{name.repo}/commits/main"
        ) from None
    except Exception as error:  # whatever library carries the connection, by its version
        if isinstance(error, CheckpointError) or not _is_of_the_connection(error):
            raise
        return _from_cache(name, error)


def _fetch(name: HubName, token: str | None) -> Path:
    """Look up what there is, and fetch what is needed of it."""
    from huggingface_hub import HfApi, errors, get_hf_file_metadata, hf_hub_url, snapshot_download

    with suppress(errors.EntryNotFoundError):  # the listing says more about that
        # Asked once, where what follows would be tried again for most of a minute.
        get_hf_file_metadata(hf_hub_url(name.repo, "config.json", revision=name.revision), token=token)
    found = set(HfApi().list_repo_files(name.repo, revision=name.revision, token=token))
    get: Callable[..., str] = lambda *files: snapshot_download(  # noqa: E731
        name.repo, revision=name.revision, token=token, allow_patterns=list(files)
    )
    if "config.json" not in found:
        hint = "; it has .gguf files: fetch one of them, and give that" if _some_end(found, ".gguf") else ""
        raise CheckpointError(f"{name} has no config.json, so it is no model that can be read{hint}")
    weights = next((file for file in (SINGLE, INDEX, OLD_SINGLE, OLD_INDEX) if file in found), None)
    if weights is None:
        raise CheckpointError(f"{name} has no {SINGLE} and no {OLD_SINGLE}, whole or in shards; it has {_list(found)}")
    small = [file for file in _SMALL if file in found]
    small += [file for file in _TOKENIZERS if file in found][:1]
    small += [file for file in found if file.startswith("LICENSE.")]
    folder = Path(get(*small, *([weights] if weights in (INDEX, OLD_INDEX) else [])))
    if weights in (INDEX, OLD_INDEX):
        places = json.loads((folder / weights).read_text(encoding="utf-8")).get("weight_map", {})
        get(*small, *sorted({str(file) for file in places.values()} & found))
    else:
        get(*small, weights)
    return folder


def _from_cache(name: HubName, error: Exception) -> Path:
    """The version of a model that was fetched last, without a connection."""
    from huggingface_hub import snapshot_download

    reason = f"{_switch()} is set" if _switch() else _first_line(error)
    advice = f"unset {_switch()}" if _switch() else "check the connection, and HF_ENDPOINT if it is set"
    try:
        folder = snapshot_download(
            name.repo, revision=name.revision, local_files_only=True, allow_patterns=["config.json"]
        )
    except Exception as missing:
        if not _is_of_the_connection(missing):
            raise
        raise CheckpointError(
            f"{name} is not in the cache ({_cache()}), and cannot be fetched from {_endpoint()}: {reason}. "
            f"To fetch it, {advice}"
        ) from None
    try:
        weight_files(Path(folder))
    except CheckpointError:
        raise CheckpointError(
            f"{name} is in the cache ({_cache()}) only in part, and the rest cannot be fetched from {_endpoint()}: "
            f"{reason}. To fetch it, {advice}"
        ) from None
    return Path(folder)


def _is_of_the_connection(error: Exception) -> bool:
    """Whether it was the connection or the server, not us, that failed."""
    library = type(error).__module__.split(".")[0]
    libraries = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")
    return isinstance(error, OSError) or library in libraries


def _switch() -> str | None:
    """The variable that keeps this process offline, if one does."""
    from huggingface_hub import constants

    if os.environ.get("GLASSGPT_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"):
        return "GLASSGPT_OFFLINE"
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _first_line(error: Any) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _some_end(names: set[str], suffix: str) -> bool:
    return any(name.endswith(suffix) for name in names)


def _list(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
