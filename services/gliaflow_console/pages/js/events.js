/**
 * The stream of server-sent events, read with fetch: EventSource hides the status of a refusal and the comments that
 * show that the console lives.
 */

import { request } from "./api.js";

const SILENCE_MS = 25_000; // the console sends a comment every 10 s
const PAUSES_MS = [500, 1000, 2000, 4000];

/**
 * Follow the events for as long as the page is open. `emit(event, data)` gets each event of the console, "connected"
 * after each (re)connection, and "disconnected" with the ApiError.
 *
 * A hidden tab has no stream: a browser opens at most six connections to a server, so more tabs would wait for ever.
 */
export async function follow(emit) {
  for (let failures = 0; ; ) {
    await visible();
    const abort = new AbortController();
    const hidden = () => document.hidden && abort.abort();
    document.addEventListener("visibilitychange", hidden);
    let timer = 0;
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    try {
      alive();
      const response = await request("api/events", { signal: abort.signal });
      failures = 0;
      emit("connected");
      for await (const [event, data] of messages(response.body, alive)) emit(event, data);
      emit("disconnected");
    } catch (error) {
      if (document.hidden) continue;
      emit("disconnected", error);
    } finally {
      abort.abort(); // after an error in the page too: no stream stays open
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", hidden);
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)]));
  }
}

async function* messages(body, alive) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    alive();
    text += value;
    const blocks = text.split(/\r?\n\r?\n/);
    text = blocks.pop();
    for (const block of blocks) {
      const message = parsed(block);
      if (message) yield message;
    }
  }
}

/** [event, data] of one block; null for a comment. */
export function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^([^:]*):? ?(.*)$/.exec(line);
    if (name === "event") event = value;
    if (name === "data") data.push(value);
  }
  return data.length ? [event, JSON.parse(data.join("\n"))] : null;
}

async function visible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}
