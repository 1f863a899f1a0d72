/** The dead letters: messages that a stage gave up, to send back or to delete. */

import { complain } from "./api.js";
import { bytes, confirmed, el, plural, remedy, setText, UNKNOWN, visible, when } from "./format.js";

const PAUSE_MS = 5_000; // between two listings that nobody asked for: a listing holds the messages for a moment

export async function deadPage(root, app) {
  const chosen = new Set(); // ids
  const boxes = new Map(); // id → its checkbox
  let letters = [];
  let listed = 0;
  let loaded = 0;
  let counted = app.status()?.dead; // by the stages' queues
  let timer = 0;
  const body = el("tbody");
  const all = el("input", { type: "checkbox", "aria-label": "Choose all that are listed", on: { change: () => choose(letters.map(({ id }) => id), all.checked) } });
  const replay = el("button", { type: "button", class: "primary", on: { click: () => sendBack({ ids: sendable() }) } });
  const erase = el("button", { type: "button", class: "danger", on: { click: () => erased({ ids: [...chosen] }, chosen.size) } });
  const again = el("button", { type: "button", class: "quiet", on: { click: load } }, "Refresh");
  const result = el("div", { role: "status", class: "stack" });
  const problem = el("p", { class: "notice bad", role: "alert", hidden: true });
  const table = el(
    "table",
    { class: "letters stacked" },
    el("caption", { class: "hidden-text" }, "Dead letters"),
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("td", {}, all),
        ...["Scan", "Stage", "Reason"].map((text) => el("th", { scope: "col" }, text)),
        el("th", { scope: "col", class: "c-died" }, "Died"),
        el("th", { scope: "col", class: "number c-bytes" }, "Message size"),
        el("th", { scope: "col", class: "number c-copies" }, el("abbr", { title: "How often this message is among the dead letters" }, "Copies")),
        el("td"),
      ),
    ),
    body,
  );
  const empty = el("div", { class: "empty", hidden: true }, el("p", { class: "lead" }, "No dead letters"), el("p", {}, "No stage has given up a message."));
  const scroll = el("div", { class: "scroll", hidden: true }, table);
  const more = el("span", { class: "muted small" });
  const everything = el(
    "div",
    { class: "controls all-letters", hidden: true },
    more,
    el("button", { type: "button", on: { click: () => sendBack({ all: true }) } }, "Send all back"),
    el("button", { type: "button", class: "danger", on: { click: () => erased({ all: true }, Math.max(listed, counted ?? 0)) } }, "Delete all"),
  );
  const place = el("p", { class: "muted small", hidden: true });
  root.append(
    el("div", { class: "head" }, el("h1", {}, "Dead letters"), again),
    el(
      "p",
      { class: "muted" },
      "A stage sets a message aside when it cannot process it. Mostly the scan's file is the cause: repair it and upload it again. ",
      "Send a message back if the cause was elsewhere and is gone, such as too little memory: the stage tries it again, and the scan gets its answer.",
    ),
    place,
    problem,
    result,
    el("section", { class: "panel", "aria-label": "Dead letters" }, el("div", { class: "controls" }, replay, erase), scroll, empty, everything),
  );

  const end = app.on("status", ({ dead }) => {
    counted = dead;
    compare();
  });
  const connected = app.on("connected", load);
  await load();

  /** Load the list again when the number of dead letters is not that of the list: a message died, also one sent back. */
  function compare() {
    clearTimeout(timer);
    if (counted === undefined || counted === null || counted === listed) return;
    const pause = loaded + PAUSE_MS - Date.now();
    const busy = chosen.size > 0 || body.querySelector("[aria-expanded=true]") || body.contains(document.activeElement);
    if (pause > 0) timer = setTimeout(compare, pause);
    else if (busy) setText(again, "Refresh: the list has changed");
    else load();
  }

  async function load() {
    try {
      const answer = await app.api.get("api/dead");
      letters = answer.letters;
      report(answer.problem);
      setText(place, answer.folder && `Letters of earlier consoles and commands are listed too: they lie in ${answer.folder} until they are sent back or deleted.`);
      place.hidden = !answer.folder;
      listed = letters.reduce((sum, { copies }) => sum + (copies ?? 1), Number(answer.more));
      setText(more, `${plural(Number(answer.more), "further message")} not listed here.`);
      everything.hidden = !answer.more;
    } catch (error) {
      report(error.away || error.status === 401 ? "" : error.message); // the banner says it
    }
    loaded = Date.now();
    setText(again, "Refresh");
    const ids = new Set(letters.map(({ id }) => id));
    for (const id of [...chosen]) if (!ids.has(id)) chosen.delete(id);
    boxes.clear();
    body.replaceChildren(...letters.flatMap(letterRows));
    scroll.hidden = letters.length === 0;
    empty.hidden = letters.length > 0 || !problem.hidden;
    mark();
    compare();
  }

  function report(text) {
    setText(problem, text || "");
    problem.hidden = !text;
  }

  function letterRows(letter) {
    const box = el("input", {
      type: "checkbox",
      "aria-label": `Choose ${letter.scan || "this message"}`,
      on: { change: () => choose([letter.id], box.checked) },
    });
    boxes.set(letter.id, box);
    const lines = el("pre", { class: "mono" });
    const inside = el("tr", { hidden: true }, el("td", { colspan: 8 }, lines));
    const open = el("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-label": `Details: ${letter.scan || "message"}, ${stageOf(letter.queue)}, ${time(letter.died)}`, on: { click: show } }, "Details");
    async function show() {
      inside.hidden = !inside.hidden;
      open.setAttribute("aria-expanded", String(!inside.hidden));
      if (inside.hidden || lines.textContent) return;
      try {
        const answer = await app.api.get(`api/dead/${encodeURIComponent(letter.id)}`);
        lines.textContent = answer.lines.map(visible).join("\n");
      } catch (error) {
        setText(lines, error.message);
      }
    }
    const row = el(
      "tr",
      { data: { id: letter.id } },
      el("td", {}, box),
      el("th", { scope: "row" }, scanOf(letter)),
      el("td", { data: { label: "Stage" } }, stageOf(letter.queue)),
      el("td", { class: "reason" }, remedy(letter.reason) || UNKNOWN, letter.lost && el("p", { class: "small bad-text lost" }, `Cannot be sent back: ${letter.lost}.`)),
      el("td", { class: "c-died" }, time(letter.died)),
      el("td", { class: "number c-bytes" }, bytes(letter.bytes)),
      el("td", { class: "number c-copies" }, String(letter.copies ?? 1)),
      el("td", {}, open),
    );
    return [row, inside];
  }

  function choose(ids, on) {
    for (const id of ids) on ? chosen.add(id) : chosen.delete(id);
    mark();
  }

  /** The ids of the chosen letters whose scan is still there. */
  function sendable() {
    return letters.filter(({ id, lost }) => chosen.has(id) && !lost).map(({ id }) => id);
  }

  function mark() {
    for (const [id, box] of boxes) box.checked = chosen.has(id);
    all.checked = chosen.size > 0 && chosen.size === letters.length;
    all.indeterminate = chosen.size > 0 && chosen.size < letters.length;
    erase.disabled = chosen.size === 0;
    const possible = sendable();
    replay.disabled = possible.length === 0;
    replay.title = chosen.size && !possible.length ? letters.find(({ id }) => chosen.has(id)).lost : "";
    setText(replay, possible.length ? `Send back (${possible.length})` : "Send back");
    setText(erase, chosen.size ? `Delete (${chosen.size})` : "Delete");
  }

  async function act(path, body, text) {
    replay.disabled = erase.disabled = true;
    result.replaceChildren();
    try {
      const answer = await app.api.post(path, body);
      const refused = answer.refused ?? [];
      chosen.clear();
      for (const { id } of refused) chosen.add(id);
      result.append(el("p", { class: "notice info" }, text(answer)));
      if (refused.length) {
        const names = Object.fromEntries(letters.map(({ id, scan }) => [id, scan]));
        result.append(
          el("div", { class: "notice bad" }, el("p", {}, `${plural(refused.length, "message")} not sent back:`), el("ul", {}, refused.map(({ id, reason }) => el("li", {}, `${names[id] || id}: ${reason}`)))),
        );
      }
    } catch (error) {
      const failed = el("p", { class: "notice bad" });
      complain(failed, error);
      result.append(failed);
    }
    result.tabIndex = -1;
    result.focus(); // the button that was pressed may be disabled or hidden now
    await load();
  }

  function sendBack(body) {
    return act("api/dead/replay", body, ({ sent }) => `${plural(sent, "message")} sent back to ${sent === 1 ? "its stage" : "their stages"}.`);
  }

  async function erased(body, count) {
    const question = `Delete ${body.all ? "all " : ""}${plural(count, "message")} for good? ${count === 1 ? "Its scan gets no answer unless it is" : "Their scans get no answer unless they are"} submitted again.`;
    if (await confirmed(question, "Delete")) await act("api/dead/delete", body, ({ deleted }) => `${plural(deleted, "message")} deleted.`);
  }

  return () => {
    clearTimeout(timer);
    end();
    connected();
  };
}

/** The stage of a dead-letter queue, "gliaflow.extractor.dead". */
function stageOf(queue) {
  return queue.replace(/^gliaflow\./, "").replace(/\.dead$/, "");
}

/** The scan's name, as a link if its row is in the console. */
function scanOf({ scan, scan_id: id }) {
  if (id) return el("a", { href: `#/scan/${encodeURIComponent(id)}` }, scan || id);
  return scan || el("span", { class: "muted" }, "unknown");
}

function time(died) {
  return typeof died === "number" ? when(died) : died || UNKNOWN;
}
