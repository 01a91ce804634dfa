"""The pages by symptom, the glossary and "coming from": every name in them exists, and every output is the real one."""

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

import glassgpt
from glassgpt.cli.main import app
from glassgpt.config import ALIASES, SECTION_OF
from glassgpt.doctor.checks import MODEL_CHECKS
from glassgpt.doctor.examining import CHECKS
from glassgpt.doctor.gallery.bug import import_program
from glassgpt.doctor.gallery.lessons import BUGS, factory_name
from glassgpt.doctor.gallery.text_bugs import TEXT_BUGS, examine_text
from glassgpt.doctor.loops.checks import LOOP_CHECKS
from glassgpt.doctor.loops.loop import Loop
from glassgpt.doctor.report import FINDINGS, Outcome, run_checks
from glassgpt.doctor.subject import Subject
from glassgpt.model import GPT

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRONG, GLOSSARY = DOCS / "wrong.md", DOCS / "glossary.md"
COMING = sorted((DOCS / "coming-from").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
#: A bug, and the check whose line on the page by symptom is the real output of a program with this bug.
SHOWN = [
    ("optimizer-of-another-model", "optimizer coverage"),
    ("softmax-in-the-model", "outputs"),
    ("tied-head-std-1", "initial loss"),
    ("targets-not-shifted", "trained targets"),
    ("first-row-masked", "finite"),
    ("cached-positions-start-again", "cache"),
    ("dropout-always-on", "modes"),
    ("validation-in-training", "validation data"),
    ("end-not-trained", "end of turn is trained"),
    ("another-template-at-sampling", "template"),
    ("evaluates-with-gradients", "evaluation"),
    ("rotary-pairs-do-not-match", "rotations"),
    ("groups-by-repeat", "grouped queries"),
    ("state-between-calls", "state"),
    ("no-eval-mode", "evaluation"),
    pytest.param("no-causal-mask", "past and future", marks=pytest.mark.slow),
    pytest.param("losses-kept-with-graphs", "graphs", marks=pytest.mark.slow),
    pytest.param("no-step", "update", marks=pytest.mark.slow),
    pytest.param("rate-too-high", "update", marks=pytest.mark.slow),
]


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def all_pages() -> list[Path]:
    return sorted(DOCS.rglob("*.md"))


def unquoted(names: str) -> list[str]:
    return [name.strip() for name in names.strip("\"'`").split(",")]


def test_every_check_that_a_page_names_exists() -> None:
    known = {check.name for checks in CHECKS.values() for check in checks} | set(FINDINGS)
    found = [
        (page.name, name)
        for page in all_pages()
        for given in re.findall(r"--only[ =](\"[^\"]+\"|'[^']+'|[^\s`]+)", read(page))
        for name in unquoted(given)
        if not name.isupper()  # a placeholder, such as NAMES
    ]
    assert len(found) > 30
    assert [(page, name) for page, name in found if name not in known] == []


def test_every_bug_that_a_page_names_exists() -> None:
    known = {bug.name for bug in BUGS}
    found = [
        (page.name, name)
        for page in all_pages()
        for name in re.findall(r"--break[ =]([\w-]+)", read(page).replace("--break trains", ""))
        if not name.isupper()
    ]
    assert found
    assert [(page, name) for page, name in found if name not in known] == []
    on_page = {name for name in re.findall(r"`([a-z0-9]+(?:-[a-z0-9]+)+)`", read(WRONG)) if not name.startswith("--")}
    assert on_page <= known, on_page - known


def sections() -> dict[str, str]:
    parts = re.split(r"^## (.+)$", read(WRONG), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_symptom_is_in_the_table_with_a_command_of_its_section_and_a_lesson() -> None:
    rows = re.findall(r"^\| \[(.+?)\]\(#.+?\) \| `(glassgpt .+?)` \|$", read(WRONG), re.MULTILINE)
    symptoms = [name for name in sections() if name != "Tools"]
    assert [name for name, _ in rows] == symptoms
    assert len(symptoms) >= 15
    for name, command in rows:
        section = sections()[name]
        blocks = "\n".join(text for kind, text in BLOCK.findall(section) if kind in ("sh", "console"))
        assert re.search(r"^(\w+=\S+ )?glassgpt ", blocks, re.MULTILINE), name
        verb = command.split()[1]
        assert f"glassgpt {verb} " in blocks, f"{name}: its section has no command with {verb}"
        assert re.search(r"^\*\*Fix|^Then compare|ready|with `glassgpt data prepare`", section, re.MULTILINE), name
        assert "../lessons/" in section, f"{name} names no lesson"


def test_every_lesson_that_a_page_names_exists() -> None:
    for page in (WRONG, GLOSSARY, *COMING):
        text = read(page)
        for shown, number, path in re.findall(r"\[(.*?(\d+)|[^\]]*)\]\(((?:\.\./)+lessons/[^)]+)\)", text):
            assert (page.parent / path).exists(), path
            if number:
                assert int(number) == int(Path(path).name[:2]), f"{page.name}: {shown} is {path}"
        assert not re.search(r"[Ll]essons? \d", re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)), f"{page.name}: a bare number"


def commands(page: Path) -> Iterator[list[str]]:
    for kind, block in BLOCK.findall(read(page)):
        if kind in ("sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.search(r"(?:^|-m )glassgpt (.*)", line):
                    yield shlex.split(match[1], comments=True)


@pytest.mark.parametrize("page", [WRONG, *COMING], ids=lambda page: page.stem)
def test_every_option_and_setting_in_a_command_exists(page: Path) -> None:
    root = typer.main.get_command(app)
    found = list(commands(page))
    assert len(found) >= 4
    for words in found:
        command: Any = root
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        assert command is not root, words
        options = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in options, f"{command.name} {word}"
            elif match := re.fullmatch(r"(?:[a-z]+\.)?([a-z_0-9]+)=.*", word):
                assert match[1] in (*SECTION_OF, "preset"), word


def examine(name: str, check: str) -> list[Outcome]:
    """Run one check on the first program of the gallery that has this bug."""
    bug = next(bug for bug in (*BUGS, *TEXT_BUGS) if bug.name == name)
    program = next(iter(bug.changes))
    if bug in TEXT_BUGS:
        return [outcome for outcome in examine_text(program, bug) if outcome.check.name == check]
    kind = factory_name(bug)
    torch.manual_seed(0)
    factory = getattr(import_program(program, bug), kind)
    if kind == "loop":
        return list(run_checks([c for c in LOOP_CHECKS if c.name == check], Loop(factory)))
    return list(run_checks([c for c in MODEL_CHECKS if c.name == check], Subject(factory(), program)))


def without_numbers(line: str) -> str:
    return re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "0", " ".join(line.split()))


@pytest.mark.parametrize(("bug", "check"), SHOWN)
def test_the_outputs_on_the_page_are_real(bug: str, check: str) -> None:
    lines = []
    for outcome in examine(bug, check):
        if (result := outcome.result).finding:
            assert result.status in ("WARN", "FAIL")
            lines.append(f"{result.status} {check}: {result.finding}: {result.message}")
    joined = read(WRONG).replace("\n" + " " * 9, " ")  # the page breaks long lines
    page = [without_numbers(line) for line in joined.splitlines() if line.startswith(("FAIL", "WARN"))]
    assert any(without_numbers(line) in page for line in lines), lines


def test_the_glossary_is_sorted_and_has_each_term_once() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\*", read(GLOSSARY), re.MULTILINE)
    folded = [term.casefold() for term in terms]
    assert len(terms) >= 90
    assert folded == sorted(folded)
    assert len(set(folded)) == len(folded)
    letters = re.findall(r"^## (.)$", read(GLOSSARY), re.MULTILINE)
    assert letters == sorted({term[0].upper() for term in terms})


def test_every_setting_in_the_glossary_exists() -> None:
    for entry in re.split(r"\n\n(?=\*\*)", read(GLOSSARY))[1:]:
        names = re.match(r"\*\*.+?\*\* \((.+?)\):", entry, re.DOTALL)
        for name in re.findall(r"`([a-z_]+)=[\w:]*`", names[1] if names else ""):
            assert name in SECTION_OF or name == "preset", entry


@pytest.mark.parametrize("page", COMING, ids=lambda page: page.stem)
def test_the_tables_agree_with_the_hints_for_other_names(page: Path) -> None:
    """The error for another project's name suggests ours; the table must name one of these."""
    checked = 0
    for there, here in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", read(page), re.MULTILINE):
        ours = set(re.findall(r"`([a-z_0-9]+)`", here))
        for name in re.findall(r"`(?:train\.)?([a-z_0-9]+)`", there):
            if name in ALIASES and name not in SECTION_OF:
                assert ours & set(ALIASES[name]), f"{name}: {here}; the error says {ALIASES[name]}"
                checked += 1
    assert checked >= (1 if page.stem == "litgpt" else 3), checked


@pytest.mark.parametrize("page", COMING, ids=lambda page: page.stem)
def test_our_names_in_the_tables_of_settings_exist(page: Path) -> None:
    section = re.search(r"^## Settings.*?(?=^## (?!Settings))", read(page), re.MULTILINE | re.DOTALL)
    assert section
    for here in re.findall(r"^\| [^|]+ \| ([^|]+) \|", section[0], re.MULTILINE):
        for name in re.findall(r"`([a-z_0-9]+)`", here.split(":")[0]):
            assert name in SECTION_OF, f"{page.name}: {here}"


# -- models of other programs --


def block_of(page: str, function: str) -> Callable[..., GPT]:
    """Run the Python block of a page that defines a function, and return the function."""
    source = next(text for kind, text in BLOCK.findall(read(DOCS / page)) if kind == "python" and function in text)
    names: dict[str, Any] = {}
    exec(compile(source, page, "exec"), names)
    converter: Callable[..., GPT] = names[function]
    return converter


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Plain causal attention of ``[T, C]``, head by head."""
    T, size = q.size(0), q.size(1) // heads
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    outputs = []
    for part in range(heads):
        channels = slice(part * size, (part + 1) * size)
        scores = (q[:, channels] @ k[:, channels].T / size**0.5).masked_fill(hidden, float("-inf"))
        outputs.append(scores.softmax(-1) @ v[:, channels])
    return torch.cat(outputs, dim=-1)


def nanogpt_weights(bias: bool, layers: int = 2, C: int = 8, V: int = 11, T: int = 12) -> dict[str, Tensor]:
    """Random weights with nanoGPT's names and shapes."""
    shapes = {"transformer.wte.weight": (V, C), "transformer.wpe.weight": (T, C), "transformer.ln_f.weight": (C,)}
    for i in range(layers):
        block = f"transformer.h.{i}."
        shapes |= {f"{block}ln_1.weight": (C,), f"{block}ln_2.weight": (C,)}
        shapes |= {f"{block}attn.c_attn.weight": (3 * C, C), f"{block}attn.c_proj.weight": (C, C)}
        shapes |= {f"{block}mlp.c_fc.weight": (4 * C, C), f"{block}mlp.c_proj.weight": (C, 4 * C)}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    if bias:
        matrices = [name for name in weights if "wte" not in name and "wpe" not in name]
        weights |= {name.replace("weight", "bias"): torch.randn(len(weights[name])) for name in matrices}
    return weights | {"lm_head.weight": weights["transformer.wte.weight"]}


def nanogpt_logits(w: dict[str, Tensor], ids: Tensor, heads: int = 2, layers: int = 2) -> Tensor:
    """What such a model computes for ids ``[T]``, written from its description: pre-norm blocks with an exact GELU."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w.get(f"{name}.bias"), 1e-5)

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: len(ids)]
    for i in range(layers):
        block = f"transformer.h.{i}"
        q, k, v = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").chunk(3, dim=-1)
        x = x + linear(attended(q, k, v, heads), f"{block}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")), f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_becomes_a_model_folder(bias: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = nanogpt_weights(bias)
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 11, "dropout": 0.0}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    torch.save({"model": compiled, "model_args": settings | {"bias": bias}}, tmp_path / "ckpt.pt")
    model = block_of("coming-from/nanogpt.md", "read_nanogpt")(tmp_path / "ckpt.pt")
    ids = torch.randint(11, (12,))
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None])[0], nanogpt_logits(weights, ids), rtol=1e-4, atol=1e-4)
    check_folder(model, tmp_path, ids)


def check_folder(model: GPT, tmp_path: Path, ids: Tensor) -> None:
    """The model can be saved as a folder that the program reads again, in a published format."""
    from glassgpt.tokenizer.char import CharTokenizer

    glassgpt.save(model, CharTokenizer(list("abcdefghijk")), tmp_path / "folder")
    assert json.loads((tmp_path / "folder" / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt2"
    again, _ = glassgpt.load(tmp_path / "folder", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(again(ids[None]), model(ids[None]))


@pytest.mark.parametrize("bias", [True, False])
def test_a_state_dict_of_the_book_becomes_a_model_folder(bias: bool, tmp_path: Path) -> None:
    """Its blocks compute the same as nanoGPT's with the tanh form of GELU, under other names."""
    torch.manual_seed(0)
    cfg = {"vocab_size": 11, "context_length": 12, "emb_dim": 8, "n_heads": 2, "n_layers": 2, "drop_rate": 0.1}
    plain = nanogpt_weights(bias=True) | {"lm_head.weight": torch.randn(11, 8)}
    theirs = {}
    for name, tensor in plain.items():
        if "c_attn" in name:
            if "bias" in name and not bias:
                plain[name].zero_()
                continue
            for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                theirs[name.replace("attn.c_attn", f"att.W_{part}")] = rows.clone()
        else:
            theirs[name] = tensor
    renames = {
        "transformer.wte": "tok_emb", "transformer.wpe": "pos_emb", "transformer.h.": "trf_blocks.",
        "attn.c_proj": "att.out_proj", "mlp.c_fc": "ff.layers.0", "mlp.c_proj": "ff.layers.2", "lm_head": "out_head",
        "ln_1.weight": "norm1.scale", "ln_1.bias": "norm1.shift", "ln_2.weight": "norm2.scale",
        "ln_2.bias": "norm2.shift", "transformer.ln_f.weight": "final_norm.scale",
        "transformer.ln_f.bias": "final_norm.shift",
    }  # fmt: skip
    for old, new in renames.items():
        theirs = {name.replace(old, new): tensor for name, tensor in theirs.items()}
    theirs["trf_blocks.0.att.mask"] = torch.ones(12, 12).triu(1)
    torch.save(theirs, tmp_path / "model.pth")
    read_book_model = block_of("coming-from/llms-from-scratch.md", "read_book_model")
    model = read_book_model(tmp_path / "model.pth", cfg | {"qkv_bias": bias})
    ids = torch.randint(11, (12,))
    with pytest.MonkeyPatch.context() as patch:
        gelu = F.gelu
        patch.setattr(F, "gelu", lambda x: gelu(x, approximate="tanh"))
        expected = nanogpt_logits(plain, ids)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[None])[0], expected, rtol=1e-4, atol=1e-4)
    check_folder(model, tmp_path, ids)


def test_a_wrong_name_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    weights = nanogpt_weights(bias=False)
    weights["transformer.h.0.attn.c_attention.weight"] = weights.pop("transformer.h.0.attn.c_attn.weight")
    settings = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 11, "dropout": 0.0}
    torch.save({"model": weights, "model_args": settings | {"bias": False}}, tmp_path / "ckpt.pt")
    with pytest.raises(AssertionError):
        block_of("coming-from/nanogpt.md", "read_nanogpt")(tmp_path / "ckpt.pt")
