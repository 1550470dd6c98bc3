"""Three layers, one direction: what each file of a stage may import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
STAGES = sorted(path.parent for path in (REPOSITORY / "components").glob("*/__init__.py"))
# The code that the GPU stages share, imported by them alone, and what starts the pipeline, imported by it alone.
HEAVY = ("free2ds_common.inference", "free2ds_common.launch")


def packages(nodes) -> set[str]:
    """Top-level packages that import statements name."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def imported(path: Path, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return packages(tree.body if module_level else ast.walk(tree))


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_the_stages_are_there():
    assert [stage.name for stage in STAGES] == [
        "bert_features",
        "cluster_scoring",
        "evaluate",
        "finetune",
        "ingest",
        "joint_selection",
        "llava_attention",
        "mgm_attention",
        "resolve",
        "reuse",
        "split",
        "verdict",
    ]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
class TestStage:
    def test_has_its_files(self, stage):
        names = {"__init__.py", "__main__.py", "component.py", "config.py", "stage.py", "README.md"}
        assert names <= {path.name for path in stage.iterdir()}
        assert (stage / "__init__.py").read_text() == ""

    def test_component_imports_only_kfp_and_the_standard_library(self, stage):
        assert imported(stage / "component.py", module_level=True) <= {"kfp", *sys.stdlib_module_names}

    def test_command_line_knows_no_kfp_and_waits_with_heavy_imports(self, stage):
        assert "kfp" not in imported(stage / "__main__.py")
        light = {"components", "free2ds_common", *sys.stdlib_module_names}
        assert imported(stage / "__main__.py", module_level=True) <= light

    def test_work_knows_neither_kfp_nor_argparse(self, stage):
        for path in stage.rglob("*.py"):
            if path.name not in ("component.py", "__main__.py"):
                assert not imported(path) & {"kfp", "argparse"}, path

    def test_settings_know_only_the_standard_library_and_the_common_settings(self, stage):
        tree = ast.parse((stage / "config.py").read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        ours = {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}
        # Resolve checks the settings of all others.
        others = {f"components.{other.name}.config" for other in STAGES} | {"components.resolve.wiring"}
        allowed = {"free2ds_common.settings", "free2ds_common.errors"}
        assert ours <= (allowed | others if stage.name == "resolve" else allowed)


def test_the_commands_never_import_the_pipeline():
    for path in (REPOSITORY / "free2ds_common/launch").glob("*.py"):
        assert "pipeline" not in imported(path), path


def test_stages_pull_in_no_kfp_by_any_way():
    modules = [f"components.{stage.name}.{name}" for stage in STAGES for name in ("stage", "__main__")]
    assert run_python(f"import sys, {', '.join(modules)}; print('kfp' in sys.modules)") == "False"


def test_common_code_is_light():
    modules = [
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((REPOSITORY / "free2ds_common").rglob("*.py"))
    ]
    light = ", ".join(name for name in modules if not name.startswith(HEAVY))
    code = f"import sys, {light}; print({{'torch', 'faiss', 'kfp', 'transformers'}} & set(sys.modules))"
    assert run_python(code) == "set()"


def test_the_pipeline_compiles_without_the_stages_packages():
    heavy = "{'torch', 'faiss', 'transformers', 'pyarrow', 'numpy'}"
    assert run_python(f"import sys, pipeline; print({heavy} & set(sys.modules))") == "set()"
