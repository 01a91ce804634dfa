"""One HTML page with everything that the checks found. It loads nothing from the network."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from glassgpt.doctor.advice import ADVICE
from glassgpt.doctor.pictures import draw_evidence
from glassgpt.doctor.report import Outcome, Status

#: What is wrong comes first.
_ORDER: tuple[Status, ...] = ("FAIL", "WARN", "PASS", "NOT RUN")
#: Characters of a measured value on the page; longer ones are pictures, or only in --json.
_LONGEST_VALUE = 200
_STYLE = """
:root { color-scheme: light dark; --paper: light-dark(#faf9f6, #14171d); --raised: light-dark(#fff, #1c2028);
  --ink: light-dark(#1d222b, #e6e4de); --soft: light-dark(#5d6470, #9aa1ad); --line: light-dark(#e3e0d8, #2d323c);
  --good: light-dark(#00685c, #50e1c3); --bad: light-dark(#b3261e, #ff8a80); --warn: light-dark(#8a4b00, #f0b060);
  --chosen: light-dark(#6d3bd1, #b998ff); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 4vw, 2.1rem); line-height: 1.2; margin: 0.4rem 0; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2rem 0 0.6rem; }
h3 { font-size: 1.05rem; margin: 0; } p { margin: 0.3rem 0; } ul { margin: 0.2rem 0; padding-left: 1.2rem; }
.soft, dt, figcaption { color: var(--soft); font-size: 0.9rem; }
article { background: var(--raised); border: 1px solid var(--line); border-left: 5px solid var(--line);
  border-radius: 8px; padding: 0.7rem 1rem; margin: 0.6rem 0; }
article.FAIL { border-left-color: var(--bad); } article.WARN { border-left-color: var(--warn); }
article.PASS { border-left-color: var(--good); }
.status { font: 600 0.85rem ui-monospace, monospace; margin-right: 0.6rem; }
.FAIL .status { color: var(--bad); } .WARN .status { color: var(--warn); } .PASS .status { color: var(--good); }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr; gap: 0.25rem 1rem; margin: 0.6rem 0 0; }
dd { margin: 0; min-width: 0; } code, pre { font: 0.88rem ui-monospace, monospace; }
pre { white-space: pre-wrap; margin: 0.3rem 0 0; } figure { margin: 0.8rem 0 0; }
svg { display: block; width: 100%; } svg.triangle { max-width: 22rem; border: 1px solid var(--line); }
svg.bars { overflow: visible; } svg text { font: 11px ui-monospace, monospace; text-anchor: middle; fill: var(--ink); }
svg text.name { fill: var(--soft); } svg line { stroke: var(--soft); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; gap: 0; } dt { margin-top: 0.5rem; } }
.good { fill: var(--good); } .bad { fill: var(--bad); } .chosen { fill: var(--chosen); } .none { fill: transparent; }
"""


def report_page(title: str, subjects: Mapping[str, Sequence[Outcome]], seconds: float) -> str:
    """Write the page.

    Args:
        title: what was examined.
        subjects: the outcomes by subject ("model runs/x", "history runs/x").
        seconds: of the whole examination.
    """
    counts = Counter(outcome.result.status for outcomes in subjects.values() for outcome in outcomes)
    shown = ", ".join(f"{counts[status]} {status}" for status in _ORDER if counts[status])
    parts = [f"<h1>Doctor: {html.escape(title)}</h1><p>{shown or 'nothing was examined'}; {seconds:.1f} s</p>"]
    for name, outcomes in subjects.items():
        parts.append(f"<section><h2>{html.escape(name)}</h2>")
        parts += map(_article, sorted(outcomes, key=lambda outcome: _ORDER.index(outcome.result.status)))
        parts.append("</section>")
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Doctor: {html.escape(title)}</title><style>{_STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _article(outcome: Outcome) -> str:
    """One result, with the check, the numbers, the pictures and the advice."""
    result, check = outcome.result, outcome.check
    finding = f"{html.escape(result.finding)}: " if result.finding else ""
    entries = {"check": html.escape(check.does)}
    if result.module:
        entries["module"] = f"<code>{html.escape(result.module)}</code>"
    if numbers := short_values(result.evidence):
        items = (f"<li>{html.escape(name)}: {html.escape(text)}</li>" for name, text in numbers.items())
        entries["evidence"] = f"<ul>{''.join(items)}</ul>"
    if result.status != "NOT RUN":
        entries["threshold"] = html.escape(check.threshold)
    if result.finding:
        entries |= _advice(result.finding)
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in entries.items())
    details = f"<dl>{listed}</dl>"
    if not result.finding:
        details = f'<details><summary class="soft">details</summary>{details}</details>'
    return (
        f'<article class="{result.status.replace(" ", "-")}"><h3><span class="status">{result.status}</span>'
        f"{html.escape(check.name)}</h3><p>{finding}{html.escape(result.message)}</p>{details}"
        f"{draw_evidence(result.evidence)}</article>"
    )


def _advice(finding: str) -> dict[str, str]:
    advice = ADVICE[finding]
    causes = "".join(f"<li>{_with_code(cause)}</li>" for cause in advice.causes)
    code = f"<pre>{html.escape(advice.code)}</pre>" if advice.code else ""
    return {
        "meaning": html.escape(advice.meaning),
        "causes": f"<ul>{causes}</ul>",
        "fix": _with_code(advice.fix) + code,
        "lesson": f"<code>glassgpt learn {advice.lesson}</code>",
    }


def _with_code(text: str) -> str:
    """Escape a text; what stands between backticks is code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def short_values(evidence: Mapping[str, Any], longest: int = _LONGEST_VALUE) -> dict[str, str]:
    """Write the measured values as texts of one line; those that are longer are left out."""
    texts = {name.replace("_", " "): _short(value) for name, value in evidence.items()}
    return {name: text for name, text in texts.items() if len(text) <= longest}


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_short(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_short, value))}]"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
