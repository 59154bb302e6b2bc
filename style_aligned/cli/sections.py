"""Help in sections: what people need every day comes first, everything else under the heading of its group."""

import re
from typing import Any

from typer.core import TyperCommand, TyperOption

DAILY = "Options"
"""The first section."""


class SectionedCommand(TyperCommand):
    """A command whose help has a section for each `rich_help_panel`, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], DAILY: []}
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                if isinstance(parameter, TyperOption):
                    sections.setdefault(parameter.rich_help_panel or DAILY, []).append(record)
                else:  # its Python type is of no use to anybody
                    sections["Arguments"].append((re.sub(r" <[\w\[\]]+>$", "", record[0]), record[1]))
        for name, records in sections.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl(records)
