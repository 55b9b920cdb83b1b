"""`make dashboards`: writes deploy/grafana."""

from __future__ import annotations

from tools.dashboards.files import FILES, FOLDER

for name, text in FILES.items():
    (FOLDER / name).write_text(text())
    print(f"wrote deploy/grafana/{name}")
