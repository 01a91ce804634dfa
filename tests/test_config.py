"""The configuration: everything wrong is said at once, and what is written down comes back the same."""

import dataclasses
import math
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glassgpt import config as c
from glassgpt.config import ModelConfig, OptimConfig, RuntimeConfig, TrainConfig
from glassgpt.errors import ConfigError

DEFAULT = c.build("small", [])
FIELDS = [(name, field) for name, part in c.SECTIONS.items() for field in dataclasses.fields(part)]


def problems_of(call: Any, *arguments: Any, **named: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **named)
    return caught.value.problems


def from_toml(tmp_path: Path, text: str) -> tuple[str | None, c.RunConfig]:
    path = tmp_path / "in.toml"
    path.write_text(text, encoding="utf-8")
    preset, layer = c.read_toml(path)
    return preset, c.build(preset or "", [layer])


# --- problems --------------------------------------------------------------------------------------------------------


def test_every_problem_of_every_section_is_reported_at_once() -> None:
    layer = {
        "model": {"n_layer": 0, "norm": "layrnorm", "dropout": 2.0},
        "data": {"val_fraction": 0.9},
        "train": {"batch_size": "16", "patience": True},
        "optim": {"adamw_learning_rate": math.nan, "optimizer": "mion"},
        "runtime": {"threads": -1, "compile": 1},
    }
    problems = problems_of(c.build, "small", [layer])
    expected = [f"{section}.{name}" for section, values in layer.items() for name in values]
    assert sorted(problem.partition(":")[0] for problem in problems) == sorted(expected)
    message = str(ConfigError(problems))
    assert message.startswith(f"{len(expected)} problems") and all(problem in message for problem in problems)


def test_a_field_problem_does_not_hide_the_duration_or_the_device() -> None:
    layer = {"train": {"steps": -1, "time": "soon"}, "runtime": {"threads": -1, "device": "gpu"}}
    named = {problem.partition(":")[0] for problem in problems_of(c.build, "small", [layer])}
    assert named == {"train.steps", "train.time", "runtime.threads", "runtime.device"}


def test_joint_problems_name_the_fields_and_the_remedy() -> None:
    problems = problems_of(
        ModelConfig, n_embd=130, n_head=4, n_kv_head=3, head_dim=0, norm="rmsnorm", position="rope", norm_bias=True
    )
    text = "\n".join(problems)
    assert len(problems) >= 3
    assert "n_embd: 130" in text and "n_head=4" in text and "head_dim" in text
    assert "n_kv_head: 3 does not divide n_head=4" in text
    assert "norm_bias=false" in text
    assert "even head_dim, got 7" in problems_of(ModelConfig, n_embd=28, n_head=4, position="rope")[0]
    assert ModelConfig(n_embd=130, n_head=4, head_dim=32).head_dim == 32


ROPE = {"position": "rope", "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 64}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": "learned"}, ["rope_scaling"]),
        ({"rope_scaling": "none"}, ["rope_factor", "rope_original_context"]),
        ({"rope_scaling": "linear"}, ["rope_original_context"]),
        ({"rope_scaling": "dynamic", "rope_low_freq_factor": 2.0}, ["rope_original_context", "rope_low_freq_factor"]),
        ({"rope_original_context": 0}, ["rope_original_context"]),
        ({"rope_low_freq_factor": 4.0}, ["rope_low_freq_factor"]),
        ({"rope_attention_factor": 1.5}, ["rope_attention_factor"]),
        ({"rope_scaling": "yarn", "rope_theta": 1.0}, ["rope_theta"]),
        ({"first_window_layer": 2}, ["first_window_layer"]),
    ],
    ids=str,
)
def test_rotary_and_window_settings_that_do_nothing_or_cannot_be_are_problems(
    changes: dict[str, Any], named: list[str]
) -> None:
    ModelConfig(**ROPE)
    problems = problems_of(ModelConfig, **{**ROPE, **changes})
    assert sorted(problem.partition(":")[0] for problem in problems) == sorted(f"model.{name}" for name in named)


def test_what_rotary_scaling_and_windows_derive() -> None:
    yarn = ModelConfig(**{**ROPE, "rope_scaling": "yarn"})
    assert (ModelConfig(**ROPE).rope_high_freq_factor, yarn.rope_high_freq_factor) == (4.0, 32.0)
    assert yarn.rope_attention_factor == pytest.approx(0.1 * math.log(8) + 1)
    assert ModelConfig(**dataclasses.asdict(yarn)) == yarn
    assert ModelConfig(n_layer=3, sliding_window=7, first_window_layer=2).windows == (0, 0, 7)
    assert ModelConfig(n_layer=3).windows == (0, 0, 0)


@pytest.mark.parametrize(
    ("argument", "suggestion"),
    [
        ("n_layers=2", "model.n_layer"),
        ("model.nlayer=2", "model.n_layer"),
        ("train.n_layer=2", "model.n_layer"),
        ("modle.n_layer=2", "model.n_layer"),
        ("learning_rte=1", "optim.adamw_learning_rate"),
        ("stepz=1", "train.steps"),
        ("zzzzqqqq=1", "--help"),
    ],
)
def test_wrong_keys_suggest_in_overrides_and_in_toml(argument: str, suggestion: str, tmp_path: Path) -> None:
    (problem,) = problems_of(c.parse_overrides, [argument])
    key, _, value = argument.partition("=")
    assert repr(key) in problem and suggestion in problem
    section, _, name = key.rpartition(".")
    if section != "modle":  # an unknown table is another problem, below
        (problem,) = problems_of(from_toml, tmp_path, f"[{section or 'model'}]\n{name} = {value}")
        assert suggestion in problem and "in.toml" in problem


def test_what_others_call_a_key_suggests_ours() -> None:
    for theirs, ours in c.ALIASES.items():
        assert set(ours) <= c.SECTION_OF.keys() and theirs not in c.SECTION_OF
        (problem,) = problems_of(c.parse_overrides, [f"{theirs}=1"])
        assert f"did you mean {' or '.join(f'{c.SECTION_OF[key]}.{key}' for key in ours)}?" in problem


def test_a_file_with_renamed_keys_is_still_read(tmp_path: Path) -> None:
    text = "[train]\ninit = 'a'\nkeep = 7\n[optim]\nlearning_rate = 0.5\n[runtime]\nworkers = 3\n"
    _, config = from_toml(tmp_path, text)
    assert (config.train.init_from, config.train.keep_checkpoints) == ("a", 7)
    assert (config.optim.adamw_learning_rate, config.runtime.num_workers) == (0.5, 3)


def test_keys_of_a_further_section_need_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(c.SECTIONS, "lora", ModelConfig)  # has a dropout, too
    assert c.locate("lora.dropout") == ("lora", "dropout")
    assert c.locate("dropout") == ("model", "dropout")


def test_wrong_sections_suggest(tmp_path: Path) -> None:
    problems = problems_of(from_toml, tmp_path, "[modle]\nn_layer = 2\n[qqq]\nx = 1\n[train]\nstepz = 1\n")
    assert len(problems) == 3
    assert "'modle'" in problems[0] and "did you mean [model]?" in problems[0]
    assert all(section in problems[1] for section in c.SECTIONS)
    assert "train.steps" in problems[2]


@pytest.mark.parametrize(
    "text", ["model = 5", "preset = 5", 'preset = ["small"]', "n_layer = 2", "model.n_layer.x = 1"]
)
def test_tables_and_values_in_each_others_place_are_problems(text: str, tmp_path: Path) -> None:
    assert problems_of(from_toml, tmp_path, text)


@pytest.mark.parametrize(
    ("section", "name", "wrong", "meant"),
    [
        ("model", "norm", "layer_norm", "layernorm"),
        ("model", "mlp", "swigle", "swiglu"),
        ("optim", "optimizer", "adam", "adamw"),
        ("runtime", "dtype", "bfloat", "bfloat16"),
        ("runtime", "dtype", "flaot16", "float16"),
        ("runtime", "compile", "ture", "true"),
        ("optim", "schedule", "trapez", "trapezoid"),
    ],
)
def test_wrong_choices_suggest(section: str, name: str, wrong: str, meant: str) -> None:
    for layer in ({section: {name: wrong}}, c.parse_overrides([f"{name}={wrong}"])):
        (problem,) = problems_of(c.build, "", [layer])
        assert problem.startswith(f"{section}.{name}: {wrong!r}") and problem.endswith(f"did you mean {meant}?")


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[model]\nn_layer = 1\nn_layer = 2\n", None])
def test_unreadable_toml_is_one_problem(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    (problem,) = problems_of(c.read_toml, path)
    assert str(path) in problem


def test_every_bad_override_is_reported() -> None:
    arguments = [
        "steps",
        "stepz=1",
        "n_layer=two",
        "qk_norm=maybe",
        "adamw_learning_rate=fast",
        "n_head=2",
        "n_embd=1.5",
    ]
    problems = problems_of(c.parse_overrides, arguments)
    assert len(problems) == 6
    for part in ("'steps'", "'stepz'", "'two'", "'maybe'", "'fast'", "'1.5'"):
        assert sum(part in problem for problem in problems) == 1


# --- types and bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("section", "field"), FIELDS, ids=lambda value: getattr(value, "name", value))
def test_types_and_bounds_of_every_field(section: str, field: dataclasses.Field[Any]) -> None:
    part = c.SECTIONS[section]
    kind = typing.get_type_hints(part)[field.name]
    wrong: list[Any] = [None, [], {}]
    if typing.get_args(kind):
        wrong += [1, "no such choice", ""] + [True] * (field.name != "compile")  # TOML's own true is a choice there
    elif kind is bool:
        wrong += [0, 1, "true", 1.0]
    elif kind is int:
        wrong += [True, False, 1.0, "1", math.nan, math.inf]
    elif kind is float:
        wrong += [True, False, "1", math.nan, math.inf, -math.inf]
    else:
        wrong += [True, 1, 1.0]
    least, most = field.metadata["min_value"], field.metadata["max_value"]
    if kind in (int, float):
        beyond = math.nextafter if kind is float else lambda bound, towards: bound + (1 if towards > 0 else -1)
        assert least is not None
        wrong += [beyond(least, -math.inf)] + ([beyond(most, math.inf)] if most is not None else [])
    for value in wrong:
        (problem,) = problems_of(part, **{field.name: value})
        assert problem.startswith(f"{section}.{field.name}: ")
    for bound in (least, most):
        if bound is not None and section != "model":
            assert getattr(part(**{field.name: kind(bound)}), field.name) == bound


def test_whole_numbers_do_for_floats() -> None:
    assert OptimConfig(adamw_learning_rate=1).adamw_learning_rate == 1


@pytest.mark.parametrize("value", [2**53 + 1, 2**64, 10**30, 10**400], ids=["2^53+1", "2^64", "10^30", "10^400"])
def test_large_whole_numbers_are_exact_or_a_problem(value: int, tmp_path: Path) -> None:
    for read in (
        lambda: c.build("", [c.parse_overrides([f"seed={value}"])]),
        lambda: from_toml(tmp_path, f"[train]\nseed = {value}")[1],
    ):
        try:
            assert read().train.seed == value
        except ConfigError as error:
            assert "seed" in str(error)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("steps=1e6", 1_000_000),
        ("steps=1_000", 1000),
        ("train.steps=7", 7),
        ("adamw_learning_rate=3e-4", 3e-4),
        ("weight_decay=0", 0.0),
        ("qkv_bias=yes", True),
        ("activation_checkpointing=TRUE", True),
        ("tensorboard=FALSE", False),
        ("norm_bias=0", False),
        ("qk_norm=1", True),
        ("compile=auto", "auto"),
        ("compile=false", "false"),
        ("dtype=float16", "float16"),
        ("steps=auto", 0),
        ("micro_batch_size=auto", 0),
        ("train.eval_interval=auto", 0),
        ("head_dim=auto", 0),
        ("source=a=b.txt", "a=b.txt"),
        ("source=", ""),
        ("time=1h30m", "1h30m"),
    ],
)
def test_override_values(argument: str, value: Any) -> None:
    layer = c.parse_overrides([argument])
    name = argument.partition("=")[0].rpartition(".")[2]
    found = layer[c.SECTION_OF[name]][name]
    assert found == value and type(found) is type(value)


def test_auto_is_said_of_every_number_that_is_derived_and_of_no_other() -> None:
    for section, field in FIELDS:
        kind = typing.get_type_hints(c.SECTIONS[section])[field.name]
        try:
            c.build("", [c.parse_overrides([f"{field.name}=auto"])])
            accepted = True
        except ConfigError as error:
            accepted = False
            assert f"{section}.{field.name}: " in str(error)
        choice = "auto" in typing.get_args(kind) or field.name in (
            "device",
            "source",
            "init_from",
            "tokenizer",
            "separator",
            "text_field",
            "lora_targets",
        )  # may be a file's name, or any text
        assert accepted == (choice or (kind is int and field.default == 0)), field.name


def test_batch_auto_leaves_the_micro_batch_to_the_machine() -> None:
    assert c.parse_overrides(["batch=auto"]) == {"train": {"micro_batch_size": 0}}
    assert c.build("", [c.parse_overrides(["micro_batch_size=4", "batch=auto"])]).train == TrainConfig()
    for no_key in ("batch=8", "train.batch=auto"):
        assert "train.batch_size" in problems_of(c.parse_overrides, [no_key])[0]


@pytest.mark.parametrize(
    "argument",
    [
        "steps=nan",
        "steps=inf",
        "steps=1.5",
        "steps=",
        "steps=automatic",
        "batch_size=auto",
        "n_layer=auto",
        "seed=auto",
        "qk_norm=",
        "tensorboard=auto",
        "adamw_learning_rate=",
        "adamw_learning_rate=auto",
    ],
)
def test_override_values_of_another_type(argument: str) -> None:
    (problem,) = problems_of(c.parse_overrides, [argument])
    assert "expected" in problem


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_non_finite_floats_parse_and_are_then_refused(text: str) -> None:
    (problem,) = problems_of(c.build, "", [c.parse_overrides([f"adamw_learning_rate={text}"])])
    assert "optim.adamw_learning_rate" in problem and "finite" in problem


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:13"])
def test_devices(device: str) -> None:
    assert RuntimeConfig(device=device).device == device
    for wrong in (device + " ", device.upper(), device + ":x", "x" + device):
        assert "runtime.device" in problems_of(RuntimeConfig, device=wrong)[0]


# --- layers and files ------------------------------------------------------------------------------------------------


def test_names_are_unique_over_all_sections() -> None:
    names = [field.name for _, field in FIELDS]
    assert len(set(names)) == len(names) == len(c.SECTION_OF)
    assert not set(names) & {*c.SECTIONS, "preset", "provenance"}
    for section, field in FIELDS:
        assert c.locate(field.name) == c.locate(f"{section}.{field.name}") == (section, field.name)


def test_later_layers_win_field_by_field() -> None:
    layers = [
        {"model": {"n_layer": 1, "n_embd": 8, "n_head": 2}, "train": {"steps": 1}},
        {"model": {"n_layer": 2}},
        c.parse_overrides(["n_layer=3", "steps=5", "steps=6"]),
    ]
    found = c.build("x", layers)
    assert (found.model.n_layer, found.model.n_embd, found.train.steps) == (3, 8, 6)
    assert c.build("x", layers[::-1]).model.n_layer == 1
    assert (found.preset, found.optim, found.data) == ("x", OptimConfig(), DEFAULT.data)


def _values(section: str, field: dataclasses.Field[Any]) -> st.SearchStrategy[Any]:
    kind = typing.get_type_hints(c.SECTIONS[section])[field.name]
    least, most = field.metadata["min_value"], field.metadata["max_value"]
    if choices := typing.get_args(kind):
        return st.sampled_from(choices)
    if field.name == "device":
        return st.sampled_from(["auto", "cpu", "cuda:3"])
    if field.name == "time":
        return st.sampled_from(["90s", "1h30m", "0.5m"])
    if field.name == "tokenizer":
        return st.sampled_from(["char", "word", "word:8000", "bpe:512", "gpt2", "my/tokenizer.json"])
    if kind is int:
        return st.integers(least, most if most is not None else 2**40)
    if kind is float:
        return st.floats(least, most, allow_infinity=False, allow_nan=False)
    return st.booleans() if kind is bool else st.text(st.characters(exclude_categories=["Cs"]))


_ANY_LAYER = st.fixed_dictionaries(
    {},
    optional={
        name: st.fixed_dictionaries(
            {}, optional={field.name: _values(name, field) for field in dataclasses.fields(part)}
        )
        for name, part in c.SECTIONS.items()
    },
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layer=_ANY_LAYER)
def test_written_and_read_back_is_the_same(tmp_path_factory: pytest.TempPathFactory, layer: dict[str, Any]) -> None:
    try:
        config = c.build("tiny", [layer])
    except ConfigError:
        layer.pop("model")  # the model's fields constrain each other
        config = c.build("tiny", [layer])
    path = tmp_path_factory.mktemp("toml") / "run.toml"
    c.write_toml(path, config, {"text": "ä\"'\\\n", "number": 3, "list": ["a"]})
    preset, read = c.read_toml(path)
    assert c.build(preset or "", [read]) == config
    assert tomllib.loads(path.read_bytes().decode("utf-8"))["provenance"] == {
        "text": "ä\"'\\\n",
        "number": 3,
        "list": ["a"],
    }
    for section, values in layer.items():  # and the command line says the same as the file
        for name, value in values.items():
            assert c.parse_overrides([f"{name}={value}"]) == {section: {name: value}}


@pytest.mark.parametrize(
    "source", ["Büchner – „Woyzeck“.txt", 'it\'s "quoted".txt', "C:\\a\\b.txt", "日本\t🦊\r\n", "#"]
)
def test_awkward_sources_survive_toml(source: str, tmp_path: Path) -> None:
    c.write_toml(tmp_path / "a.toml", DEFAULT.replace("data", source=source), {})
    preset, layer = c.read_toml(tmp_path / "a.toml")
    assert c.build(preset or "", [layer]) == DEFAULT.replace("data", source=source)
    assert b"\r" not in (tmp_path / "a.toml").read_bytes()


def test_a_file_name_that_is_no_unicode_survives_or_is_a_problem(tmp_path: Path) -> None:
    """Müller.txt as Python sees it in the C locale, or a name in another encoding."""
    source = "M\udcc3\udcbcller.txt"
    try:
        config = c.build("", [{"data": {"source": source}}])
        c.write_toml(tmp_path / "a.toml", config, {})
        assert c.build("", [c.read_toml(tmp_path / "a.toml")[1]]) == config
    except ConfigError as error:
        assert "data.source" in str(error)


def test_derived_model_fields() -> None:
    model = ModelConfig(n_embd=96, n_head=6)
    assert (model.n_kv_head, model.head_dim, model.intermediate_size) == (6, 16, 384)
    model = ModelConfig(n_embd=96, n_head=6, n_kv_head=2, head_dim=32, intermediate_size=100)
    assert (model.n_kv_head, model.head_dim, model.intermediate_size) == (2, 32, 100)
    for width in range(8, 2000, 8):
        hidden = ModelConfig(n_embd=width, n_head=4, mlp="swiglu").intermediate_size
        assert hidden % 64 == 0 and 0 <= 3 * hidden - 8 * width < 3 * 64
    assert dataclasses.replace(model) == model == ModelConfig(**dataclasses.asdict(model))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.n_layer = 3  # type: ignore[misc]


def test_replace_changes_one_section_and_checks_it() -> None:
    changed = DEFAULT.replace("train", steps=3)
    assert changed.train.steps == 3 and changed.model is DEFAULT.model and DEFAULT.train.steps == 0
    assert "train.steps" in problems_of(DEFAULT.replace, "train", steps=-3)[0]


def test_differences_name_key_old_and_new() -> None:
    assert c.differences(DEFAULT.train, DEFAULT.train) == []
    (line,) = c.differences(DEFAULT.model, DEFAULT.replace("model", n_layer=9).model)
    assert line.startswith("model.n_layer: ") and re.findall(r"\d+", line) == ["6", "9"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("1h", 3600),
        ("2h3m4s", 7384),
        ("0.5m", 30),
        (" 1.5s ", 1.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert c.parse_duration(text) == seconds
    assert TrainConfig(time=text).time == text


@pytest.mark.parametrize(
    "text", ["", " ", "0", "0s", "0h0m", "-5m", "5 m", "5x", "soon", "m", "30m1h", "1:30", "nan", "1e3"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration") as caught:
        c.parse_duration(text)
    assert repr(text) in str(caught.value)
    assert "train.time" in problems_of(TrainConfig, time=text)[0]


@pytest.mark.parametrize(("given", "kept"), [(True, "true"), (False, "false"), ("true", "true"), ("auto", "auto")])
def test_compile_is_a_choice_that_booleans_can_make(given: Any, kept: str, tmp_path: Path) -> None:
    """Python's and TOML's own true and false will do; what is kept and written down is the choice."""
    assert RuntimeConfig(compile=given) == RuntimeConfig(compile=kept)  # type: ignore[arg-type]
    text = f"[runtime]\ncompile = {repr(given).lower() if isinstance(given, bool) else repr(given)}\n"
    config = from_toml(tmp_path, text)[1]
    assert config.runtime.compile == kept
    assert config.replace("runtime", threads=2).runtime.compile == kept
    c.write_toml(tmp_path / "out.toml", config, {})
    assert tomllib.loads((tmp_path / "out.toml").read_text(encoding="utf-8"))["runtime"]["compile"] == kept


def test_every_field_is_described() -> None:
    described = {option.key: option for option in c.describe_options(tuple(c.SECTIONS))}
    assert list(described) == [f"{section}.{field.name}" for section, field in FIELDS]
    assert all(option.help.strip() and option.type for option in described.values())
    assert described["model.norm"].type == "layernorm | rmsnorm"
    assert (described["train.tensorboard"].type, described["train.tensorboard"].default) == ("bool", "false")
    assert (described["runtime.compile"].type, described["runtime.compile"].default) == ("auto | true | false", "auto")
    for section, field in FIELDS:  # the default shown can be typed back
        default = described[f"{section}.{field.name}"].default
        assert c.parse_overrides([f"{field.name}={default}"])[section][field.name] == field.default


def test_configuration_and_command_line_import_no_torch() -> None:
    script = (
        "import sys, importlib\n"
        "for name in ('glassgpt', 'glassgpt.config', 'glassgpt.config.presets', 'glassgpt.cli.main'):\n"
        "    importlib.import_module(name)\n"
        "    assert not {'torch', 'transformers', 'tokenizers', 'matplotlib'} & set(sys.modules), name\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
