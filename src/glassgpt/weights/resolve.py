"""Find the weights that a user names: a folder, a .gguf file, an asset, or a model on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from glassgpt import assets
from glassgpt.errors import CheckpointError
from glassgpt.weights import hub
from glassgpt.weights.adapter_source import AdapterSource, open_base
from glassgpt.weights.folder import find_complete, verify_weights
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.quantized import QuantizedFolderSource, is_quantized_folder
from glassgpt.weights.sources import FolderSource, WeightSource, is_adapter

_NOT_LOCAL = (
    "a folder or a .gguf file: there is none of that name",
    f"an asset: those with weights are {', '.join(assets.names('weights'))}",
)


def open_weights(
    source: str | Path, *, revision: str | None = None, token: str | None = None, tried: Sequence[str] = ()
) -> WeightSource:
    """Open the weights with a name or path. The first match of this list wins.

    =================  ==============================================================================================
    a folder           in the Hugging Face layout; or a LoRA adapter, which is merged into its base model
    a file             ``.gguf``
    an asset           by its name, such as ``smollm2-135m-instruct``; fetched if necessary
    a hub name         ``gpt2``, ``ORG/NAME``, ``ORG/NAME@REVISION``; fetched into the hub's cache
    =================  ==============================================================================================

    ``revision`` and ``token`` are for the hub. ``tried``: where the caller has looked already, with the reasons for
    failure; for the error message.

    Raises:
        CheckpointError: if there is no match (the message lists everything that was tried), or the model is damaged.
        AssetError: if the asset cannot be found or fetched.
        MissingExtraError: if a library is needed that is not installed.
    """
    text = str(source)
    if (local := _open_local(Path(source))) is not None:
        return local
    if text in assets.names("weights"):
        return GGUFSource(assets.path(text))
    if (name := hub.parse(text, revision)) is None:
        reason = f"a model on the hub: its names are ORG/NAME, or one of {', '.join(hub.CLASSICS)}"
        raise CheckpointError(_not_found(text, [*tried, *_NOT_LOCAL, reason]))
    try:
        return open_folder(hub.fetch(name, token))
    except CheckpointError as error:
        if not tried or revision or "@" in text:
            raise
        raise CheckpointError(_not_found(text, [*tried, *_NOT_LOCAL, f"a model on the hub: {error}"])) from None


def open_folder(folder: Path) -> WeightSource:
    """Open a folder as a source, after checking its weights against its checksums: a model, or a LoRA adapter.

    Raises:
        CheckpointError: if they differ, it is not a complete folder, or the base of an adapter is missing or another.
    """
    verify_weights(folder)
    if is_adapter(folder):
        return AdapterSource(folder, open_base(folder, open_weights))
    return QuantizedFolderSource(folder) if is_quantized_folder(folder) else FolderSource(folder)


def _open_local(path: Path) -> WeightSource | None:
    """Open the folder or file at a path; None if there is none."""
    try:
        folder = find_complete(path)
        if folder is not None and folder.is_dir():
            return open_folder(folder)
        if path.suffix == ".gguf":
            return GGUFSource(path)
        if path.is_file():
            raise CheckpointError(f"{path} is a file; give a model's folder, or a .gguf file")
    except (OSError, ValueError):  # not a possible file name: too long, or with a null character
        pass
    return None


def _not_found(text: str, tried: Sequence[str]) -> str:
    shown = text if len(text) < 100 else text[:97] + "..."
    return "\n".join([f"there is no model {shown!r}. Tried, in order:", *(f"  - {line}" for line in tried)])
