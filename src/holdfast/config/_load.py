"""Read and check files and variables with pydantic-settings; imported only when there are any."""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, cast

from pydantic import ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from holdfast.config import (
    OPEN_SECRETS,
    PREFIX,
    REQUIRED_KEYS,
    SECRET_KEYS,
    STORE_KEYS,
    VARIABLES,
    BlobStore,
    Cache,
    Config,
    Gc,
    Limits,
    Log,
)
from holdfast.errors import InvalidConfig, PermissionDenied
from holdfast.secret import Secret

SECTIONS: Mapping[str, type] = {
    "blob_store": BlobStore,
    "log": Log,
    "limits": Limits,
    "gc": Gc,
    "cache": Cache,
}
_DELIMITER = "__"


class _Settings(BaseSettings):
    """The sections; the sources are given by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=_DELIMITER, extra="forbid", env_ignore_empty=True
    )

    blob_store: BlobStore = BlobStore()
    log: Log = Log()
    limits: Limits = Limits()
    gc: Gc = Gc()
    cache: Cache = Cache()


class _Environment(EnvSettingsSource):
    """Variables out of a given mapping rather than out of the process."""

    def __init__(self, settings: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = {name.lower(): value for name, value in environ.items() if _DELIMITER in name}
        super().__init__(settings)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name: value for name, value in self._environ.items() if value}


def load_settings(
    file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Mapping[str, Any]]
) -> Config:
    """Give the configuration of a file, variables and overrides, the later ones counting over the earlier."""
    _check_variables(environ)
    content = _read(file) if file is not None else {}
    counts = _without_replaced_secrets(content, environ)

    class Settings(_Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return (
                init_settings,
                _Environment(settings_cls, environ),
                InitSettingsSource(settings_cls, counts),
            )

    def origin(section: str, key: str = "") -> str:
        variable = f"{PREFIX}{section}{_DELIMITER}{key}".upper()
        if key in overrides.get(section, {}):
            return "argument"
        if any(name.upper().startswith(variable) for name in environ):
            return variable
        return str(file) if file is not None else "configuration"

    try:
        settings = Settings(**cast(Any, overrides))
    except ValidationError as error:
        problems = [_explain(problem, origin) for problem in error.errors(include_url=False)]
        raise InvalidConfig("\n".join(dict.fromkeys(problems)), problems=problems) from None
    except ValueError as error:  # pydantic-settings: a variable that is not the JSON it should be
        raise InvalidConfig(f"a {PREFIX}… variable cannot be read: {error}") from None

    store = _check_store(settings.blob_store, content, origin)
    _check_together(store, origin)
    _check_privacy(file, content)
    config = Config(store, settings.log, settings.limits, settings.gc, settings.cache, file)
    return _anchor(config, file, content) if file is not None else config


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{file}: not TOML: {error}", path=str(file)) from error
    except PermissionError as error:
        raise PermissionDenied(
            f"{file}: no permission to read it", path=str(file), errno=error.errno
        ) from error


def _without_replaced_secrets(content: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Leave out the secrets that variables replace: `{ env = … }` and `{ file = … }` must not be merged."""
    table = content.get("blob_store")
    if not isinstance(table, dict):
        return content
    set_by_variable = {
        name.removeprefix(PREFIX).lower().removeprefix(f"blob_store{_DELIMITER}").partition(_DELIMITER)[0]
        for name, value in environ.items()
        if name.startswith(f"{PREFIX}BLOB_STORE{_DELIMITER}") and value
    }
    replaced = set_by_variable.intersection(SECRET_KEYS)
    return {**content, "blob_store": {key: value for key, value in table.items() if key not in replaced}}


def _check_variables(environ: Mapping[str, str]) -> None:
    """Refuse what is nearly one of ours: a typo would be ignored in silence."""
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in VARIABLES:
            continue
        section, delimiter, key = name.removeprefix(PREFIX).lower().partition(_DELIMITER)
        if not delimiter and section in SECTIONS:
            raise InvalidConfig(
                f"{name} names a whole section: set its keys, such as"
                f" {PREFIX}{section.upper()}{_DELIMITER}{_keys(SECTIONS[section])[0].upper()}",
                env=name,
            )
        if not delimiter:
            settings = [
                f"{PREFIX}{section}{_DELIMITER}{key}".upper()
                for section in SECTIONS
                for key in _keys(SECTIONS[section])
            ]
            near = difflib.get_close_matches(name, [*VARIABLES, *settings], 1, 0.85)
            if near:
                raise InvalidConfig(f"unknown variable {name}: did you mean {near[0]}?", env=name)
        elif section not in SECTIONS:
            raise InvalidConfig(f"unknown variable {name}: {_suggest(section, SECTIONS)}", env=name)
        else:
            first, nested, where = key.partition(_DELIMITER)
            if first not in _keys(SECTIONS[section]):
                raise InvalidConfig(
                    f"unknown variable {name}: {_suggest(first, _keys(SECTIONS[section]))}", env=name
                )
            if nested and (first not in SECRET_KEYS or where not in ("env", "file")):
                known = ["env", "file"] if first in SECRET_KEYS else []
                say = _suggest(where, known) if known else f"{first} has no parts"
                raise InvalidConfig(f"unknown variable {name}: {say}", env=name)
            if nested and environ.get(name.rpartition(_DELIMITER)[0]):
                raise InvalidConfig(
                    f"{name} and {name.rpartition(_DELIMITER)[0]} are both set: unset one", env=name
                )


def _keys(section: type) -> list[str]:
    return [field.name for field in fields(section)]


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, 1, 0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _explain(problem: Any, origin: Callable[[str, str], str]) -> str:
    """Turn one of pydantic's findings into a line: where, what, and what is allowed."""
    section, *rest = (str(part) for part in problem["loc"])
    key = rest[0] if rest else ""
    where = origin(section, key)
    kind, context = problem["type"], problem.get("ctx") or {}
    if not rest:
        if kind == "extra_forbidden":
            return f"{where}: unknown section [{section}]: {_suggest(section, SECTIONS)}"
        return f"{where}: [{section}] must be a table"
    name = f"[{section}] {key}"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: unknown key {key} in [{section}]: {_suggest(key, _keys(SECTIONS[section]))}"
    if kind == "literal_error":
        said = f"must be {context['expected']}"
    elif kind.startswith("bool"):
        said = "must be true or false"
    elif kind.startswith("int"):
        said = "must be a whole number"
    elif kind.startswith("float"):
        said = "must be a number"
    elif kind.startswith("string"):
        said = "must be text"
    else:
        said = problem["msg"]
    if kind == "secret":
        return f"{where}: {name} {said}"
    return f"{where}: {name} {said}, got {problem['input']!r:.80}"


def _check_store(
    store: BlobStore, content: Mapping[str, Any], origin: Callable[[str, str], str]
) -> BlobStore:
    """Refuse keys that another type has, and miss those that this type needs."""
    allowed = STORE_KEYS[store.type]
    default = BlobStore()
    for key in _keys(BlobStore):
        if key != "type" and key not in allowed and getattr(store, key) != getattr(default, key):
            types = ", ".join(kind for kind, keys in STORE_KEYS.items() if key in keys)
            raise InvalidConfig(
                f'{origin("blob_store", key)}: [blob_store] {key} does not go with type = "{store.type}" '
                f"(it goes with {types})",
                key=key,
            )
    for key in REQUIRED_KEYS.get(store.type, ()):
        if not getattr(store, key):
            raise InvalidConfig(
                f'{origin("blob_store", "type")}: [blob_store] type = "{store.type}" needs {key}', key=key
            )
    return store


def _check_together(store: BlobStore, origin: Callable[[str, str], str]) -> None:
    """Refuse keys that say two things, or half of one."""
    given = [key for key in _keys(BlobStore) if getattr(store, key) is not None]
    for key, other in (
        ("access_key", "secret_key"),
        ("secret_key", "access_key"),
        ("session_token", "secret_key"),
    ):
        if key in given and other not in given:
            raise InvalidConfig(f"{origin('blob_store', key)}: [blob_store] {key} needs {other}", key=key)
    for key, other in (("profile", "access_key"), ("sas_token", "account_key")):
        if key in given and other in given:
            raise InvalidConfig(
                f"{origin('blob_store', key)}: [blob_store] {key} and {other} cannot both be given", key=key
            )


def _check_privacy(file: Path | None, content: Mapping[str, Any]) -> None:
    """A secret may stand in a file only while nobody else can read that file."""
    table = content.get("blob_store", {})
    plain = [key for key in SECRET_KEYS if key not in OPEN_SECRETS and isinstance(table.get(key), str)]
    if file is None or not plain:
        return
    if stat.S_IMODE(os.stat(file).st_mode) & 0o077:
        raise InvalidConfig(
            f"{file}: [blob_store] {plain[0]} stands in a file that others can read: "
            f'chmod 600 it, or use {{ env = "…" }} or {{ file = "…" }}',
            path=str(file),
        )


_PATHS: Final = {"blob_store": ("path", "db_path", "ca_file", "service_account"), "cache": ("path",)}


def _anchor(config: Config, file: Path, content: Mapping[str, Any]) -> Config:
    """Read paths that stand in a file from that file's directory, and `~` as the user's."""
    directory = file.absolute().parent
    changed: dict[str, Any] = {}
    for section, keys in _PATHS.items():
        table, values = content.get(section, {}), getattr(config, section)
        changes: dict[str, Any] = {}
        for key in keys:
            value = getattr(values, key)
            if value is not None and value == table.get(key) and value != ":memory:":
                changes[key] = str(directory / Path(value).expanduser())
        if section == "blob_store":
            for key in SECRET_KEYS:
                said = table.get(key)
                if (
                    isinstance(said, dict)
                    and list(said) == ["file"]
                    and getattr(values, key) == Secret(**said)
                ):
                    changes[key] = Secret(file=str(directory / Path(said["file"]).expanduser()))
        changed[section] = replace(values, **changes)
    return replace(config, **changed)
