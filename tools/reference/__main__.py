"""`python -m tools.reference`: writes all generated pages."""

from __future__ import annotations

from tools.reference.pages import FOLDER, PAGES


def main() -> None:
    """Writes each page; prints the names of those that changed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, write in PAGES.items():
        path, text = FOLDER / name, write()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(FOLDER.parents[1])}")


if __name__ == "__main__":
    main()
