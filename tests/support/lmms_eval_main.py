"""Stands in for `python -m lmms_eval` 0.7.3: copied as its __main__, it reads and writes the same without a model.

What it says, and how it fails, is in `behaviour.json` beside it; how it was called it leaves in `calls.jsonl` there.
The names, lines and layout of its output were recorded from a real run.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

HERE = Path(__file__).parent
STAMP = "20261128_032642"
COLOUR, PLAIN = "\x1b[31m\x1b[1m", "\x1b[0m"


def log_error(where, message):
    print(
        f"2026-11-27 19:26:43{PLAIN} | {COLOUR}ERROR   {PLAIN} | {where} - {COLOUR}{message}{PLAIN}",
        file=sys.stderr,
        flush=True,
    )


def answer(behaviour, question):
    """An answer as the model's class gives it: empty where generating raised."""
    if question in behaviour.get("raising", []):
        message = "Error Image features and image tokens do not match, tokens: 0, features: 55296 in generating"
        log_error("lmms_eval.models.simple.llava_hf:generate_until:376", message)
        return ""
    return behaviour["answers"][question]


def main():
    parser = argparse.ArgumentParser()
    for name in ("model", "model_args", "tasks", "include_path", "batch_size", "output_path"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--force_simple", action="store_true")
    parser.add_argument("--log_samples", action="store_true")
    given = vars(parser.parse_args())
    behaviour = json.loads((HERE / "behaviour.json").read_text())
    offline = {name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")}
    tasks = {path.stem: json.loads(path.read_text()) for path in sorted(Path(given["include_path"]).glob("*.yaml"))}
    asked = {
        name: pq.read_table(f"{task['dataset_path']}/test-00000-of-00001.parquet").to_pylist()
        for name, task in tasks.items()
    }
    with (HERE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps({**given, "offline": offline, "tasks_written": tasks, "asked": asked}) + "\n")
    print("Loading weights: 100%|##########| 89/89 [00:00<00:00, 21069.77it/s]", file=sys.stderr)
    out = Path(given["output_path"]) / "scratch__model"
    if "failing" in behaviour:
        message = (
            f"Error during evaluation: {behaviour['failing']}. Please set `--verbosity=DEBUG` to get more information."
        )
        log_error("lmms_eval.__main__:cli_evaluate:614", message)
        sys.exit(behaviour.get("code", 0))
    out.mkdir(parents=True)
    results = {}
    for name, rows in asked.items():
        samples = [
            {"doc_id": place, "target": row["answer"], "filtered_resps": answer(behaviour, row["question"])}
            for place, row in enumerate(rows)
        ]
        kept = samples[: behaviour.get("keeps", len(samples))]
        # Not in the questions' order, which nothing promises.
        lines = [json.dumps({**sample, "token_counts": [None]}) + "\n" for sample in reversed(kept)]
        (out / f"{STAMP}_samples_{name}.jsonl").write_text("".join(lines))
        results[name] = {
            "alias": name,
            "exact_match,none": 0.25,
            "exact_match_stderr,none": "N/A",
            "exact_match_stderr_clt,none": 0.0,
        }
    submissions = out.parent / "submissions"
    submissions.mkdir()
    (submissions / "mmbench_en_dev_static_results.json").write_text('{"overall_acc": 0.0}')
    (out / f"{STAMP}_results.json").write_text(json.dumps({"results": results}))
    sys.exit(behaviour.get("code", 0))


main()
