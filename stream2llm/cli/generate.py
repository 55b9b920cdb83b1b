"""`stream2llm generate`: documents in, an answer out."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stream2llm.api.options import MAX_TTFT_SLO_MS, DocumentOrdering, OversizedDocuments
from stream2llm.api.sampling import MAX_ANSWERS, SamplingParameters
from stream2llm.cli import security_options as secure
from stream2llm.cli.addresses import DEFAULT_ROUTER, ROUTER_VARIABLE, several
from stream2llm.cli.exits import BAD_USAGE, errors_as_exits
from stream2llm.cli.numbers import finite
from stream2llm.cli.option_groups import expanded
from stream2llm.serving.observability.logs import for_terminal

if TYPE_CHECKING:
    from stream2llm.api.structured_output import StructuredOutput
    from stream2llm.cli.ask import Request, Router
    from stream2llm.cli.output import Sink
    from stream2llm.cli.sources import Sources


class Mode(StrEnum):
    """When documents are sent."""

    APPEND = "append"
    UPDATE = "update"
    ONCE = "once"


def _known_encoding(name: str) -> str:
    from stream2llm.cli.decoding import check_encoding

    try:
        return check_encoding(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _tools_in(path: Path) -> list[Any]:
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is not JSON: {error}") from error
    if not isinstance(tools, list):
        raise typer.BadParameter(f"{path} is not a list of tools")
    return tools


@expanded
def generate(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Documents: files, folders (their text files, sorted, recursively), or - for "
            "standard input, where a line --- or a NUL ends a document: whichever comes first is "
            "the separator, the other is text. Files that are not text are left out and named on "
            "stderr, unless they are given here."
        ),
    ],
    question: Annotated[str, typer.Option("--question", "-q", help="What to ask.")],
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            "-a",
            help="HOST:PORT of a router; `stream2llm up` prints it. Several, with commas or "
            "repeated: the answer goes on at another one when a router is lost."
            f"  [default: {DEFAULT_ROUTER}]",
            envvar=ROUTER_VARIABLE,
        ),
    ] = None,
    *,
    given: secure.Options,
    system: Annotated[
        str | None, typer.Option(help="System message; the chat template is used.")
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Plain text before the documents, instead of the chat template."),
    ] = None,
    tools: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A JSON file with a list of tools, for the chat template. Calls are printed as the "
            "model writes them.",
        ),
    ] = None,
    chat_template_kwargs: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Variables of the chat template, for instance '{\"enable_thinking\": false}'.",
        ),
    ] = None,
    mode: Annotated[
        Mode,
        typer.Option(
            help="append: send each document on arrival; update: the same, as a ranking with the "
            "newest document first; once: all at the end."
        ),
    ] = Mode.APPEND,
    ordering: Annotated[
        DocumentOrdering,
        typer.Option(
            help="With --mode update. as_given: documents are laid out as the ranking; stable: they "
            "keep their places, which invalidates less, and the model gets the ranking as text."
        ),
    ] = DocumentOrdering.AS_GIVEN,
    oversized: Annotated[
        OversizedDocuments,
        typer.Option(
            help="For a document that is too long: fail the session, leave it out, or cut it."
        ),
    ] = OversizedDocuments.FAIL,
    ttft_slo_ms: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_TTFT_SLO_MS,
            help="Milliseconds from the last document to the first token of the answer: its "
            "deadline. By default the cluster's.",
        ),
    ] = None,
    encoding: Annotated[
        str,
        typer.Option(
            callback=_known_encoding,
            help="The encoding of files and standard input without a byte order mark.",
        ),
    ] = "utf-8",
    null: Annotated[
        bool,
        typer.Option("--null", "-0", help="On standard input NULs end documents, and --- is text."),
    ] = False,
    gap_s: Annotated[
        float,
        typer.Option(
            min=0, callback=finite, help="Wait between documents, as a slow retrieval would."
        ),
    ] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling, in (0, 1].")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, help="Sample from the k likeliest; 0 is off.")] = 0,
    min_p: Annotated[
        float,
        typer.Option(help="Leave out tokens below this share of the likeliest one's probability."),
    ] = 0.0,
    min_tokens: Annotated[int, typer.Option(min=0, help="Shortest answer.")] = 0,
    bad_word: Annotated[
        list[str] | None,
        typer.Option(help="Text that must not come in the answer; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    num_answers: Annotated[
        int,
        typer.Option(
            "-n",
            min=1,
            max=MAX_ANSWERS,
            help="So many answers, one below the other; they differ with a --temperature above 0.",
        ),
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="File with a JSON schema: the answer is such JSON."
        ),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Regular expression that the whole answer matches.")
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="The answer is this text, or another choice; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the answer.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line for each event, on stdout.")
    ] = False,
) -> None:
    """Ask a question whose context streams in; print the answer.

    The answer goes to stdout as it is generated, progress to stderr. Ctrl-C
    cancels the session on the server. Exit codes: 0 answered, 2 bad usage or no
    document that is text, 3 the server refused or failed, 4 it is unavailable
    (try again), 130 cancelled.

    Example: stream2llm generate -q "What does the with statement do?" docs/*.txt

    Example: cat notes.txt | stream2llm generate -q "Summarize." -

    Example: some-crawler --print0 | stream2llm generate -0 -q "What is new?" -
    """
    from stream2llm.cli.ask import Request, Router
    from stream2llm.cli.output import make_sink, warn
    from stream2llm.cli.sources import Reading, Sources

    if prefix is not None and system is not None:
        raise typer.BadParameter("--prefix and --system exclude each other")
    if ordering is DocumentOrdering.STABLE and mode is not Mode.UPDATE:
        raise typer.BadParameter("--ordering stable needs --mode update: else nothing moves")
    if null and "-" not in paths:
        raise typer.BadParameter("--null is for standard input: give - as a path")
    sampling = SamplingParameters(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop_strings=tuple(stop or ()),
        min_p=min_p,
        min_tokens=min_tokens,
        bad_words=tuple(bad_word or ()),
        n=num_answers,
        structured_output=_structured_output(json_schema, regex, choice or []),
    )
    request = Request(
        question,
        system,
        prefix,
        sampling,
        tools=None if tools is None else _tools_in(tools),
        chat_template_kwargs=chat_template_kwargs,
        once=mode is Mode.ONCE,
        gap_s=gap_s,
        updates=mode is Mode.UPDATE,
        ordering=ordering,
        oversized=oversized,
        ttft_slo_ms=ttft_slo_ms,
    )
    stdin = None if sys.stdin is None else sys.stdin.buffer  # None: it is closed
    sources = Sources(paths, stdin, Reading(encoding, null=null), warn)
    with errors_as_exits():
        security = given.security()
        router = Router(several(address), security)
    _run(request, sources, router, make_sink(as_json=as_json, quiet=quiet))


def _structured_output(
    json_schema: Path | None, regex: str | None, choices: list[str]
) -> StructuredOutput | None:
    from stream2llm.api.structured_output import StructuredOutput

    given = [json_schema is not None, regex is not None, bool(choices)]
    if sum(given) > 1:
        raise typer.BadParameter("--json-schema, --regex and --choice exclude each other")
    if not any(given):
        return None
    schema = None if json_schema is None else _schema_in(json_schema)
    return StructuredOutput(json_schema=schema, regex=regex, choices=tuple(choices))


def _schema_in(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--json-schema {path}: {error}") from error


def _run(request: Request, sources: Sources, router: Router, sink: Sink) -> None:
    from stream2llm.cli.ask import ask
    from stream2llm.cli.sources import SourceError

    try:
        with errors_as_exits():
            sources.check()
            ask(request, sources.documents(), router, sink)
    except SourceError as error:
        typer.echo(for_terminal(f"error: {error}"), err=True)
        raise typer.Exit(BAD_USAGE) from None
