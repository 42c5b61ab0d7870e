// Actions, and a refresh every few seconds. Without it the page is complete except for the actions.
"use strict";

const REFRESH_MS = 5000;
const message = document.getElementById("message");
const token = document.getElementById("token");
let busy = false;

function show(text, bad) {
  message.textContent = text;
  message.className = bad ? "bad" : "";
}

async function post(url, body) {
  const headers = token ? { Authorization: `Bearer ${token.value}` } : {};
  const response = await fetch(url, { method: "POST", headers, body });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
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

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (!button) return;
  act(button, async () => {
    show("rolling back");
    const answer = await post(button.dataset.post);
    return `${answer.model}: generation ${answer.to} is live again, ${answer.from} was before`;
  });
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

// Whether a refresh would disturb reading, choosing or typing.
function inUse() {
  const main = document.querySelector("main");
  const chosen = [...main.querySelectorAll("input")].some((input) => input.value);
  return busy || document.hidden || chosen || main.querySelector("details[open]") || main.contains(document.activeElement);
}

async function refresh() {
  if (inUse()) return;
  try {
    const fresh = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    if (inUse()) return;
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.querySelector("header p").replaceWith(fresh.querySelector("header p"));
    document.title = fresh.title;
  } catch {
    show("the daemon does not answer", true);
  }
}

setInterval(refresh, REFRESH_MS);
