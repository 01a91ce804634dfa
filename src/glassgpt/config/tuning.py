"""The settings of ``glassgpt tune`` below the user's: of both methods, of each, and of conversations with a recipe."""

from typing import Any

from glassgpt.config.layers import ConfigOverrides

_COMMON: dict[str, dict[str, Any]] = {
    "train": {"batch_size": 4},
    "optim": {"optimizer": "adamw", "weight_decay": 0.0},
    "runtime": {"compile": "false"},
}
_LEARNING_RATES = {"lora": 1e-3, "sft": 5e-5}
#: Recipes by the name of the conversations. They were chosen by what the tuned model answers to held-out questions.
_RECIPES: dict[str, dict[str, dict[str, Any]]] = {"tutor": {"train": {"time": "20m"}}}


def tuning_defaults(method: str, data: str = "") -> ConfigOverrides:
    """The settings of a method, ``sft`` or ``lora``, on these conversations."""
    recipe = _RECIPES.get(data, {})
    optim = {**_COMMON["optim"], "adamw_learning_rate": _LEARNING_RATES.get(method, 1e-4), **recipe.get("optim", {})}
    return {
        "train": {**_COMMON["train"], **recipe.get("train", {})},
        "optim": optim,
        "runtime": _COMMON["runtime"],
        "tune": recipe.get("tune", {}),
    }
