"""JSON schemas of operators' resources, from the CRD files that the operators publish.

    python -m tools.crd_schemas SOURCE FILE...

SOURCE says which release the files are of; each file becomes tests/unit/deploy/schemas/KIND.json.
Pods and other resources within a resource are left to Kubernetes' own schemas, and of Prometheus'
many kinds of discovery HTTP alone is kept: a CRD has a megabyte of them. Descriptions are left out.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[1] / "tests" / "unit" / "deploy" / "schemas"
_KEPT = (
    *("type", "enum", "format", "required", "minimum", "maximum", "minLength"),
    *("minItems", "maxItems", "maxLength"),
)
# Resources within a resource.
_OTHERS = frozenset(
    {
        "template",
        "submitterPodTemplate",
        "rayClusterSpec",
        "headService",
        "serveService",
        "metadata",
    }
)
_ANYTHING: dict[str, Any] = {}


def schema_of(crd: dict[str, Any], source: str) -> dict[str, Any]:
    """Returns the schema of the version of a CRD in which its resources are stored."""
    (version,) = [each for each in crd["spec"]["versions"] if each["storage"]]
    group, kind = crd["spec"]["group"], crd["spec"]["names"]["kind"]
    found = _pruned(version["schema"]["openAPIV3Schema"])
    found["properties"] |= {
        "apiVersion": {"const": f"{group}/{version['name']}"},
        "kind": {"const": kind},
    }
    found["required"] = sorted({*found.get("required", ()), "apiVersion", "kind", "metadata"})
    comment = f"Made by tools/crd_schemas.py from {source} (Apache License 2.0)."
    return {"$comment": comment, **found}


def _pruned(schema: dict[str, Any]) -> dict[str, Any]:
    """What decides whether a value is valid; unknown fields are not."""
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    found = {key: schema[key] for key in _KEPT if key in schema}
    if _is_known(schema.get("pattern", "")):
        found["pattern"] = schema["pattern"]
    if schema.get("nullable"):
        found["type"] = [found["type"], "null"]
    if "items" in schema:
        found["items"] = _pruned(schema["items"])
    if "properties" in schema:
        found["properties"] = {
            name: _ANYTHING if _is_left_out(name) else _pruned(each)
            for name, each in schema["properties"].items()
        }
        found["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = _pruned(schema["additionalProperties"])
    return found


def _is_known(pattern: str) -> bool:
    """Whether a pattern of Go's is one for Python, too."""
    try:
        return bool(re.compile(pattern).pattern)
    except re.error:
        return False


def _is_left_out(name: str) -> bool:
    return name in _OTHERS or (name.endswith("SDConfigs") and name != "httpSDConfigs")


def main(source: str, *files: str) -> None:
    """Writes a schema for each file."""
    for file in files:
        schema = schema_of(yaml.safe_load(Path(file).read_text()), source)
        path = FOLDER / f"{schema['properties']['kind']['const']}.json"
        path.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
