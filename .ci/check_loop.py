"""Checks what a local run of the loop left: python .ci/check_loop.py OUTPUT_DIR BENCHMARK,... ARM,..."""

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def check_estimates(found: dict[str, Any]) -> None:
    """Every number is one, and lies in its interval."""
    estimates = [one for arms in found["arms"].values() for one in arms.values()]
    estimates += [one for pair in found["differences"].values() for one in (pair["own"], pair["points"])]
    estimates += list(found["mean"].values())
    for one in estimates:
        assert all(math.isfinite(one[name]) for name in ("low", "value", "high")), f"no number: {one}"
        assert one["low"] <= one["value"] <= one["high"], f"outside its interval: {one}"


def check_comparison(found: dict[str, Any], benchmarks: list[str], arms: list[str]) -> None:
    """Every arm was measured by every benchmark, and what is said follows from that."""
    trainings = Counter(arm.partition(":")[0] for arm in arms)
    assert found["arms_asked"] == arms, f"arms: {found['arms_asked']}"
    assert found["seeds"] == trainings, f"trainings: {found['seeds']}"
    assert sorted(found["arms"]) == sorted(benchmarks), f"benchmarks: {sorted(found['arms'])}"
    for name, measured in found["arms"].items():
        assert set(measured) == {"untuned", *trainings}, f"{name}: models measured: {sorted(measured)}"
        gap = measured["selected"]["value"] - measured["random"]["value"]
        assert math.isclose(found["differences"][name]["own"]["value"], gap, abs_tol=1e-9), f"{name}: difference"
    check_estimates(found)
    outcomes = Counter(one["outcome"] for one in found["differences"].values())
    begins = f"Selecting beat random on {outcomes['beat']} of {len(benchmarks)}, lost on {outcomes['lost']}; mean "
    assert found["sentence"].startswith(begins), found["sentence"]


def check_costs(costs: dict[str, Any], selected: int) -> None:
    """What the work took is known, of every model; and each training learnt from as many records."""
    assert set(costs["selecting_device_hours"]) == {"llava", "mgm", "text"}, f"{costs['selecting_device_hours']}"
    hours = costs["training_device_hours"].values()
    assert min(hours) > 0, f"hours: {hours}"
    assert min(costs["selecting_device_hours"].values()) >= 0, f"{costs}"
    wanted = dict.fromkeys(("selected", "random"), selected)
    found = {arm: costs["records"][arm] for arm in wanted}
    assert found == wanted, f"records learnt from: {found}, wanted {wanted}"


def main(output_dir: Path, benchmarks: list[str], arms: list[str]) -> None:
    """Stop with a sentence at the first thing that is wrong."""
    found = json.loads((output_dir / "comparison.json").read_text())
    check_comparison(found, benchmarks, arms)
    selected, random = (json.loads((output_dir / f"{name}.json").read_text()) for name in ("selected", "random"))
    assert len(selected) == len(random) > 0, f"{len(selected)} selected, {len(random)} at random"
    check_costs(found["costs"], len(selected))
    log, page = (output_dir / "run.log").read_text(), (output_dir / "verdict.html").read_text()
    assert found["sentence"] in log, "the sentence is not in run.log"
    assert found["sentence"] in page, "the sentence is not in verdict.html"
    assert "Traceback" not in log, "a traceback in run.log"
    print(f"ok: {len(arms)} trainings on {len(selected)} records each. {found['sentence']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), sys.argv[3].split(","))
