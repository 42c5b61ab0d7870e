"""Build docs/configuration.md, the reference of the config file: `python configs/reference.py`.

Keys, types, bounds and defaults are read from the sections in service/config, and the meaning of each key from the
comment above it in edged.yaml. Run this file after a change of either.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edged.spec import DEFAULT_RECIPE, recipe
from service.config.fields import kind_of
from service.config.load import Config
from service.config.quantization import QuantizationConfig
from service.units import format_bytes

HERE = Path(__file__).parent
ANNOTATED = HERE / "edged.yaml"
PAGE = HERE.parent / "docs" / "configuration.md"

INTRODUCTION = """\
<!-- Built by configs/reference.py from the schema and from configs/edged.yaml; run it after a change of either. -->

# Configuration

edged reads one YAML file: `--config FILE`, else `$EDGED_CONFIG`, else /etc/edged/edged.yaml.
[`configs/edged.yaml`](../configs/edged.yaml) is a file with every key and its default, to copy from.

- Only `models[].name` and `models[].calibration.dir` have no default. Every other key can be left out.
- Relative paths are relative to the folder of the config file.
- A size is a number of bytes, or is written like 800MiB, 2GiB or 500MB.
- `edged check-config --config FILE` lists every mistake with its line, all at once, and exits with code 78.
- `systemctl reload edged` (SIGHUP) applies a changed file. `state_dir`, `serve.host`, `serve.port`, `serve.grpc_port`,
  `serve.socket` and `serve.max_connections` need a restart, and over gRPC so do `serve.max_body_bytes` and
  `serve.max_arriving_bytes`; the log names those that were changed. A file with mistakes is not applied: the
  daemon keeps the settings that it has, and says so in its log and in the metric `edged_config_reload_success`.

The shortest file that works:

```yaml
models:
  - name: classifier
    calibration: {dir: /srv/calibration/classifier}
```
"""


class Key(NamedTuple):
    """A key of the config file.

    Attributes:
        name: Its name within its section.
        kind: Values that it accepts.
        default: Its default as it is written in a file; empty if there is none.
        section: Section that it holds, or None for a value.
    """

    name: str
    kind: str
    default: str
    section: type | None


def keys_of(section: type) -> Iterator[Key]:
    """Yield the keys of a section in the order of their declaration."""
    for field in dataclasses.fields(section):
        kind, inner = kind_of(field.metadata["check"])
        if field.default is dataclasses.MISSING:
            default = "required"
        elif section is QuantizationConfig and field.default is None:
            default = of_recipe(field.name)
        else:
            default = written(field.default, kind)
        yield Key(field.name, kind, default, inner)


def of_recipe(name: str) -> str:
    """Return the default of a quantization setting: that of the recipe, with the value of the usual one."""
    value = recipe(DEFAULT_RECIPE).to_dict()[name]
    return "" if value is None else written(value, "")


def written(value: Any, kind: str) -> str:
    """Return a default as it is written in a config file; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if kind == "size":
        return f"`{format_bytes(value).replace(' ', '').replace('.0', '')}`"
    return f"`{value}`"


def comments(text: str) -> Mapping[str, str]:
    """Return the comment above each key of the annotated config, by the key's path such as models[].gates.max_drop.

    A key that is commented out has its place in the file, too. A key right below another one, without a comment, has
    none here.
    """
    found: dict[str, str] = {}
    path: list[tuple[int, str]] = []  # indentation and name of the keys around the line
    above: list[str] = []
    names = set(all_names(Config))
    for line in text.splitlines():
        key = re.match(r"^( *)(- )?(# )?([a-z_0-9]+):(?: |$)", line)
        if key and (not key[3] or (key[4] in names and not re.match(r"^ *# [a-z_]+: [a-z]+ [a-z]+ ", line))):
            indent = len(key[1]) + len(key[2] or "")
            while path and path[-1][0] >= indent:
                path.pop()
            around = [name for _, name in path]
            full = ".".join([*around, key[4]])
            found[full] = " ".join(above)
            path.append((indent, key[4] + ("[]" if key[4] == "models" else "")))
            above = []
        elif comment := re.match(r"^ *# ?(.*)$", line):
            above.append(comment[1])
        else:
            above = []
    return found


def all_names(section: type) -> Iterator[str]:
    """Yield the names of all keys of a section and of those within it."""
    for key in keys_of(section):
        yield key.name
        if key.section is not None:
            yield from all_names(key.section)


def text() -> str:
    """Return the page."""
    meanings = comments(ANNOTATED.read_text())
    return "\n".join([INTRODUCTION, *section_text("", Config, meanings)])


def section_text(path: str, section: type, meanings: Mapping[str, str]) -> Iterator[str]:
    """Yield the heading, the comment and the table of a section, then those of the sections within it."""
    prefix = f"{path}." if path else ""
    yield f"## {f'`{path}`' if path else 'Top level'}\n"
    if meanings.get(path.removesuffix("[]")):
        yield f"{escaped(meanings[path.removesuffix('[]')])}\n"
    values = [key for key in keys_of(section) if key.section is None]
    inner = [key for key in keys_of(section) if key.section is not None]
    if values:
        yield "| key | values | default | meaning |\n|---|---|---|---|"
        before = ""
        for key in values:
            meaning = escaped(meanings[f"{prefix}{key.name}"]) or (before and f"See `{before}`.")
            if not meaning:
                raise SystemExit(f"{prefix}{key.name} has no comment in {ANNOTATED}; write one above it")
            yield f"| `{key.name}` | {key.kind} | {key.default} | {meaning} |".replace("|  |", "| |")
            before = key.name
        yield ""
    if inner:
        links = [f"[`{key.name}`](#{anchor(prefix + key.name)})" for key in inner]
        yield f"Sections: {', '.join(links)}\n"
    for key in inner:
        assert key.section is not None  # noqa: S101 - for the type checker
        yield from section_text(
            f"{prefix}{key.name}{'[]' if key.kind.startswith('list') else ''}", key.section, meanings
        )


def escaped(comment: str) -> str:
    """Return a comment as Markdown, outside code."""
    return "".join(
        part if index % 2 else linked(part.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*"))
        for index, part in enumerate(re.split(r"(`[^`]*`)", comment))
    )


def linked(text: str) -> str:
    """Return a text with links in place of the names of pages."""
    return re.sub(r"docs/(\w+)\.md", r"[\1](\1.md)", text)


def anchor(path: str) -> str:
    """Return the anchor of a section's heading."""
    return re.sub(r"[^\w-]", "", path)


if __name__ == "__main__":
    PAGE.write_text(text())
