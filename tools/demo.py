"""demo: a page on which the base model and the tuned one answer side by side: `make demo`.

A text-to-SQL recipe takes a schema and a question, and runs both answers in the sandbox, on rows made up for them; a
chat recipe takes a message. Both models answer through llama-server.
"""

import argparse
import os
import queue
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Event, Thread

from qlora.llama_cpp import server as llama_server
from qlora.recipe.load import load_params
from qlora.recipe.schema import Data, Params
from qlora.rows import prepared
from qlora.runtime.console import Refusal, run_stage, summary
from qlora.sql.schema import SchemaError, read_schema
from tools import ask, serving, trial

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before it is imported
for variable in ("NO_PROXY", "no_proxy"):  # it asks its own page whether it is there, through a proxy if one is set
    os.environ[variable] = ",".join([*filter(None, [os.environ.get(variable)]), "127.0.0.1", "::1"])
try:
    import gradio
except ImportError:
    gradio = None

EXAMPLES = 4
STARTING_WORDS = 12
MAX_TOKENS = 512  # of an answer
CSS = """
.gradio-container { max-width: 1100px !important; margin: auto; }
.answers { flex-wrap: wrap; }
.answers > * { min-width: min(340px, 100%) !important; }  /* one below the other on a phone */
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="A page that shows base and tuned model side by side.")
    parser.add_argument("--artifact", help="merged, bf16 or a GGUF type; the GGUF to ship by default")
    parser.add_argument("--port", type=int, default=7860)
    options = parser.parse_args()
    if gradio is None:
        raise Refusal("gradio is not installed: run `make demo`")
    params = load_params()
    tuned = options.artifact or serving.default_artifact(params)
    host = llama_server.loopback()
    port = llama_server.free_port(host, options.port)
    files = {artifact: serving.find_gguf(artifact, params) for artifact in ("base", tuned)}
    with ExitStack() as stack:
        servers = {}
        for artifact, gguf in files.items():
            room = serving.room(gguf, params, slots=2)
            servers[artifact] = stack.enter_context(serving.serve(artifact, gguf, params, room))
        page = build(params, servers)
        page.queue(default_concurrency_limit=2)
        name = f"[{host}]" if ":" in host else host
        _, url, _ = page.launch(server_name=name, server_port=port, prevent_thread_lock=True, quiet=True, css=CSS)
        summary("demo", {"page": url, "side by side": f"base and {tuned}"})
        print("Ctrl-C stops it", flush=True)
        try:
            Event().wait()
        except KeyboardInterrupt:  # how a server is meant to end
            page.close(verbose=False)
            print("stopped")


def build(params: Params, servers: dict[str, llama_server.Running]) -> "gradio.Blocks":
    """The page for the recipe's task; `servers` are the artifacts side by side, by their names."""
    sql = params.data.task == "text-to-sql"
    with gradio.Blocks(title="Base and tuned") as page:
        gradio.Markdown(f"## {params.model.id.split('/')[-1]}, before and after fine-tuning")
        examples = read_examples(params.data)
        filled_in = examples[0] if examples else ["", ""]
        schema = gradio.Textbox(filled_in[0], label="Schema (CREATE TABLE ...)", lines=6, visible=sql)
        question = gradio.Textbox(filled_in[1], label="Question" if sql else "Message", lines=2)
        if examples:
            labels = [question for _, question in examples]
            gradio.Examples(examples, [schema, question], label="From the test rows", example_labels=labels)
        button = gradio.Button("Ask both", variant="primary")
        hint = gradio.Markdown(visible=False)
        outputs = []
        with gradio.Row(elem_classes="answers"):
            for artifact in servers:
                with gradio.Column():
                    gradio.Markdown(f"### {artifact}")
                    if sql:
                        outputs.append(gradio.Code(label="SQL", language="sql", wrap_lines=True, lines=3))
                        outputs.append(gradio.Markdown())
                        outputs.append(
                            gradio.Dataframe(
                                label="Result on made-up rows", wrap=True, visible=False, interactive=False
                            )
                        )
                    else:
                        outputs.append(gradio.Markdown(container=True, min_height=120))

        def answer(schema: str, question: str) -> Iterator[list]:
            fields = {"a schema": schema, "a question": question} if sql else {"a message": question}
            missing = [name for name, text in fields.items() if not text.strip()]
            try:
                if missing:
                    raise Refusal(f"fill in {' and '.join(missing)}")
                for shown in (compare_sql if sql else compare_chat)(params.data, servers, schema, question):
                    yield [gradio.Markdown(visible=False), *shown]
            except (Refusal, SchemaError) as error:  # as a line of text: gradio.Error would paint all answers red
                yield [gradio.Markdown(f"⚠ {error}", visible=True), *(gradio.skip() for _ in outputs)]

        gradio.on([button.click, question.submit], answer, [schema, question], [hint, *outputs], api_name="ask")
    return page


def read_examples(data: Data) -> list[list[str]]:
    """Schema and question of the first test rows with different schemas; none if the rows are not here."""
    if not prepared.split_file("test").is_file():
        return []
    rows = prepared.read("test")
    if data.task == "text-to-sql":
        by_schema = {row["context"]: row["question"] for row in reversed(rows)}
        return [[schema.replace("; ", ";\n"), question] for schema, question in list(by_schema.items())[-EXAMPLES:]]
    if data.task == "text":  # the starts of documents, to be continued
        return [["", " ".join(row["messages"][0]["content"].split()[:STARTING_WORDS])] for row in rows[:EXAMPLES]]
    first = [next(message["content"] for message in row["messages"] if message["role"] == "user") for row in rows]
    return [["", text] for text in first[:EXAMPLES]]


def compare_sql(data: Data, servers: dict[str, llama_server.Running], schema: str, question: str) -> Iterator[list]:
    """Yield the content of each artifact's panels as it grows: the SQL, whether it runs, and the rows it returns."""
    schema = " ".join(schema.split())  # as the rows have it, in one line
    read_schema(schema, data.dialect)
    hidden = gradio.Dataframe(visible=False)
    texts = []
    for texts in stream_all(servers, ask.messages(data, question, schema)):
        yield [part for text in texts for part in (text, "", hidden)]
    shown = []
    for tried in trial.run(schema, texts, dialect=data.dialect):
        table = gradio.Dataframe(value={"headers": tried.columns, "data": tried.rows}, visible=not tried.error)
        rows = "1 row" if tried.total == 1 else f"{tried.total:,} rows"
        shown += [tried.sql, f"✗ {tried.error}" if tried.error else f"✓ runs: {rows}", table]
    yield shown


def compare_chat(data: Data, servers: dict[str, llama_server.Running], _: str, question: str) -> Iterator[list]:
    """Yield the answers as they grow."""
    yield from stream_all(servers, ask.messages(data, question))


def stream_all(servers: dict[str, llama_server.Running], conversation: list[dict[str, str]]) -> Iterator[list[str]]:
    """Ask all servers at once; yield all answers whenever one has grown."""
    texts = dict.fromkeys(servers, "")
    events: queue.SimpleQueue = queue.SimpleQueue()

    def listen(artifact: str, server: llama_server.Running) -> None:
        try:
            for piece in serving.stream(server, conversation, MAX_TOKENS):
                events.put((artifact, piece))
            events.put((artifact, None))
        except Exception as error:  # raised where the answers are shown
            events.put((artifact, error))

    for artifact, server in servers.items():
        Thread(target=listen, args=(artifact, server), daemon=True).start()
    running = len(servers)
    while running:
        artifact, piece = events.get()
        if isinstance(piece, Exception):
            raise piece
        if piece is None:
            running -= 1
        else:
            texts[artifact] += piece
            yield list(texts.values())


if __name__ == "__main__":
    run_stage(main)
