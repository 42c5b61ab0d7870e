// Sends an image to a model and draws the answer: boxes with names, or the most probable classes.

const MOST_CLASSES = 5;
const MOST_BOXES = 100; // in the list below a picture
const WIDEST = 1280; // pixels of a picture on the page; photos have more
const COLORS = 6; // of boxes, see status.css
const SMALL = 128; // pixels; smaller pictures are scaled up without smoothing
const SVG = "http://www.w3.org/2000/svg";

// Shows the answer of a model in its panel. The headers allow the request.
export async function tryImage(panel, file, headers) {
  const answer = panel.querySelector(".answer");
  const { model } = panel.dataset;
  answer.replaceChildren(element("p", "note", `${file.name}: sent to ${model}`));
  try {
    const start = performance.now();
    const outputs = await infer(model, file, headers);
    const took = performance.now() - start;
    const picture = await draw(file);
    const boxes = outputs.boxes !== undefined;
    const said = boxes ? await detected(outputs, picture) : await classified(model, outputs);
    const caption = `${file.name}: ${said.summary} in ${took.toFixed(took < 10 ? 1 : 0)} ms, there and back`;
    answer.replaceChildren(element("p", "", caption), ...(picture ? [picture.node] : [unshown()]), said.list);
  } catch (error) {
    answer.replaceChildren(element("p", "problem", error.message));
  }
}

// Returns the data of each output by its name.
async function infer(model, file, headers) {
  // An empty JSON: the body is the file itself.
  const given = { ...headers, "Inference-Header-Content-Length": "0" };
  const response = await fetch(`/v2/models/${model}/infer`, { method: "POST", headers: given, body: file });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return Object.fromEntries(answer.outputs.map((output) => [output.name, output.data]));
}

// Returns a picture of the file with room for boxes, or null if this browser cannot decode it.
async function draw(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return null;
  }
  const { width, height } = bitmap;
  const scale = Math.min(1, WIDEST / width);
  const canvas = element("canvas", Math.max(width, height) <= SMALL ? "small" : "");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const overlay = document.createElementNS(SVG, "svg");
  overlay.setAttribute("role", "img");
  const node = element("div", "picture");
  node.append(canvas, overlay);
  return { node, overlay, width, height };
}

function detected(outputs, picture) {
  const count = outputs.scores.length;
  const found = outputs.scores.map((score, index) => ({
    name: outputs.names[index],
    kind: outputs.class_ids[index] % COLORS,
    text: `${outputs.names[index]} ${percent(score)}`,
    score,
    box: outputs.boxes.slice(4 * index, 4 * index + 4),
  }));
  const summary = count === 1 ? "1 box" : `${count} boxes`;
  if (picture) {
    picture.overlay.setAttribute("aria-label", found.map(({ text }) => text).join(", ") || "no boxes");
    // The highest score is drawn last, on top of the others.
    for (const each of [...found].reverse()) picture.overlay.append(...drawnBox(each, picture));
  }
  return { summary, list: table(found.slice(0, MOST_BOXES).map(({ name, score, kind }) => [name, score, kind])) };
}

// In percent of the picture, so that names keep their size whatever the width of the page is.
function drawnBox({ box, kind, text }, { width, height }) {
  const [x1, y1, x2, y2] = box;
  const [left, top] = [(100 * x1) / width, (100 * y1) / height];
  const size = { width: `${(100 * (x2 - x1)) / width}%`, height: `${(100 * (y2 - y1)) / height}%` };
  const place = { x: `${left}%`, y: `${top}%` };
  const right = left > 70; // a name that would leave the picture ends with its box
  const name = svg("text", {
    class: `tag kind-${kind}${right ? " end" : ""}`,
    x: right ? `${(100 * x2) / width}%` : place.x,
    y: place.y,
    dx: right ? -3 : 3,
    dy: top < 6 ? 14 : -5,
  });
  name.textContent = text;
  return [
    svg("rect", { class: "halo", ...place, ...size }),
    svg("rect", { class: `box kind-${kind}`, ...place, ...size }),
    name,
  ];
}

async function classified(model, outputs) {
  const names = await classNames(model);
  const most = Math.max(...outputs.logits);
  const weights = outputs.logits.map((logit) => Math.exp(logit - most));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  const ranked = weights
    .map((weight, index) => [names[index] ?? `class ${index}`, weight / sum])
    .sort((one, other) => other[1] - one[1])
    .slice(0, MOST_CLASSES);
  return { summary: `${ranked[0][0]} ${percent(ranked[0][1])}`, list: table(ranked) };
}

async function classNames(model) {
  const response = await fetch(`/v2/models/${model}`);
  if (!response.ok) return [];
  return (await response.json()).outputs[0].parameters?.classes ?? [];
}

// Rows of a name, a share from 0 to 1, and the number of a color.
function table(rows) {
  const body = element("tbody");
  for (const [name, share, kind] of rows) {
    const row = body.insertRow();
    const head = element("th", kind === undefined ? "" : `swatch kind-${kind}`, name);
    head.scope = "row";
    const bar = element("progress");
    bar.value = share;
    bar.setAttribute("aria-label", name);
    row.append(head);
    row.insertCell().append(bar);
    row.insertCell().textContent = percent(share);
  }
  const made = element("table", "ranked");
  made.append(body);
  return made;
}

function unshown() {
  return element("p", "note", "this browser does not show such files");
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
