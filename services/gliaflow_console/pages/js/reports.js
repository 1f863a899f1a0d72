/** The reports in the operator's folder: evaluations, trainings, folders of answers. */

import { el, UNKNOWN, when } from "./format.js";

const KINDS = { evaluation: "Evaluation", training: "Training", answers: "Answers" };

export async function reportsPage(root, id, app) {
  const answer = await app.api.get("api/reports");
  const report = answer.reports.find((each) => each.id === id);
  if (id && report) showReport(root, report);
  else showList(root, answer, id);
}

function showList(root, { folder, reports, problem }, id) {
  root.append(
    el("h1", {}, "Reports"),
    el("p", { class: "muted" }, "Reports of “gliaflow evaluate”, “gliaflow train” (with the training's curves) and “gliaflow submit --report”."),
  );
  if (id) root.append(el("p", { class: "notice bad", role: "alert" }, "This report is no longer in the folder."));
  if (problem) root.append(el("p", { class: "notice bad", role: "alert" }, problem));
  if (!reports.length) {
    const lead = folder ? `No reports in ${folder}` : "No folder of reports";
    const rest = folder
      ? "The console shows each folder in it to which one of these commands has written a report.html."
      : "Start the console with a folder: gliaflow console --reports DIR. It shows the evaluations, trainings and answers in it.";
    root.append(el("section", { class: "panel empty" }, el("p", { class: "lead" }, lead), el("p", {}, rest)));
    return;
  }
  const rows = reports.map((report) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, el("a", { href: addressOf(report) }, report.name)),
      el("td", {}, KINDS[report.kind] ?? report.kind),
      el("td", {}, report.summary || UNKNOWN),
      el("td", {}, when(report.modified)),
    ),
  );
  root.append(
    el(
      "section",
      { class: "panel scroll", "aria-label": "Reports" },
      el(
        "table",
        { class: "reports" },
        el("caption", { class: "hidden-text" }, folder ? `Reports in ${folder}` : "Reports"),
        el("thead", {}, el("tr", {}, ["Name", "Kind", "Summary", "Written"].map((text) => el("th", { scope: "col" }, text)))),
        el("tbody", {}, rows),
      ),
    ),
  );
}

function addressOf(report) {
  return `#/reports/${encodeURIComponent(report.id)}`;
}

function showReport(root, report) {
  const source = `api/reports/${encodeURIComponent(report.id)}`;
  root.append(
    el("p", { class: "small" }, el("a", { href: "#/reports" }, "All reports")),
    el(
      "div",
      { class: "head" },
      el("h1", {}, report.name),
      el("a", { href: source, target: "_blank", rel: "noopener" }, "Open in a new tab"),
    ),
    // The report is untrusted: in this sandbox it runs no scripts and has no access to the console.
    el("iframe", { class: "report", sandbox: "", src: source, title: `${KINDS[report.kind] ?? "Report"} ${report.name}` }),
  );
}
