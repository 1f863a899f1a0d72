/** Requests to the console. Each failure is an ApiError with a sentence to show. */

import { setText } from "./format.js";

export class ApiError extends Error {
  constructor(message, status = 0, body = {}) {
    super(message);
    this.status = status;
    this.body = body;
  }

  /** Whether it ends by itself when the console answers again: the page has a banner meanwhile. */
  get away() {
    return this.message === AWAY || this.status === 503;
  }
}

export const NO_TOKEN =
  "This page has no valid token. Open the address that “gliaflow console” printed when it started " +
  "(http://…/?token=…).";
const AWAY = "The console does not answer. Is “gliaflow console” still running?";

/** Show an error. What ends with a state of the connection is marked for `forgetAway`; of a token, the banner is enough. */
export function complain(element, error) {
  setText(element, error.status === 401 ? "" : error.message);
  element.toggleAttribute("data-away", Boolean(error.away));
}

/** Remove the errors of an older state of the connection. */
export function forgetAway() {
  for (const old of document.querySelectorAll("[data-away]")) {
    if (old.localName === "li") old.remove();
    old.removeAttribute("data-away");
    old.textContent = "";
  }
}

let refused = () => {};

/** Call `handler` when the console refuses the token. */
export function onRefused(handler) {
  refused = handler;
}

/** The answer to a request. Raises ApiError. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(AWAY);
  }
  if (!response.ok) throw await failure(response.status, await response.text().catch(() => ""));
  return response;
}

function failure(status, text) {
  let body = {};
  try {
    body = JSON.parse(text);
  } catch {
    // a proxy's page: the status must do
  }
  if (status === 401) refused();
  const message = status === 401 ? NO_TOKEN : body.error || `The console answers ${status}.`;
  return new ApiError(message, status, body);
}

export async function get(path) {
  return (await request(path)).json();
}

export async function post(path, body) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await request(path, { method: "POST", headers, body: body === undefined ? null : JSON.stringify(body) });
  return response.status === 204 ? null : response.json();
}

export async function remove(path) {
  await request(path, { method: "DELETE" });
}

/** Send a file as the body. `progress` gets the bytes sent so far: fetch does not report these. */
export function send(method, path, file, { progress = () => {}, signal = null } = {}) {
  return new Promise((resolve, reject) => {
    const sender = new XMLHttpRequest();
    sender.open(method, path);
    sender.setRequestHeader("Content-Type", "application/octet-stream");
    sender.upload.addEventListener("progress", (event) => progress(event.loaded));
    sender.addEventListener("load", () => {
      if (sender.status < 200 || sender.status > 299) reject(failure(sender.status, sender.responseText));
      else resolve(sender.responseText ? JSON.parse(sender.responseText) : null);
    });
    sender.addEventListener("error", () =>
      reject(new ApiError("The upload broke off. Is the file still there, and does “gliaflow console” still run?")),
    );
    sender.addEventListener("abort", () => reject(new DOMException("", "AbortError")));
    signal?.addEventListener("abort", () => sender.abort());
    if (signal?.aborted) reject(new DOMException("", "AbortError"));
    else sender.send(file);
  });
}
