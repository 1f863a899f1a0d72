/** Start the page: its routes, the console's events, the notices above each page. */

import * as api from "./api.js";
import { deadPage } from "./dead.js";
import { follow } from "./events.js";
import { el, setText } from "./format.js";
import { generatorsPage } from "./generators.js";
import { overviewPage } from "./overview.js";
import { reportsPage } from "./reports.js";
import { scanPage } from "./scan.js";
import { acceptDrops } from "./upload.js";

const STALE_MS = 3000; // without events: then the state of the stages is not known
const LOST = "The connection to the console is lost. The page connects again as soon as the console answers. What you see may be out of date.";
const ROUTES = {
  "": { title: "Scans", open: (root) => overviewPage(root, app) },
  scan: { title: "Scan", open: (root, id) => scanPage(root, id, app) },
  generators: { title: "Generators", open: (root) => generatorsPage(root, app) },
  dead: { title: "Dead letters", open: (root) => deadPage(root, app) },
  reports: { title: "Reports", open: (root, id) => reportsPage(root, id, app) },
};

const main = document.getElementById("main");
const handlers = new Map(); // event → Set of handlers
let status = null;
let cleanup = () => {};
let opened = 0;
let failedPage = false; // the page could not be opened: again, when the console answers
let stale = 0; // the timer

/** What the pages share. `on` gives a function that ends the subscription. */
const app = {
  api,
  status: () => status,
  on(event, handler) {
    if (!handlers.has(event)) handlers.set(event, new Set());
    handlers.get(event).add(handler);
    return () => handlers.get(event).delete(handler);
  },
  /** Say something to screen readers. */
  announce: (text) => setText(document.getElementById("announce"), text),
};

function emit(event, data) {
  if (event === "status") {
    const first = !status;
    showStatus(data);
    if (first) route(); // the page was opened without it
  }
  if (event === "connected") {
    clearTimeout(stale);
    stale = 0;
    showLink("page connected", "");
    if (failedPage) route();
  }
  if (event === "disconnected") {
    showLink("not connected", data?.status === 401 ? api.NO_TOKEN : LOST);
    stale ||= setTimeout(forget, STALE_MS);
  }
  for (const handler of [...(handlers.get(event) ?? [])]) handler(data);
}

/** The stages may have changed since the last event. */
function forget() {
  if (status) emit("status", { ...status, stages: status.stages.map(({ name }) => ({ name })), left_s: null, dead: null, problem: "" });
}

function showLink(text, problem) {
  const state = document.getElementById("link-state");
  state.dataset.state = problem ? "off" : "live";
  setText(state, text);
  const away = document.getElementById("away");
  if (away.textContent !== problem && problem !== LOST) api.forgetAway(); // a lost connection takes no message away
  setText(away, problem);
  away.hidden = !problem;
}

function showStatus(data) {
  if (status && status.version !== data.version) location.reload(); // the console was updated: so must be the page
  status = data;
  const notice = document.getElementById("notice");
  setText(notice, (data.notice ?? "").replace(/`([^`]*)`/g, "“$1”")); // written for terminals
  notice.hidden = !data.notice;
  const count = document.getElementById("dead-count");
  setText(count, data.dead ? String(data.dead) : "");
  count.title = "messages that a stage gave up";
  count.hidden = !data.dead;
  const bundle = data.bundle ? `bundle ${data.bundle}` : "bundle not known yet";
  setText(document.getElementById("about"), `gliaflow ${data.version} · broker ${data.broker} · ${bundle}`);
}

/** Open the page that the address names. */
async function route() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const page = ROUTES[name];
  if (!page) {
    location.hash = "#/";
    return;
  }
  const turn = ++opened;
  cleanup();
  cleanup = () => {};
  for (const link of document.querySelectorAll("nav a")) {
    const current = link.dataset.page === name || (name === "scan" && link.dataset.page === "");
    current ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
  document.title = `${page.title} – gliaflow console`;
  const root = el("div", { class: "stack" });
  main.replaceChildren(root);
  failedPage = false;
  try {
    const done = (await page.open(root, decodeURIComponent(rest.join("/")))) ?? (() => {});
    if (turn === opened) cleanup = done;
    else done(); // the user has opened another page meanwhile
  } catch (error) {
    if (!(error instanceof api.ApiError)) console.error(error);
    if (turn === opened) {
      failedPage = error.away || error.status === 401;
      root.replaceChildren(...failed(page.title, error));
    }
  }
  if (turn === opened && turn > 1) focusHeading(root);
}

/** What stands on a page that cannot be opened, with a way on. */
function failed(title, error) {
  const gone = error.status === 404 && "It is not in the console any more: it was deleted, or was one of the oldest.";
  const problem = el("p", { class: "notice bad", role: "alert" }, gone);
  if (!gone) api.complain(problem, error);
  return [el("h1", {}, gone ? `${title} not found` : title), problem, el("p", {}, el("a", { href: "#/" }, "All scans"))];
}

function focusHeading(root) {
  const heading = root.querySelector("h1");
  heading?.setAttribute("tabindex", "-1");
  heading?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

async function start() {
  api.onRefused(() => showLink("not connected", api.NO_TOKEN));
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address' hash is the route
    main.focus();
  });
  acceptDrops(app);
  window.addEventListener("hashchange", route);
  try {
    showStatus(await api.get("api/status"));
  } catch (error) {
    showLink("not connected", error.message);
  }
  follow(emit);
  await route();
}

start();
