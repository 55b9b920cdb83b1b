// The page: each list of results is an update of the context, and the question completes it.

import { Lane, connect, documentItem } from "./lanes.js";
import { search } from "./search.js";

const OPTIONS = { max_output_tokens: 64, temperature: 0 };
const SLOT = "{{context}}";
const INSTRUCTION = `Answer in one sentence from these texts.\n${SLOT}`;
const show = (id, text) => { document.getElementById(id).textContent = text; };

document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  show("failure", "");
  ask(new FormData(event.target).get("question"))
    .catch((error) => show("failure", error.message))
    .finally(() => { button.disabled = false; });
});

async function ask(question) {
  const socket = await connect();
  try {
    const results = await streamed(socket, question);
    await awaited(socket, question, results);
  } finally {
    socket.close();
  }
}

/** Sends results as they come; returns the last ones. */
async function streamed(socket, question) {
  const lane = new Lane(socket, "streamed", OPTIONS);
  listen(socket, "streamed");
  const root = await lane.create({ ...opening(crypto.randomUUID()), generate: false });
  let results = [], previous = root.id;
  const sent = new Set();
  for await (results of search(question)) {
    draw(results);
    const input = results.map(([id, text]) => documentItem(id, sent.has(id) ? undefined : `${text}\n`));
    results.forEach(([id]) => sent.add(id));
    const request = { input, generate: false, previous_response_id: root.id, stream2llm: { progress: true } };
    previous = (await lane.create(request)).id;
  }
  show("answer", "");
  const response = await answer(lane, "streamed", {
    input: question, previous_response_id: previous, stream2llm: { progress: true },
  }, (text) => { document.getElementById("answer").append(text); });
  // Final counts: an answer may come before the progress that leads to it.
  show("received", response.usage.input_tokens);
  show("invalidated", response.stream2llm.invalidated_tokens);
  return results;
}

/** Asks the same once more, with everything in one request. */
async function awaited(socket, question, results) {
  const lane = new Lane(socket, "awaited", OPTIONS);
  const { input, ...rest } = opening(crypto.randomUUID());
  const documents = results.map(([id, text]) => documentItem(id, `${text}\n`));
  await answer(lane, "awaited", {
    input: [...input, ...documents, { role: "user", content: question }], ...rest,
  }, () => {});
}

/** The beginning, which the nonce makes unlike all others: nothing of it is in a prefix cache. */
function opening(nonce) {
  const content = `Request ${nonce}. ${INSTRUCTION}`;
  return { input: [{ role: "system", content }], stream2llm: { context_slot: SLOT } };
}

/** Asks for the answer, and shows how long its first token takes; returns the response. */
function answer(lane, name, request, onText) {
  const begin = performance.now();
  let isFirst = true;
  return lane.create(request, (event) => {
    if (event.type !== "response.output_text.delta") return;
    if (isFirst) show(name, `${Math.round(performance.now() - begin)} ms`);
    isFirst = false;
    onText(event.delta);
  });
}

function listen(socket, name) {
  socket.addEventListener("message", ({ data }) => {
    const event = JSON.parse(data);
    if (event.type !== "stream2llm.progress" || event.stream_id !== name) return;
    show("received", event.progress.received_tokens);
    show("prefilled", event.progress.prefilled_tokens);
    show("invalidated", event.progress.invalidated_tokens);
  });
}

function draw(results) {
  const items = results.map(([, text]) => Object.assign(document.createElement("li"), { textContent: text }));
  document.getElementById("results").replaceChildren(...items);
}
