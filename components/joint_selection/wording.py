"""Long texts in little room, for the report and the sweep."""


def shortened(text: str, most: int) -> str:
    """The first `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def shortened_in_the_middle(text: str, most: int) -> str:
    """Beginning and end, `most` characters together: names that begin alike stay apart."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return text[: most - 1 - tail] + "…" + text[-tail:]


def markdown_cell(text: str, most: int) -> str:
    """Text for a cell of a Markdown table, `most` characters."""
    return shortened_in_the_middle(" ".join(text.split()), most).replace("|", "\\|")
