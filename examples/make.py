"""Draws the example data and writes the tiny models: python -m examples.make --output-dir demo."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.scenes import make_dataset

# Raised when the same settings give other bytes than before.
VERSION = 1
MARKER = ".finished.json"


def make(folder: Path, num_records: int, seed: int) -> None:
    """Write `dataset.json`, `images/` and `models/`, or leave a finished set of the same settings alone.

    Args:
        folder: Where to write; what an earlier set left in these three places is removed.
        num_records: Records in the data set.
        seed: Of scenes and weights.
    """
    settings = {"num_records": num_records, "seed": seed, "version": VERSION}
    marker = folder / MARKER
    if marker.is_file() and json.loads(marker.read_text()) == settings:
        print(f"example data: {folder} is there already")
        return
    marker.unlink(missing_ok=True)
    for stale in ("images", "models"):
        shutil.rmtree(folder / stale, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    records = make_dataset(folder, num_records, seed)
    pictures = len({record["image"] for record in records if "image" in record})
    print(f"example data: {len(records)} records about {pictures} drawn pictures in {folder}", flush=True)
    # Here, not at the top: --help shall not wait for torch.
    from examples.models import train_tokenizer, write_bert, write_llava, write_mgm

    texts = [turn["value"] for record in records for turn in record["conversations"]]
    tokenizer = train_tokenizer(texts)
    write_llava(folder / "models/llava", tokenizer, seed)
    write_mgm(folder / "models/mgm", tokenizer, seed + 1)
    write_bert(folder / "models/bert", texts, seed + 2)
    marker.write_text(json.dumps(settings))
    print(f"example models: LLaVA, MGM and BERT, tiny and with random weights, in {folder}/models")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.make", description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--num-records", type=int, default=240, help="records to draw")
    parser.add_argument("--seed", type=int, default=7, help="of scenes and weights")
    options = parser.parse_args(argv)
    if options.num_records < 1:
        parser.error("--num-records: wanted at least 1")
    make(options.output_dir, options.num_records, options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
