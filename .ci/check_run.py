"""Checks the counts of a local run that kept its work folder: python .ci/check_run.py OUTPUT_DIR NUM_RECORDS RATIO."""

import json
import re
import sys
from pathlib import Path

ATTENTION = {"llava-attention", "mgm-attention"}
STAGES = {"ingest", "reuse", "split", "bert-features", "cluster-scoring", "joint-selection", *ATTENTION}
COUNTS = ("read", "written", "dropped", "rejected")


def stage_counts(output_dir: Path) -> dict[str, list[tuple[int, int, int, int]]]:
    """(read, written, dropped, rejected) of every task, by stage, from what the tasks told Kubeflow.

    Attention artifacts carry no counts, since many of them come together: theirs are in the manifest.
    """
    counts: dict[str, list[tuple[int, int, int, int]]] = {}
    for path in sorted(output_dir.glob("work-*/tasks/**/executor_output.json")):
        # demand makes none.
        ports = json.loads(path.read_text()).get("artifacts", {})
        artifacts = [port["artifacts"][0] for port in ports.values()]
        if not artifacts:
            continue
        if path.parent.name in ATTENTION:
            (artifact,) = artifacts
            manifest = json.loads((Path(artifact["uri"]) / "_manifest.json").read_text())
            found = manifest["made_from"]["shard"]["rows"], sum(manifest["outcomes"].values()), 0, 0
        else:
            # The one that Compare runs shows holds a dozen numbers, and not these.
            metadata = next(artifact["metadata"] for artifact in artifacts if "read" in artifact["metadata"])
            read, written, dropped, rejected = (metadata[name] for name in COUNTS)
            found = int(read), int(written), int(dropped), int(rejected)
        # The second split of a graph is "split-2".
        counts.setdefault(re.sub(r"-\d+$", "", path.parent.name), []).append(found)
    return counts


def finished_rows(output_dir: Path) -> dict[str, int]:
    """Records whose outcome was known before any model was loaded, by model."""
    (told,) = output_dir.glob("work-*/tasks/**/reuse/executor_output.json")
    ports = json.loads(told.read_text())["artifacts"]
    return {name: int(ports[f"{name}_finished"]["artifacts"][0]["metadata"]["rows"]) for name in ("llava", "mgm")}


def main(output_dir: Path, num_records: int, ratio: float) -> None:
    """Stop with a sentence at the first number that is wrong."""
    counts = stage_counts(output_dir)
    # resolve reads no records.
    counts.pop("resolve", None)
    assert set(counts) == STAGES, f"stages that ran: {sorted(counts)}"
    for stage, tasks in counts.items():
        for read, written, dropped, rejected in tasks:
            assert read == written + dropped + rejected, f"{stage}: {read} read, but {written}+{dropped}+{rejected}"
        print(f"{stage}: read, written, dropped, rejected = {[sum(column) for column in zip(*tasks, strict=True)]}")
    ((read, usable, _, rejected),) = counts["ingest"]
    assert read == num_records, f"ingest read {read} of {num_records} records"
    rejects = (output_dir / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == rejected, f"{len(rejects)} lines in rejects.jsonl, {rejected} rejected"
    finished = finished_rows(output_dir)
    # What is left over for each model is divided, and scored.
    wanted_by_stage = {stage: usable for stage in STAGES - {"ingest"}}
    wanted_by_stage |= {f"{name}-attention": usable - rows for name, rows in finished.items()}
    wanted_by_stage["split"] = sum(usable - rows for rows in finished.values())
    for stage, wanted in wanted_by_stage.items():
        total = sum(task[0] for task in counts[stage])
        assert total == wanted, f"{stage} read {total} records, wanted {wanted} of ingest's {usable}"
    selected = json.loads((output_dir / "selected.json").read_text())
    ((_, chosen, _, unusable_later),) = counts["joint-selection"]
    wanted = int((usable - unusable_later) * ratio)
    assert len(selected) == wanted, f"{len(selected)} selected, wanted {wanted}"
    assert chosen == wanted, f"joint-selection says that it selected {chosen}, wanted {wanted}"
    print(f"ok: {len(selected)} of {usable} records selected")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
