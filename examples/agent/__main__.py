"""`python -m examples.agent`: a conversation with an agent, on a cluster of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from examples.command import AddressOption, ConfigOption, ask_a_cluster, say


def main(
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="Questions with dotted names, such as json.dumps; without any: three."),
    ] = None,
    address: AddressOption = None,
    config: ConfigOption = None,
    delay_s: Annotated[
        float, typer.Option("--delay-s", min=0, help="Mean time that a tool takes.")
    ] = 1.5,
) -> None:
    """Answer questions turn after turn with tools that run side by side.

    Each result is appended when it comes, and prefilled while the other tools still run; a turn
    begins with the whole conversation, which the prefix cache has.

    Example: python -m examples.agent
    """

    async def ask(router: str, model: str) -> None:
        from examples.agent.steps import QUESTIONS, run

        await run(router, questions or QUESTIONS, delay_s, say)

    ask_a_cluster("agent", address, config, ask)


if __name__ == "__main__":
    typer.run(main)
