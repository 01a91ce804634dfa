"""From what a user writes to a source of weights: a folder, a .gguf file, an asset, or a model on the hub."""

from collections.abc import Sequence
from pathlib import Path

from glassgpt import assets
from glassgpt.errors import CheckpointError
from glassgpt.weights import hub
from glassgpt.weights.folder import open_folder, whole
from glassgpt.weights.gguf.reading import GGUFSource
from glassgpt.weights.sources import Source


def open_source(
    source: str | Path, *, revision: str | None = None, token: str | None = None, tried: Sequence[str] = ()
) -> Source:
    """The source that a name or path means; of several meanings the first of this list.

    =================  ==============================================================================================
    a folder           in the Hugging Face layout
    a file             ``.gguf``
    an asset           by its name, such as ``smollm2-135m-instruct``; fetched if need be
    a hub name         ``gpt2``, ``ORG/NAME``, ``ORG/NAME@REVISION``; fetched into the hub's cache
    =================  ==============================================================================================

    Args:
        source: what was written.
        revision: of a model on the hub.
        token: for the hub.
        tried: what it was taken for before, and why it is not that; for the message.

    Raises:
        CheckpointError: if it is none of these (the message says what was tried), or damaged.
        AssetError: if it is an asset that can be found nowhere.
        MissingExtraError: if it takes a library that is not installed.
    """
    path, text = Path(source), str(source)
    if (local := _local(path)) is not None:
        return local
    if text in assets.names("weights"):
        return GGUFSource(assets.path(text))
    if (name := hub.parse(text, revision)) is not None:
        try:
            return open_folder(hub.fetch(name, token))
        except CheckpointError as error:
            if not tried or revision or "@" in text:
                raise
            raise CheckpointError(_none(text, [*tried, *_NOT_LOCAL, f"a model on the hub: {error}"])) from None
    classics = ", ".join(hub.CLASSICS)
    raise CheckpointError(
        _none(text, [*tried, *_NOT_LOCAL, f"a model on the hub: its names are ORG/NAME, or one of {classics}"])
    )


def _local(path: Path) -> Source | None:
    """What is there under that path, if anything is."""
    try:
        folder = whole(path)
        if folder is not None and folder.is_dir():
            return open_folder(folder)
        if path.suffix == ".gguf" or path.is_file():
            if path.suffix != ".gguf":
                raise CheckpointError(f"{path} is a file; give a model's folder, or a .gguf file")
            return GGUFSource(path)
    except OSError:  # too long for a name, for example
        pass
    except ValueError:  # a null character
        pass
    return None


def _none(text: str, tried: Sequence[str]) -> str:
    shown = text if len(text) < 100 else text[:97] + "..."
    return "\n".join([f"there is no model {shown!r}. It was taken for:", *(f"  - {line}" for line in tried)])


_NOT_LOCAL = (
    "a folder or a .gguf file: there is none of that name",
    f"an asset: those with weights are {', '.join(assets.names('weights'))}",
)
