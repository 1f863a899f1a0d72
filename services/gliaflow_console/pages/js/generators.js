/** Synthetic features beside real ones: choose a class, a count, and one or two generators. */

import { complain, get, post, request } from "./api.js";
import { el, gradeChip, percent, plural, probability, setText, UNKNOWN } from "./format.js";
import { mapGrid } from "./maps.js";

const COUNT = 200; // enough for distances that vary little
const ACCEPTED = "Accepted by the critic";
const FLOOR = "Floor (real and real)";
const BETTER = "Better is";
const WHAT = [
  [ACCEPTED, "Share of the drawn features that the generator's critic took for the right grade. The others were drawn again."],
  [FLOOR, "The same distance between two groups of real features. Synthetic features cannot be expected to come nearer than this."],
];

export async function generatorsPage(root) {
  const known = await get("api/generators");
  root.append(
    el("h1", {}, "Generators"),
    el(
      "p",
      { class: "muted" },
      "A generator draws synthetic features of a grade, as the U-Net would make them at its tap. They make up for rare grades ",
      "when a classifier is trained. This page draws some and puts them beside features of a real slice.",
    ),
  );
  if (known.problem) root.append(el("p", { class: "notice info" }, known.problem));
  if (!known.generators.length) return () => {};
  const form = generatorForm(known);
  const results = el("div", { class: "stack" });
  const state = el("p", { class: "muted", role: "status" });
  let turn = 0;

  async function draw(event) {
    event.preventDefault();
    const mine = ++turn;
    const wanted = form.values();
    form.disable(true);
    setText(state, "The console draws features and measures them. This takes some seconds…");
    state.classList.remove("bad-text");
    try {
      const drawn = [];
      for (const generator of wanted.generators) drawn.push(await post("api/generate", { ...wanted.body, generator }));
      if (mine !== turn) return;
      results.replaceChildren(...comparison(drawn));
      setText(state, "");
    } catch (error) {
      if (mine !== turn) return;
      results.replaceChildren();
      complain(state, error);
      state.classList.add("bad-text");
    } finally {
      if (mine === turn) form.disable(false);
    }
  }

  form.element.addEventListener("submit", draw);
  root.append(el("section", { class: "panel", "aria-label": "What to draw" }, form.element, state), results);
  return () => {
    turn = -1;
  };
}

function generatorForm(known) {
  const name = (each) => {
    const notes = [each.default && "default", each.name === known.served && "served by the pipeline"].filter(Boolean);
    return notes.length ? `${each.name} (${notes.join(", ")})` : each.name;
  };
  const options = () => known.generators.map((each) => el("option", { value: each.name }, name(each)));
  const grade = el("select", {}, known.classes.map((each) => el("option", { value: each }, each)));
  const first = el("select", {}, options());
  const second = el("select", {}, el("option", { value: "" }, "none"), options());
  const count = el("input", { type: "number", min: 1, max: known.most, value: Math.min(COUNT, known.most), required: true });
  const seed = el("input", { type: "number", min: 0, max: Number.MAX_SAFE_INTEGER, value: 0, required: true });
  const button = el("button", { class: "primary" }, "Draw features");
  const start = known.generators.find((each) => each.name === known.served) ?? known.generators.find((each) => each.default);
  first.value = (start ?? known.generators[0]).name;
  second.value = known.generators.find((each) => each.name !== first.value)?.name ?? "";
  const field = (text, control, title) => el("label", { class: "field", title }, text, control);
  const element = el(
    "form",
    { class: "controls generate" },
    field("Grade", grade, "HGG: high-grade glioma. LGG: low-grade glioma"),
    field("Generator", first, "The features of this one are in the first column"),
    known.generators.length > 1 && field("Beside it", second, "A second generator, with the same grade, count and seed"),
    field(`Count (1 to ${known.most})`, count, "How many features to draw. Distances need many"),
    field("Seed", seed, "The same seed draws the same features, also in gliaflow generate"),
    button,
  );
  return {
    element,
    disable: (state) => (button.disabled = state),
    values: () => ({
      generators: [...new Set([first.value, second.value])].filter(Boolean),
      body: { grade: grade.value, count: Number(count.value), seed: Number(seed.value) },
    }),
  };
}

/* Results */

function comparison(drawn) {
  const all = drawn.map((each) => each.real).filter(Boolean);
  const real = all.sort((a, b) => b.maps.channels.length - a.maps.channels.length)[0]; // a generator may add channels
  return [
    numbers(drawn),
    !real && el("p", { class: "notice info" }, withoutReal(drawn[0].grade)),
    el(
      "div",
      { class: "pair" },
      real && realPanel(real),
      drawn.map((each) => syntheticPanel(each)),
    ),
  ].filter(Boolean);
}

function withoutReal(grade) {
  return (
    `There are no real features of ${grade} to put beside these: send a scan or a phantom on the first page, and draw again. ` +
    "Without them, each generator's maps have a grey scale of their own."
  );
}

function numbers(drawn) {
  const floors = new Map(drawn.flatMap((each) => each.distances.map((of) => [of.name, of])));
  return el(
    "section",
    { class: "panel", "aria-labelledby": "numbers-title" },
    el("h2", { id: "numbers-title" }, "How near the synthetic features come to real ones"),
    floors.size > 0 && el("p", { class: "muted small" }, measuredText(drawn)),
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "distances stacked" },
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "col" }, "Measure"),
            drawn.map((each) => el("th", { scope: "col", class: "number" }, each.generator)),
            el("th", { scope: "col", class: "number" }, FLOOR),
            el("th", { scope: "col" }, BETTER),
          ),
        ),
        el(
          "tbody",
          {},
          el(
            "tr",
            {},
            el("th", { scope: "row" }, ACCEPTED),
            drawn.map((each) =>
              el("td", { class: "number", data: { label: each.generator } }, `${percent(each.acceptance)} (${each.accepted} of ${each.drawn})`),
            ),
            el("td", { class: "number", data: { label: FLOOR } }, UNKNOWN),
            el("td", { data: { label: BETTER } }, "higher"),
          ),
          [...floors.values()].map((measure) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, measure.name),
              drawn.map((each) => el("td", { class: "number", data: { label: each.generator } }, short(each.distances.find((of) => of.name === measure.name)?.synthetic))),
              el("td", { class: "number", data: { label: FLOOR } }, short(measure.floor)),
              el("td", { data: { label: BETTER } }, { true: "higher", false: "lower" }[measure.higher_is_better] ?? "near the floor"),
            ),
          ),
        ),
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "What these measures mean"),
      el(
        "dl",
        { class: "facts" },
        [...WHAT, ...[...floors.values()].map((measure) => [measure.name, measure.description])].map(([name, text]) => [
          el("dt", {}, name),
          el("dd", {}, text),
        ]).flat(),
      ),
    ),
    [...new Set(drawn.map((each) => each.distances_note))].filter(Boolean).map((note) => el("p", { class: "muted small" }, note)),
  );
}

/** How many features the distances are of: of a small count, more are drawn. */
function measuredText(drawn) {
  const counts = [...new Set(drawn.map((each) => each.measured))].join(" and ");
  const few = drawn.some((each) => each.measured > each.count) ? `, since ${drawn[0].count} would measure little` : "";
  return `The distances are those of ${counts} accepted features of each generator${few}.`;
}

function short(value) {
  return value === null || value === undefined ? UNKNOWN : String(Number(value.toPrecision(3)));
}

function realPanel(real) {
  return el(
    "section",
    { class: "panel", "aria-label": "Real features" },
    el("h2", {}, "Real"),
    el(
      "p",
      { class: "small" },
      el("a", { href: `#/scan/${encodeURIComponent(real.scan)}` }, real.name),
      ": the pipeline says ",
      gradeChip(real.grade),
      `, P(HGG) ${probability(real.p_hgg)}. Shown: slice ${real.slice}, whose own P(HGG) is ${probability(real.slice_p_hgg)}.`,
    ),
    real.note && el("p", { class: "muted small" }, real.note),
    mapGrid(real.maps, "Feature maps of a real slice"),
  );
}

function syntheticPanel(drawn) {
  const problem = el("p", { class: "bad-text small", role: "alert", hidden: true });
  const button = el("button", { type: "button", title: "The file that gliaflow generate writes", on: { click: save } }, "Download all (.npz)");
  const more = drawn.samples.slice(1);

  async function save() {
    const { grade, count, generator, seed } = drawn;
    button.disabled = true;
    problem.hidden = true;
    try {
      const response = await request("api/generate", {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "application/octet-stream" },
        body: JSON.stringify({ grade, count, generator, seed }),
      });
      const address = URL.createObjectURL(await response.blob());
      el("a", { href: address, download: `${generator}_${grade}_${seed}.npz` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      problem.hidden = false;
      complain(problem, error);
    } finally {
      button.disabled = false;
    }
  }

  return el(
    "section",
    { class: "panel", "aria-label": `Synthetic features of ${drawn.generator}` },
    el("div", { class: "head" }, el("h2", {}, `Synthetic: ${drawn.generator}`), gradeChip(drawn.grade)),
    el("p", { class: "small" }, `Seed ${drawn.seed}; the critic accepted ${percent(drawn.acceptance)}. The number under a picture is its channel.`),
    mapGrid(drawn.maps, `Feature maps of one synthetic sample of ${drawn.generator}`),
    more.length > 0 &&
      el(
        "details",
        {},
        el("summary", {}, `${plural(more.length, "more sample")}`),
        more.map((sample, index) => mapGrid(sample, `Synthetic sample ${index + 2}`)),
      ),
    el("div", { class: "controls" }, button),
    problem,
  );
}
