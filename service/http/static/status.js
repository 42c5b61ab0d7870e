// Actions, and a refresh every few seconds. Without it the page is complete except for the actions.
import { morph } from "./morph.js";
import { tryImage } from "./try_image.js";

const REFRESH_MS = 5000;
const SHOWN_MS = 10000; // of a message that is no error
const message = document.getElementById("message");
let busy = false;
let lost = false; // whether the last refresh found no daemon
let forget = 0;

function show(text, bad) {
  clearTimeout(forget);
  message.textContent = text;
  message.className = bad ? "bad" : "";
  if (!bad) forget = setTimeout(() => message.replaceChildren(), SHOWN_MS);
}

// The headers that allow a request; the page asks for a token where one is needed.
function authorization() {
  const token = document.getElementById("token");
  return token && token.value ? { Authorization: `Bearer ${token.value}` } : {};
}

async function post(url, body) {
  const response = await fetch(url, { method: "POST", headers: authorization(), body });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// What an action has done: a rollback, or a retry or cancellation of an update.
function done(answer) {
  const { model, from, to, update, file_name: file, state } = answer;
  if (to !== undefined) return `${model}: generation ${to} is live again, ${from} was before`;
  if (answer.retry_of) return `update ${update} of ${model} takes the file of update ${answer.retry_of} again`;
  return `update ${update} of ${model}, ${file}: ${state}`;
}

async function act(button, work) {
  busy = button.disabled = true;
  try {
    show(await work(), false);
  } catch (error) {
    show(error.message, true);
  } finally {
    busy = button.disabled = false;
  }
  refresh();
}

// The clipboard of navigator is there over HTTPS and on this device only.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    const focused = document.activeElement;
    area.value = text;
    area.className = "offscreen";
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    if (!copied) throw new Error(`this browser does not copy; the digest is ${text}`);
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.post) {
    act(button, async () => {
      show(`${button.getAttribute("aria-label")}: sent`);
      return done(await post(button.dataset.post));
    });
  } else if (button?.dataset.copy) {
    try {
      await copy(button.dataset.copy);
      show(`copied ${button.dataset.copy}`, false);
    } catch (error) {
      show(error.message, true);
    }
  }
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  const form = event.target.closest("form.drop");
  if (!form) return;
  const file = form.querySelector("input").files[0];
  act(form.querySelector("button"), async () => {
    show(`sending ${file.name}`);
    const answer = await post(`${form.dataset.target}?name=${encodeURIComponent(file.name)}`, file);
    form.reset();
    return `${answer.file_name} is in the drop folder of ${answer.model}`;
  });
});

// An image to try: chosen, or dropped anywhere on its panel.
document.addEventListener("change", (event) => {
  const panel = event.target.closest(".try");
  if (panel && event.target.files.length) {
    tryImage(panel, event.target.files[0], authorization());
    event.target.value = ""; // so that the same file can be chosen again
  }
});

for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    const panel = event.target.closest?.(".try");
    if (!panel) return;
    event.preventDefault();
    panel.classList.toggle("over", kind === "dragover");
    const file = event.dataTransfer.files[0];
    if (kind === "drop" && file) tryImage(panel, file, authorization());
  });
}

// Bars of a chart are read by pointing at them, or with the arrow keys.
const lastRead = new Map(); // chart -> name of its bar

function mark(chart, column) {
  chart.querySelector(".column.read")?.classList.remove("read");
  column?.classList.add("read");
}

function read(chart, column) {
  lastRead.set(chart, column.dataset.name);
  mark(chart, column);
  const { name, value } = column.dataset;
  chart.closest("figure").querySelector(".readout").textContent = `${name}: ${value}`;
}

document.addEventListener("pointerover", (event) => {
  const column = event.target.closest(".column");
  if (column) read(column.closest(".scroll.bars"), column);
});

document.addEventListener("keydown", (event) => {
  const chart = event.target.closest?.(".scroll.bars");
  const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!chart || !step) return;
  event.preventDefault();
  const columns = [...chart.querySelectorAll(".column")];
  const at = columns.findIndex((column) => column.classList.contains("read"));
  const column = columns[Math.min(Math.max(at + step, 0), columns.length - 1)];
  read(chart, column);
  column.scrollIntoView({ block: "nearest", inline: "nearest" });
});

// Times are the viewer's; the page has them in UTC.
function localize(root) {
  const two = (number) => String(number).padStart(2, "0");
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
    time.title = time.textContent;
    time.textContent = `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
  }
}

// Selected text would lose its selection if it were renewed under it.
function selecting() {
  const selection = document.getSelection();
  return selection && !selection.isCollapsed && document.querySelector("main").contains(selection.anchorNode);
}

async function refresh() {
  if (busy || document.hidden || selecting()) return;
  try {
    const fresh = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    if (busy) return;
    localize(fresh);
    morph(document.body, fresh.body);
    for (const [chart, name] of lastRead) {
      mark(chart, [...chart.querySelectorAll(".column")].find((column) => column.dataset.name === name));
    }
    document.title = fresh.title;
    if (lost) show("the daemon answers again", false);
    lost = false;
  } catch {
    lost = true;
    show("the daemon does not answer", true);
  }
}

document.documentElement.classList.add("js");
localize(document);
setInterval(refresh, REFRESH_MS);
document.addEventListener("visibilitychange", refresh);
