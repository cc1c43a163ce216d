"""`config show`, `config check`, `completion`: the commands that explain."""

from __future__ import annotations

from typing import Any

import click

from holdfast.cli.base import Command, command
from holdfast.cli.output import State, escape, out


@click.group("config", context_settings={"help_option_names": ["-h", "--help"]})
def config_group() -> None:
    """Show or check the configuration."""


@command("show", example="holdfast config show > holdfast.toml")
def show(state: State) -> None:
    """Show every setting that counts, as TOML. Secrets are not shown."""
    from holdfast.config import Config

    config = state.config()
    document, defaults = _plain(config), _plain(Config())

    def human() -> None:
        out(f"# {config.file}" if config.file else "# no holdfast.toml: defaults and variables")
        for section, values in document.items():
            out(f"\n[{section}]")
            for key, value in values.items():
                if value is None:
                    out(f"# {key} is not set")
                else:
                    changed = "" if value == defaults[section].get(key, value) else "  # set"
                    out(f"{key} = {_toml(value)}{changed}")

    state.answer({"file": str(config.file) if config.file else None, **document}, human)


@command("check", example="holdfast --config ./holdfast.toml config check")
def check(state: State) -> None:
    """Check the configuration, and that its secrets can be read."""
    from holdfast.config import SECRET_KEYS
    from holdfast.config.places import place_of

    config = state.config()
    for key in SECRET_KEYS:
        if (secret := getattr(config.blob_store, key)) is not None:
            secret.reveal()
    location = state.locate(config)
    place_of(location, config)
    document = {"ok": True, "file": str(config.file) if config.file else None, "location": location}
    where = escape(str(config.file)) if config.file else "no file, defaults and variables"
    state.answer(document, lambda: out(f"in order ({where}); the store is {escape(location)}"))


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
