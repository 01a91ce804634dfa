"""What a published model's folder says about its tokens and their use, beside vocabulary and weights.

===============================  =====================================================================================
``tokenizer_config.json``        the roles of special tokens, the padding side, added tokens, chat templates
``special_tokens_map.json``      roles, in older folders
``added_tokens.json``            tokens that a SentencePiece model lacks, in older folders
``chat_template.jinja``          the chat template; others are in ``additional_chat_templates``
``generation_config.json``       end tokens and sampling settings
``config.json``                  the same, in older folders; and the family, whose tokenizer class has default roles
===============================  =====================================================================================

All is read as `transformers` 5 reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glassgpt import files
from glassgpt.errors import TokenizerError

TOKENIZER_CONFIG, GENERATION_CONFIG = "tokenizer_config.json", "generation_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_MORE_TEMPLATES = "additional_chat_templates"
_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: The keys of generation_config.json that older folders have in config.json.
_GENERATION_KEYS = (
    *_ID_KEYS,
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "no_repeat_ngram_size", "length_penalty", "num_beams", "num_return_sequences"),
    *("early_stopping", "max_length", "min_length", "max_new_tokens", "min_new_tokens", "bad_words_ids"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"),
)
#: Entries of tokenizer_config.json that saving writes anew, or that are about the folder they were read from.
_NOT_KEPT = (
    *("tokenizer_class", "model_max_length", "chat_template", "auto_map", "name_or_path", "special_tokens_map_file"),
    *("tokenizer_file", "vocab_file", "merges_file", "backend", "is_local", "local_files_only", "files_loaded"),
)
_END_OF_TEXT = "<|endoftext|>"
#: What tokenizer classes set where tokenizer_config.json is silent; null: no token, whatever tokenizer.json says.
_LLAMA_DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "padding_side": "left"}
CLASS_DEFAULTS: Mapping[str, Mapping[str, str | None]] = {
    "GPT2Tokenizer": {**dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT), "pad_token": None},
    "GPTNeoXTokenizer": {
        **dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
        "pad_token": "<|padding|>",
    },
    "LlamaTokenizer": _LLAMA_DEFAULTS,
    "Qwen2Tokenizer": {**dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT), "bos_token": None},
}
#: The tokenizer class of a family, if no file names one; "" has no defaults.
_CLASS_OF_FAMILY = {"gpt2": "GPT2Tokenizer", "mistral": "", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}
#: Families that have this class even if a file names another.
_FIXED_CLASS = ("mistral", "qwen2")


@dataclass(frozen=True)
class PublishedSettings:
    """How a published model is used; a tokenizer carries it, so that saving the model keeps it.

    Attributes:
        roles: special tokens by role, as a chat template gets them; they need not be in the vocabulary.
        tokenizer_config: further entries of tokenizer_config.json, such as ``padding_side``.
        chat_templates: by name; the one used is "default".
        token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` in config.json, if they are there.
        generation_config: the content of generation_config.json.
    """

    roles: Mapping[str, str] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    token_ids: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def end_ids(self) -> list[int]:
        """The ids that end a generation: of generation_config.json, else of config.json."""
        ids = self.generation_config.get("eos_token_id")
        ids = self.token_ids.get("eos_token_id") if ids is None else ids
        return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int]

    def ids_below(self, vocab_size: int) -> dict[str, Any]:
        """The ``token_ids`` that are in a vocabulary of this size."""
        return {
            key: ids
            for key, ids in self.token_ids.items()
            if all(type(i) is int and 0 <= i < vocab_size for i in (ids if isinstance(ids, list) else [ids]))
        }


def read_published(
    folder: Path, content: Mapping[str, Any] | None = None, defaults: Mapping[str, str | None] | None = None
) -> PublishedSettings:
    """Read a folder's settings; empty if it has none of the files.

    Args:
        folder: in which the tokenizer lies.
        content: of its tokenizer.json, if it has one.
        defaults: roles of tokens where neither the files nor the tokenizer's class say anything.

    Raises:
        TokenizerError: if a file is damaged.
    """
    model, config = _read(folder / "config.json"), _read(folder / TOKENIZER_CONFIG)
    if (folder / "tokenizer.json").exists():  # whose post_processor decides
        config = {key: value for key, value in config.items() if key not in ("add_bos_token", "add_eos_token")}
    if "added_tokens_decoder" not in config:
        config = config | _read(folder / "special_tokens_map.json")
    if content is None and "added_tokens_decoder" not in config and (added := _read(folder / "added_tokens.json")):
        special = {*_roles_of(config).values(), *_names(config.get("additional_special_tokens"))}
        config["added_tokens_decoder"] = {
            str(i): {"content": name, "special": name in special} for name, i in added.items()
        }
    config = {**(_class_defaults(model, config, content) or defaults or {}), **config}
    if padding := (content or {}).get("padding"):
        config = {"pad_token": padding.get("pad_token"), "padding_side": padding["direction"].lower(), **config}
    roles = _roles_of(config)
    not_kept = _NOT_KEPT if content is None else (*_NOT_KEPT, "added_tokens_decoder")
    path = folder / GENERATION_CONFIG
    return PublishedSettings(
        roles=roles,
        tokenizer_config={k: v for k, v in config.items() if k not in not_kept and not _names_a_role(k, v)},
        chat_templates=read_templates(folder),
        token_ids={key: model[key] for key in _ID_KEYS if model.get(key) is not None},
        generation_config=_read(path)
        if path.exists()
        else {key: model[key] for key in _GENERATION_KEYS if model.get(key) is not None},
    )


def read_templates(folder: Path) -> dict[str, str]:
    """Read the chat templates of a folder by name: from their files, else from tokenizer_config.json.

    Raises:
        TokenizerError: if they cannot be read.
    """
    try:
        paths = {path.stem: path for path in (folder / _MORE_TEMPLATES).glob("*.jinja")}
        paths |= {"default": folder / TEMPLATE_FILE} if (folder / TEMPLATE_FILE).exists() else {}
        if paths:
            return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}
    except (OSError, ValueError) as error:
        raise TokenizerError(f"the chat template in {folder} cannot be read: {error}") from None
    templates = _read(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(templates, list):
        named = [entry for entry in templates if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        templates = {entry["name"]: entry.get("template") for entry in named}
    elif not isinstance(templates, dict):
        templates = {"default": templates}
    return {name: template for name, template in templates.items() if isinstance(template, str)}


def added_tokens(published: PublishedSettings) -> dict[str, tuple[int, bool]]:
    """The tokens that are beside a SentencePiece model: their names, ids, and whether they are special."""
    entries = published.tokenizer_config.get("added_tokens_decoder") or {}
    return {entry["content"]: (int(i), bool(entry.get("special"))) for i, entry in entries.items()}


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file with an object. NaN and Infinity become null, as they could not be saved again.

    Raises:
        TokenizerError: if it is missing or damaged.
    """
    try:
        return files.read_json_object(path, constant=lambda name: None)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}") from None


def class_name(folder: Path) -> str:
    """The class that `AutoTokenizer` chooses for the tokenizer of a folder; "" if nothing names one.

    Raises:
        TokenizerError: if a file is damaged.
    """
    return _class_name(_read(folder / "config.json"), _read(folder / TOKENIZER_CONFIG))


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _class_defaults(
    model: Mapping[str, Any], config: Mapping[str, Any], content: Mapping[str, Any] | None
) -> Mapping[str, str | None]:
    """What the class of the tokenizer says."""
    name = _class_name(model, config)
    if name == "LlamaTokenizer" and _has_byte_level(content or {}):
        name = ""  # Llama 3's tokenizer.json under the name of Llama 2's class
    return CLASS_DEFAULTS.get(name, {})


def _class_name(model: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    family = model.get("model_type")
    name = str(config.get("tokenizer_class") or model.get("tokenizer_class") or "").removesuffix("Fast")
    return _CLASS_OF_FAMILY.get(str(family), "") if family in _FIXED_CLASS or not name else name


def _has_byte_level(content: Mapping[str, Any]) -> bool:
    steps = [content.get("pre_tokenizer") or {}, content.get("decoder") or {}]
    return any(step.get("type") == "ByteLevel" for part in steps for step in (part, *part.get("pretokenizers", ())))


def _roles_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The roles in the entries of a tokenizer_config.json; a token is its name, or an object with its name."""
    extra = config.get("extra_special_tokens")
    entries = {key: value for key, value in config.items() if _names_a_role(key, value)}
    entries |= extra if isinstance(extra, dict) else {}
    for role, token in entries.items():
        if token is not None and not _names([token]):
            raise TokenizerError(f"the {role} in {TOKENIZER_CONFIG} is {token!r}, which is not the name of a token")
    return {role: _names([token])[0] for role, token in entries.items() if token is not None}


def _names_a_role(key: str, value: Any) -> bool:
    return key.endswith("_token") and not isinstance(value, (bool, int, float))  # add_bos_token is no role


def _names(tokens: Any) -> list[str]:
    named = [token.get("content") if isinstance(token, dict) else token for token in tokens or ()]
    return [name for name in named if isinstance(name, str)]
