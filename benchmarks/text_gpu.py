"""`bert_features` on a GPU: BERT-base with random weights over the messages of a data set.

    python -m benchmarks.text_gpu --dataset FILE --tokenizer FOLDER [--batch-tokens N ...]

Needs a CUDA device. No bounds: cards differ. The floor counts matrix products alone.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from benchmarks.text_data import read_messages, sample_of, write_records
from components.bert_features.config import BertFeaturesConfig
from components.bert_features.stage import run


def random_bert(folder: Path, tokenizer: Path) -> Path:
    """BERT-base with random weights and a tokenizer's files."""
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx", "1_*"))
    torch.manual_seed(0)
    BertModel(BertConfig()).save_pretrained(folder)
    return folder


def main() -> int:
    """One line per number of tokens in a pass, after a small run that warms up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder with BERT's tokenizer files")
    parser.add_argument("--batch-tokens", type=int, nargs="+", default=[BertFeaturesConfig.batch_tokens])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        model = random_bert(Path(place) / "model", options.tokenizer)
        messages = read_messages(options.dataset)
        some = write_records(Path(place) / "some", sample_of(messages, 2000))
        records = write_records(Path(place) / "records", messages)
        for number, (source, tokens) in enumerate([(some, 16_384), *((records, n) for n in options.batch_tokens)]):
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            result = run(
                BertFeaturesConfig(
                    records=source,
                    model=str(model),
                    batch_tokens=tokens,
                    require_gpu=True,
                    features=f"{place}/features{number}",
                )
            )
            seconds = time.perf_counter() - start
            line = {
                "card": torch.cuda.get_device_name(),
                "batch_tokens": tokens,
                "seconds": round(seconds, 2),
                "distinct_messages_per_s": round(result.metrics["distinct_messages"] / seconds),
                "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            }
            print(json.dumps(line | dict(result.metrics)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
