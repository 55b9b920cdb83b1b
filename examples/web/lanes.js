// A WebSocket to a gateway: the requests of a lane, and their events.

const ENDS = ["response.completed", "response.incomplete", "response.failed", "error"];

/** Opens a connection to the gateway that has served this page. */
export function connect() {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const socket = new WebSocket(`${scheme}://${location.host}/v1/responses`);
  return new Promise((resolve, reject) => {
    socket.onopen = () => resolve(socket);
    socket.onerror = () => reject(new Error("the gateway does not take the connection"));
  });
}

/** One lane: a request waits for the response before it. */
export class Lane {
  #socket;
  #name;
  #options;

  /** `options` go with each request: a session has them from its beginning to its end. */
  constructor(socket, name, options) {
    this.#socket = socket;
    this.#name = name;
    this.#options = options;
  }

  /** Sends a request; returns its response. `onEvent` gets the events of the lane until then. */
  create(request, onEvent = () => {}) {
    return new Promise((resolve, reject) => {
      const listener = ({ data }) => {
        const event = JSON.parse(data);
        if (event.stream_id !== this.#name) return;
        onEvent(event);
        if (!ENDS.includes(event.type)) return;
        this.#socket.removeEventListener("message", listener);
        const error = event.error ?? event.response?.error;
        if (error) reject(new Error(error.message));
        else resolve(event.response);
      };
      this.#socket.addEventListener("message", listener);
      this.#socket.addEventListener("close", () => reject(new Error("the connection has ended")));
      const event = { type: "response.create", stream_id: this.#name, ...this.#options, ...request };
      this.#socket.send(JSON.stringify(event));
    });
  }
}

/** An input item that is a document; without a text it is one sent before. */
export function documentItem(id, text) {
  const item = { type: "message", role: "user", stream2llm: { document: { id } } };
  return text === undefined ? item : { ...item, content: text };
}
