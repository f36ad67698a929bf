"""Train the small model from nothing: `python -m models.train --stage all --work-dir DIR`.

Every stage resumes from its own checkpoint, so the same command continues a killed run.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from models import assemble, config, parallel
from models.stages import clip, data, judge, tokenizer, unet, vae
from models.stages.workspace import Workspace

FOLDER = Path(__file__).parent

STAGES: dict[str, Callable[[Workspace], None]] = {
    "data": data.run,
    "tokenizer": tokenizer.run,
    "clip": clip.run,
    "vae": vae.run,
    "unet": unet.run,
    "judge": judge.run,
    "assemble": assemble.run,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train the small text-to-image model.")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--config", type=Path, default=FOLDER / "config.toml")
    parser.add_argument("--smoke", action="store_true", help="the tiny configuration of the tests")
    parser.add_argument("--work-dir", type=Path, required=True, help="data, checkpoints, models")
    parser.add_argument("--art", type=Path, help="folder of npm tarballs (default: WORK_DIR/npm)")
    parser.add_argument("--init-from", type=Path, help="a model folder to start from")
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage or all of them in order."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    chosen = FOLDER / "smoke.toml" if options.smoke else options.config
    work = Workspace(
        config=config.load(chosen),
        folder=options.work_dir,
        art_folder=options.art or options.work_dir / "npm",
        init_from=options.init_from,
        is_compiled=options.compile,
    )
    parallel.join()
    try:
        for stage in STAGES if options.stage == "all" else [options.stage]:
            STAGES[stage](work)
    finally:
        parallel.leave()


if __name__ == "__main__":
    main()
