"""What explain prints."""

from collections.abc import Mapping

from transferkit.console import print_lines, print_styled, print_table
from transferkit.explain import ExplainedOption, Page


def topics_table(topics: Mapping[str, str]) -> None:
    """Print every topic with its title."""
    print_table("Topics", ("topic", "about"), list(topics.items()))
    print_lines(["", "read one: transferkit explain TOPIC (or the name of an option)"])


def page_text(page: Page) -> None:
    """Print a page: what, when, formula, families, options with their defaults, source, lab."""
    print_styled(page.title, "bold")
    parts = {"": page.what, "When": page.when, "Formula": page.formula}
    for heading, text in parts.items():
        if not text:
            continue
        print_lines([""])
        if heading:
            print_styled(heading, "bold")
        print_lines(text.splitlines())
    for table in page.tables:
        print_table(table.headings[0].capitalize(), table.headings, table.rows)
    if page.options:
        print_lines([""])
        print_styled("Options", "bold")
        for option in page.options:
            print_lines(option_lines(option))
    if page.source:
        print_lines([""])
        print_styled("Source", "bold")
        print_lines(page.source)
    if page.lab:
        print_lines(["", f"see it: transferkit lab {page.lab}"])


def option_lines(option: ExplainedOption) -> list[str]:
    """Return an option's flag and key, then its help with default and range."""
    facts = [f"default: {option.default}"] if option.default else []
    facts += [option.allowed] if option.allowed else []
    note = f" [{'; '.join(facts)}]" if facts else ""
    return [f"  {option.flag:<32} {option.key}", f"      {option.help}{note}"]
