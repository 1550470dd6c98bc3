"""A picture of the run form, drawn from the compiled pipeline as the UI of Kubeflow Pipelines lists its parameters."""

import hashlib
import io
import json
import shutil
from html import escape
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from free2ds_common.errors import StageError
from free2ds_common.launch.package import Package, Parameter
from free2ds_common.storage import atomic_writer

# Of the text in the picture's file that says which parameters it shows.
DIGEST = "free2ds-run-form"
# What a Chromium takes that runs anywhere and asks nobody anything.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# As the form calls them.
_TYPES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "double",
    bool: "boolean",
    dict: "dict",
    list: "list",
}
_WIDTH = 1000
_STYLE = """
body { margin: 0; padding: 20px 24px; box-sizing: border-box; font: 14px/1.3 sans-serif; color: #202124;
  background: #fff; }
h1 { margin: 0 0 2px; font-size: 17px; font-weight: 500; }
p { margin: 0 0 14px; color: #5f6368; font-size: 13px; }
main { columns: 2; column-gap: 24px; }
label { display: block; position: relative; break-inside: avoid; margin: 0 0 13px; padding-top: 7px; }
label span { position: absolute; top: 0; left: 9px; padding: 0 4px; background: #fff; color: #5f6368; font-size: 12px; }
label div { border: 1px solid #bdc1c6; border-radius: 4px; padding: 9px 12px; min-height: 18px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
label pre { margin: 0; font: 12px/1.4 monospace; white-space: pre-wrap; }
label.required div { border-color: #c5221f; }
label.required span, em { color: #c5221f; font-style: normal; }
em { font-size: 12px; }
"""


def form_digest(package: Package) -> str:
    """Of all that the picture shows."""
    return hashlib.sha256(form_html(package).encode()).hexdigest()


def shown_digest(path: Path) -> str:
    """The digest that a picture was drawn for; empty where it has none, or there is no picture."""
    if not path.exists():
        return ""
    with Image.open(path) as picture:
        return str(picture.info.get(DIGEST, ""))


def form_html(package: Package) -> str:
    """The form as a page of its own."""
    info = package.spec["pipelineInfo"]
    fields = "\n".join(_field(name, parameter) for name, parameter in sorted(package.parameters.items()))
    return (
        f"<!doctype html><meta charset=utf-8><style>{_STYLE}</style><h1>Run parameters of {escape(info['name'])}</h1>"
        f"<p>{escape(info['description'])}</p><main>\n{fields}\n</main>"
    )


def draw_form(package: Package, output: Path) -> None:
    """Draw the form with Chromium, unless the picture shows it already.

    Args:
        package: The pipeline.
        output: PNG file to write; its text `DIGEST` says what it shows.

    Raises:
        StageError: There is no Chromium, or no package to drive it with.
    """
    digest = form_digest(package)
    if shown_digest(output) == digest:
        return
    executable = find_chromium()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise StageError("--picture: needs the package playwright. Install it with free2ds[dev].") from None
    if executable is None:
        raise StageError("--picture: no Chromium on this machine. Install the package chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        page = browser.new_page(viewport={"width": _WIDTH, "height": 100}, color_scheme="light")
        page.set_content(form_html(package))
        drawn = page.screenshot(full_page=True)
        browser.close()
    text = PngInfo()
    text.add_text(DIGEST, digest)
    # Few colours: a tenth of the size.
    picture = Image.open(io.BytesIO(drawn)).convert("RGB").quantize(64)
    with atomic_writer(str(output), "wb") as handle:
        picture.save(handle, "PNG", pnginfo=text, optimize=True)


def find_chromium() -> str | None:
    """The executable of a Chromium; None where there is none."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next((path for path in found if path), None)


def _field(name: str, parameter: Parameter) -> str:
    label = f"<span>{escape(name)} - {_TYPES[parameter.kind]}</span>"
    if parameter.required:
        return f"<label class=required>{label}<div></div><em>Missing parameter.</em></label>"
    if parameter.kind in (dict, list):
        return f"<label>{label}<div><pre>{escape(json.dumps(parameter.default, indent=2))}</pre></div></label>"
    # JavaScript writes 1.0 as 1.
    text = f"{parameter.default:g}" if parameter.kind is float else str(parameter.default)
    return f"<label>{label}<div>{escape(text)}</div></label>"
