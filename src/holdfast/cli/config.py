"""`config show`, `config check`, `completion`: the commands that explain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from holdfast.cli.base import Command, command
from holdfast.cli.output import State, escape, fields, out, plural

if TYPE_CHECKING:
    from holdfast.backend.objects.check import BucketReport
    from holdfast.backend.objects.place import BucketPlace


@click.group("config", context_settings={"help_option_names": ["-h", "--help"]})
def config_group() -> None:
    """Show or check the configuration."""


@command("show", example="holdfast config show > holdfast.toml")
def show(state: State) -> None:
    """Show every setting that counts, as TOML. Secrets are not shown."""
    from holdfast.config import Config
    from holdfast.secret import MASK

    config = state.config()
    document, defaults = _plain(config), _plain(Config())

    def human() -> None:
        out(f"# {config.file}" if config.file else "# no holdfast.toml: defaults and variables")
        for section, values in document.items():
            out(f"\n[{section}]")
            for key, value in values.items():
                if value is None:
                    out(f"# {key} is not set")
                elif value == MASK:  # stars would become the secret of whoever uses this as a file
                    out(f"# {key} is set, and not shown")
                else:
                    changed = "" if value == defaults[section].get(key, value) else "  # set"
                    out(f"{key} = {_toml(value)}{changed}")

    state.answer({"file": str(config.file) if config.file else None, **document}, human)


@command("check", example="holdfast --config ./holdfast.toml config check")
@click.option("--offline", is_flag=True, help="Read settings and secrets alone; ask no object store.")
def check(state: State, offline: bool) -> int:
    """Check the configuration, that its secrets can be read, and what works of an object store.

    A bucket is tried with keys of its own below `check/`, about 40 requests and 8 MiB, which are removed again. The
    exit code is that of the first error.
    """
    from holdfast.backend.objects.check import OK
    from holdfast.config import SECRET_KEYS
    from holdfast.config.places import catalog_of, place_of

    config = state.config()
    for key in SECRET_KEYS:
        if (secret := getattr(config.blob_store, key)) is not None:
            secret.reveal()
    location = state.locate(config)
    document: dict[str, Any] = {"ok": True, "file": str(config.file) if config.file else None}
    document["location"] = location
    where = escape(str(config.file)) if config.file else "no file, defaults and variables"
    place = place_of(location, config)
    if place is None:
        state.answer(document, lambda: out(f"in order ({where}); the store is {escape(location)}"))
        return 0
    document |= {"location": place.location, "endpoint": place.endpoint or None}
    document["catalog"] = catalog_of(place, config)

    def heading() -> None:
        fields(
            {
                "configuration": where,
                "store": escape(place.location),
                "endpoint": escape(place.endpoint),
                "catalog": escape(document["catalog"]),
            }
        )

    if offline:
        place.store_arguments()
        state.answer(document, heading)
        return 0
    report = _try_bucket(place)
    document |= report.to_dict()

    def human() -> None:
        heading()
        out("")
        width = max(len(finding.name) for finding in report.findings)
        for finding in report.findings:
            took = f"{finding.milliseconds:.0f} ms" if finding.milliseconds else ""
            out(f"{finding.name:<{width}}  {finding.state:<9}  {took:>9}  {escape(finding.said)}".rstrip())
        asked = sum(count for name, count in report.requests.items() if not name.startswith("bytes"))
        if report.ok and all(finding.state == OK for finding in report.findings):
            said = "all of it works"
        elif report.ok:
            said = "it works as long as one machine alone writes"
        else:
            said = "not all of it works"
        out(f"\n{plural(asked, 'request')}; {said}")

    state.answer(document, human)
    return report.code


PATIENCE_SECONDS: Final = 10
"""How long a check tries again what fails: whoever checks waits for the answer."""


def _try_bucket(place: BucketPlace) -> BucketReport:
    from dataclasses import replace

    from holdfast.backend.objects.check import check_bucket
    from holdfast.backend.objects.opening import open_bucket

    patience = min(place.retry_seconds, PATIENCE_SECONDS)
    # a limit that is reached midway would leave behind what was made
    bucket = open_bucket(replace(place, retry_seconds=patience, max_requests=None))
    try:
        return check_bucket(bucket, single_writer=place.single_writer)
    finally:
        bucket.close()


def _plain(config: Any) -> dict[str, dict[str, Any]]:
    from dataclasses import fields

    from holdfast.config import STORE_KEYS, Secret

    def value(item: Any) -> Any:
        return item.shown() if isinstance(item, Secret) else item

    other_types = set().union(*STORE_KEYS.values()) - set(STORE_KEYS[config.blob_store.type])
    return {
        section.name: {
            key.name: value(getattr(getattr(config, section.name), key.name))
            for key in fields(getattr(config, section.name))
            if section.name != "blob_store" or key.name not in other_types
        }
        for section in fields(config)
        if section.name != "file"
    }


def _toml(value: Any) -> str:
    import json

    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


@command(
    "completion",
    example='eval "$(holdfast completion bash)"     # in ~/.bashrc',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(state: State, shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    from holdfast.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None
    complete = kind(cli, {}, "holdfast", "_HOLDFAST_COMPLETE")
    # `source()` would start a shell to ask for its version; the script is what was asked for
    out((complete.source_template % complete.source_vars()).rstrip("\n"))


config_group.add_command(show)
config_group.add_command(check)
COMMANDS: tuple[click.Command, ...] = (config_group, completion)
assert isinstance(show, Command)
