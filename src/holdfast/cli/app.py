"""The command `holdfast`, its global options, and the list of its commands."""

from __future__ import annotations

import click

from holdfast.cli import care, collecting, compacting, config, dev, finding, layer, reading, storing
from holdfast.cli.base import SECTIONS, Command, global_options

HELP = """Keep bytes under their hash, each distinct piece once, and never give back an unverified one.

\b
  holdfast init ./store
  holdfast --store ./store put -r photos/
  holdfast --store ./store ls

The store is --store, else HOLDFAST_STORE, else the configuration's, else the platform's data directory.
A REF is an artifact's id, `blake3:` and a hash, the beginning of either, or `tag:NAME`.
"""
EPILOG = """\b
Exit codes: 0 done, 1 anything unexpected, 2 invalid input, 3 not found, 4 conflict, 5 damaged data,
6 not a store or a newer one's, 7 disk or place unavailable, 8 protocol, 130 interrupted, 141 pipe closed.
"""


class Root(click.Group):
    """A group that lists its commands by what they are for."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(len(name) for name in self.commands)
        for title, names in SECTIONS.items():
            with formatter.section(title):
                limit = formatter.width - width - 6
                rows = [
                    (name.ljust(width), self.commands[name].get_short_help_str(limit))
                    for name in names
                    if name in self.commands
                ]
                formatter.write_dl(rows)


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import holdfast

        click.echo(f"holdfast {holdfast.__version__}")
        ctx.exit()


cli = Root(
    "holdfast",
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    params=[
        *global_options(hidden=False),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version.",
        ),
    ],
)
for module in (storing, reading, finding, layer, care, collecting, compacting, config, dev):
    for command in module.COMMANDS:
        cli.add_command(command)

assert all(isinstance(command, (Command, click.Group)) for command in cli.commands.values())
