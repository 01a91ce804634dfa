"""``glassgpt quantize``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from glassgpt.cli.arguments import JSON_OPTION, RUNS_OPTION, SOURCE_HELP, check_out
from glassgpt.cli.models import default_name
from glassgpt.cli.printing.endings import print_next
from glassgpt.cli.printing.output import ProgressLine, byte_size, print_json, print_table, print_text, say
from glassgpt.cli.prompt import DEVICE_OPTION, open_run
from glassgpt.errors import ConfigError, shell_command

if TYPE_CHECKING:
    from glassgpt.evaluation.quantization import QuantizedReport
    from glassgpt.weights.sources import WeightSource


def quantize(
    model: str = typer.Argument(..., metavar="MODEL", help=SOURCE_HELP),
    to: Literal["int8", "int4", "float32", "bfloat16"] = typer.Option(
        ..., "--to", help="New type; float32 and bfloat16 undo a quantisation."
    ),
    out: Path = typer.Option(None, "--out", "-o", help="Folder to write; by default named after the model."),
    text: Path = typer.Option(None, "--text", metavar="FILE", help="Measure the perplexity on this text."),
    device: str = DEVICE_OPTION,
    runs: Path = RUNS_OPTION,
    json: bool = JSON_OPTION,
) -> None:
    """Store the weights as 8-bit or 4-bit integers.

    Writes a new model folder, which other verbs open as any model, and prints its size, the errors of the weights and
    of the logits, the change in perplexity on a text, and the speed of decoding here. Norms and biases stay floats.
    """
    check_out(out, folder=True)
    content = _read(text)
    source = open_run(model, runs)
    target = out or Path(f"{default_name(model, source)}-{to}")
    check_out(target, folder=True)
    if to in ("float32", "bfloat16"):
        _dequantize(source, target, to, json)
        return
    from glassgpt import api
    from glassgpt.evaluation.quantization import builtin_text, quantize_and_measure
    from glassgpt.weights import transfer
    from glassgpt.weights.quantized import QuantizedFolderSource

    transfer.refuse_existing(target, "folder")
    if isinstance(source, QuantizedFolderSource):
        raise ConfigError(f"{source.path} is quantised already; quantise the model that it was made from")
    if to == "int4":
        say("INT4 is fitted to a text that the model generates first: some minutes for 100 million parameters")
    with ProgressLine() as progress:
        loaded, tokenizer = api.load_from_source(source, device=device, progress=progress)
        content = content or builtin_text(tokenizer)
        report = quantize_and_measure(loaded, tokenizer, int(to[3:]), content, progress)
        size = transfer.write_quantized(source, loaded, tokenizer, target)
    _print_report(report, target, size, str(text or "the built-in text"), json)


def _read(text: Path | None) -> str:
    if text is None:
        return ""
    from glassgpt.data.sources.source import read_text

    return read_text(str(text)).content


def _dequantize(source: "WeightSource", target: Path, dtype: str, json: bool) -> None:
    from glassgpt import api
    from glassgpt.weights import transfer
    from glassgpt.weights.quantized import QuantizedFolderSource

    if not isinstance(source, QuantizedFolderSource):
        raise ConfigError(
            f"{source.path} is not a folder of quantised weights; `export --to hf --dtype` changes dtypes"
        )
    with ProgressLine() as progress:
        transfer.to_folder(source, target, dtype=api.weights_dtype(dtype), progress=progress)
    size = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    if json:
        print_json({"path": str(target), "dtype": dtype, "bytes": size})
    else:
        print(f"{target}  {byte_size(size)}, {dtype}; the values are those of the quantised weights")


def _print_report(report: "QuantizedReport", target: Path, size: int, text: str, json: bool) -> None:
    """Print what quantising has changed, as JSON or for people."""
    import math

    from glassgpt.evaluation.quantization import DECODED_TOKENS

    before, after = (math.exp(min(700.0, loss)) for loss in (report.loss_before, report.loss_after))
    if json:
        layers: dict[str, Any] = {
            name: {"bits": kind.bits, "group_size": kind.group_size, "error": report.errors[name]}
            for name, kind in report.kinds.items()
        }
        perplexity = {"text": text, "before": before, "after": after, "change": report.perplexity_change}
        speed = {"before": report.speed_before, "after": report.speed_after, "decoder": report.decoder}
        weights = {"bytes_before": report.bytes_before, "bytes_after": report.bytes_after}
        result = {"path": str(target), "bytes": size, **weights, "perplexity": perplexity}
        print_json(result | {"logit_error": report.logit_error, "tokens_per_second": speed, "layers": layers})
        return
    ratio = report.bytes_before / report.bytes_after
    print_text(
        f"{target}  {byte_size(report.bytes_before)} of weights -> {byte_size(report.bytes_after)}, "
        f"{ratio:.1f} times smaller"
    )
    print_text(f"perplexity on {text}: {before:,.2f} -> {after:,.2f} ({report.perplexity_change:+.2%})")
    print_text(f"relative RMS error of the logits: {report.logit_error:.2%}; of the weights, by layer:")
    _print_layers(report)
    faster = report.speed_after / report.speed_before
    verdict = "faster" if faster > 1.05 else "not faster" if faster < 0.95 else "as fast"
    print_text(
        f"decoding {DECODED_TOKENS} tokens here is {verdict}: {_speed(report.speed_before)} -> "
        f"{_speed(report.speed_after)} tokens/s (decode: {report.decoder})\n"
    )
    print_next(
        {
            shell_command("sample", target, "--prompt", "..."): "generate with it",
            shell_command("score", target, "FILE"): "measure its perplexity on another text",
            shell_command("quantize", target, "--to", "float32"): "make it plain again",
        }
    )


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _print_layers(report: "QuantizedReport") -> None:
    """Print the mean error of the layers that are stored alike and have one role, and the largest one."""
    groups: dict[tuple[str, str], list[float]] = {}
    for name, kind in report.kinds.items():
        role = ".".join(part for part in name.split(".") if not part.isdigit())
        groups.setdefault((role, f"INT{kind.bits}, a scale for {kind.group_size}"), []).append(report.errors[name])
    rows = [
        [role, stored, str(len(errors)), f"{sum(errors) / len(errors):.2%}", f"{max(errors):.2%}"]
        for (role, stored), errors in groups.items()
    ]
    print_table(["layers", "stored as", "count", "mean error", "largest"], rows, right=(2, 3, 4))
