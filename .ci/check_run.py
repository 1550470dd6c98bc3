"""Checks the counts of a local run that kept its work folder: python .ci/check_run.py OUTPUT_DIR NUM_RECORDS RATIO."""

import json
import sys
from pathlib import Path

STAGES = {"ingest", "split", "llava-attention", "mgm-attention", "bert-features", "cluster-scoring", "joint-selection"}


def stage_counts(output_dir: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """(read, written, dropped, rejected) of every task, by stage, from what the tasks told Kubeflow."""
    counts: dict[str, list[tuple[int, int, int, int]]] = {}
    for path in sorted(output_dir.glob("work-*/tasks/**/executor_output.json")):
        artifacts = json.loads(path.read_text())["artifacts"]
        metadata = next(iter(artifacts.values()))["artifacts"][0]["metadata"]
        read, written, dropped, rejected = (int(metadata[name]) for name in ("read", "written", "dropped", "rejected"))
        counts.setdefault(path.parent.name, []).append((read, written, dropped, rejected))
    return counts


def main(output_dir: Path, num_records: int, ratio: float) -> None:
    """Stop with a sentence at the first number that is wrong."""
    counts = stage_counts(output_dir)
    assert set(counts) == STAGES, f"stages that ran: {sorted(counts)}"
    for stage, tasks in counts.items():
        for read, written, dropped, rejected in tasks:
            assert read == written + dropped + rejected, f"{stage}: {read} read, but {written}+{dropped}+{rejected}"
        print(f"{stage}: read, written, dropped, rejected = {[sum(column) for column in zip(*tasks, strict=True)]}")
    ((read, usable, _, rejected),) = counts["ingest"]
    assert read == num_records, f"ingest read {read} of {num_records} records"
    rejects = (output_dir / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == rejected, f"{len(rejects)} lines in rejects.jsonl, {rejected} rejected"
    for stage in STAGES - {"ingest"}:
        total = sum(task[0] for task in counts[stage])
        assert total == usable, f"{stage} read {total} records, ingest wrote {usable}"
    selected = json.loads((output_dir / "selected.json").read_text())
    ((_, chosen, _, unusable_later),) = counts["joint-selection"]
    wanted = int((usable - unusable_later) * ratio)
    assert len(selected) == wanted, f"{len(selected)} selected, wanted {wanted}"
    assert chosen == wanted, f"joint-selection says that it selected {chosen}, wanted {wanted}"
    print(f"ok: {len(selected)} of {usable} records selected")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
