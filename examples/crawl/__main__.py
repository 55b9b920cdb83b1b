"""`python -m examples.crawl`: a crawl that streams into a question, on a cluster of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from examples.command import AddressOption, ConfigOption, ask_a_cluster, say


def main(
    address: AddressOption = None,
    config: ConfigOption = None,
    pages: Annotated[int, typer.Option("--pages", min=1, help="Most pages to fetch.")] = 10,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, help="Pages that are fetched at a time.")
    ] = 3,
    delay_s: Annotated[
        float, typer.Option("--delay-s", min=0, help="Mean time the site takes a page.")
    ] = 1.5,
) -> None:
    """Crawl a site that this command serves, follow its links, and ask about the pages.

    Each page is appended when it comes, and prefilled while the next ones are fetched.

    Example: python -m examples.crawl --pages 20
    """

    async def ask(router: str, model: str) -> None:
        from examples.crawl.steps import Crawl, run
        from stream2llm.models.token_counter import token_counter

        await run(router, Crawl(pages, at_once, delay_s), token_counter(model), say)

    ask_a_cluster("crawl", address, config, ask)


if __name__ == "__main__":
    typer.run(main)
