"""Models on the Hugging Face hub, by name: fetched into the cache that all Hugging Face tools share.

The `huggingface_hub` library does the work. It reads the environment: ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN``,
``HF_HUB_OFFLINE``. Only the files that a model needs are fetched: configuration, tokenizer, and weights as
safetensors; an older pytorch_model.bin only if there are no safetensors.
"""

import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from glassgpt.assets.cache import offline_switch
from glassgpt.assets.hub import is_hub_error
from glassgpt.errors import CheckpointError, MissingExtraError, first_line
from glassgpt.tokenizer.base import FILES, OLDER_FILES
from glassgpt.weights.sources import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    OLD_INDEX,
    OLD_SINGLE,
    SINGLE,
    is_adapter,
    read_json,
    some,
    weight_files,
)

#: The names without an organisation that are looked up on the hub; others could be mistyped names of runs.
CLASSICS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")
#: Fetched with the weights if they exist; of the tokenizers, the first.
_SMALL = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.jinja", "LICENSE", ADAPTER_CONFIG),
)
_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+|" + "|".join(CLASSICS) + r")(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubName:
    """A repository and its revision: a branch, a tag or a commit."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "")


def parse(text: str, revision: str | None = None) -> HubName | None:
    """Parse ``gpt2``, ``ORG/NAME`` or ``ORG/NAME@REVISION``; None if the text is not a name of a model on the hub.

    ``runs/x`` is not one if a folder ``runs`` exists. ``revision`` overrides the revision in the text.
    """
    match = _NAME.fullmatch(text)
    if match is None or text.endswith((".gguf", ".safetensors", ".json")) or ".." in text or text.startswith("."):
        return None
    if "/" in match["repo"] and Path(match["repo"].split("/")[0]).exists():
        return None
    return HubName(match["repo"], revision or match["revision"])


def fetch(name: HubName, token: str | None = None) -> Path:
    """Fetch a model into the shared cache and return its folder there.

    Interrupted downloads are resumed; complete files are not fetched again. Offline (or if the hub cannot be reached)
    the version that was fetched last is used. The token is by default that of ``hf auth login`` or HF_TOKEN.

    Raises:
        CheckpointError: if there is no such model, access is denied, its weights are in no supported format, or it
            cannot be fetched and is not in the cache.
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
        if offline_switch():
            raise errors.OfflineModeIsEnabled
        return _fetch(name, token)
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} is gated: request access at {_endpoint()}/{name.repo}, then log in with `hf auth login` or give a "
            "token with --token or HF_TOKEN"
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
    except Exception as error:
        if not is_hub_error(error):
            raise
        return _from_cache(name, error)


def _fetch(name: HubName, token: str | None) -> Path:
    """List the repository's files, and fetch those that are needed."""
    from huggingface_hub import HfApi, errors, get_hf_file_metadata, hf_hub_url, snapshot_download

    with suppress(errors.EntryNotFoundError):  # reported below, with more detail
        # Fails at once if the hub cannot be reached; the calls below would retry for almost a minute.
        get_hf_file_metadata(hf_hub_url(name.repo, "config.json", revision=name.revision), token=token)
    files = set(HfApi().list_repo_files(name.repo, revision=name.revision, token=token))
    if files.isdisjoint(("config.json", ADAPTER_CONFIG)):
        has_gguf = any(file.endswith(".gguf") for file in files)
        hint = "; it has .gguf files: download one of them and give its path" if has_gguf else ""
        raise CheckpointError(f"{name} has no config.json, so it cannot be loaded as a model{hint}")
    weights = next((file for file in (SINGLE, INDEX, OLD_SINGLE, OLD_INDEX, ADAPTER_WEIGHTS) if file in files), None)
    if weights is None:
        listed = some(sorted(files), 6)
        raise CheckpointError(f"{name} has no {SINGLE} or {OLD_SINGLE}, nor shards of them; it has {listed}")
    small = [file for file in _SMALL if file in files]
    small += [file for file in FILES if file in files][:1] or [file for file in OLDER_FILES if file in files]
    small += [file for file in files if file.startswith(("LICENSE.", "additional_chat_templates/"))]
    download = partial(snapshot_download, name.repo, revision=name.revision, token=token)
    folder = Path(download(allow_patterns=[*small, weights]))
    if weights in (INDEX, OLD_INDEX):
        file_of = read_json(folder / weights).get("weight_map")
        names = map(str, file_of.values()) if isinstance(file_of, dict) else ()  # opening the folder reports others
        download(allow_patterns=[*small, *sorted(files.intersection(names))])
    return folder


def _from_cache(name: HubName, error: Exception) -> Path:
    """Find the version of a model that was fetched last, without a connection."""
    from huggingface_hub import constants, snapshot_download

    switch = offline_switch()
    reason = f"{switch} is set" if switch else first_line(error)
    advice = f"unset {switch}" if switch else "check the connection, and HF_ENDPOINT if it is set"
    cache = f"in the cache ({constants.HF_HUB_CACHE})"
    failure = f"cannot be fetched from {_endpoint()}: {reason}. To fetch it, {advice}"
    download = partial(snapshot_download, name.repo, revision=name.revision, local_files_only=True)
    try:
        folder = Path(download(allow_patterns=["config.json"]))
    except Exception as missing:
        if not is_hub_error(missing):
            raise
        raise CheckpointError(f"{name} is not {cache}, and {failure}") from None
    try:
        if not is_adapter(folder):
            weight_files(folder)
    except CheckpointError:
        raise CheckpointError(f"{name} is {cache} only in part, and the rest {failure}") from None
    return folder


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
