"""Write the diagrams of the documentation: ``python tools/docs/diagrams.py`` -> docs/images/diagrams/NAME.svg.

Shapes, counts, file names, rooms and titles come from the program. ``--check`` fails if a committed file is different;
``--only NAME`` draws one.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from drawn import cache_lora, data, maps, model, running

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "diagrams"
DIAGRAMS: dict[str, Callable[[], str]] = {
    "pipeline": data.pipeline,
    "transformer": model.transformer,
    "attention": model.attention,
    "window": data.window,
    "training-step": running.training_step,
    "checkpoint": running.checkpoint,
    "cache": cache_lora.cache,
    "lora": cache_lora.lora,
    "rooms": maps.rooms,
    "path": maps.path,
}


def path_of(name: str) -> Path:
    """Where a diagram is committed."""
    return FOLDER / f"{name}.svg"


def main() -> int:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is different")
    parser.add_argument("--only", choices=DIAGRAMS, help="one diagram")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    different = []
    for name in [options.only] if options.only else DIAGRAMS:
        path, drawn = path_of(name), DIAGRAMS[name]()
        if path.exists() and path.read_text(encoding="utf-8") == drawn:
            continue
        different.append(name)
        if not options.check:
            path.write_text(drawn, encoding="utf-8")
    print(f"{'different' if options.check else 'written'}: {', '.join(different) or 'none'}")
    return 1 if options.check and different else 0


if __name__ == "__main__":
    sys.exit(main())
