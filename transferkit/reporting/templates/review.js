"use strict";
// Shows one suspect at a time and sends what is decided; the server has it on disk when it answers.
// All text is set as text: neither a file's nor a class's name can become markup.
const at = (id) => document.getElementById(id);
const total = Number(at("review").dataset.total);
const KEYS = { c: "change", k: "keep", l: "leave out", u: "unsure" };
const cards = new Map();
let state, current = 0, busy = true;

async function send(path, content = {}) {
  const headers = { "Content-Type": "application/octet-stream" };
  let response;
  try {
    response = await fetch(path, { method: "POST", headers, body: JSON.stringify(content) });
  } catch {
    throw new Error("transferkit does not answer: is it still running? Decisions so far are saved.");
  }
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

function card(number) {
  if (!cards.has(number)) {
    if (cards.size > 20) cards.delete(cards.keys().next().value);
    const asked = send("card", { number });
    asked.catch(() => cards.delete(number));
    cards.set(number, asked);
  }
  return cards.get(number);
}

function gallery(list, label, pictures) {
  list.replaceChildren(...pictures.map((each) => {
    const item = document.createElement("li");
    item.className = "frame";
    const image = document.createElement("img");
    image.src = each.picture || "data:,";
    image.alt = `labelled ${label}: ${each.path}`;
    item.append(image);
    return item;
  }));
  if (!pictures.length) list.textContent = "none";
}

const outcome = (decision) => ({
  change: `changed to ${decision.label}`, keep: `kept as ${decision.label}`,
  "leave out": "left out", unsure: "unsure",
})[decision.action];

function refresh() {
  const { decisions, counts } = state;
  const done = decisions.filter(Boolean).length;
  at("progress").value = done;
  const words = `${counts.change} changed, ${counts.keep} kept, ${counts["leave out"]} left out, ${counts.unsure} unsure`;
  at("counts").textContent = `${done} of ${total} decided: ${words}`;
  at("ended").textContent = words;
  at("end").hidden = done < total;
  at("undo").setAttribute("aria-disabled", String(!state.can_undo));
  const decision = decisions[current];
  for (const button of document.querySelectorAll("[data-action]")) {
    const pressed = decision && button.dataset.action === decision.action
      && (decision.action !== "change" || decision.label === at("to").textContent);
    button.setAttribute("aria-pressed", String(Boolean(pressed)));
  }
}

async function show(number, before = "") {
  current = number;
  const found = await card(number);
  const { label, proposed } = found;
  at("title").textContent = `suspect ${number + 1} of ${total}`;
  at("picture").src = found.picture || "data:,";
  at("picture").alt = `the picture ${found.path}${found.picture ? "" : ", which can no longer be read"}`;
  at("path").textContent = found.path;
  for (const id of ["label", "kept", "near-label"]) at(id).textContent = label;
  for (const id of ["proposed", "to", "near-proposed"]) at(id).textContent = proposed;
  at("sure").textContent = `${(100 * found.sure).toFixed(0)}%`;
  gallery(at("for-label"), label, found.for_label);
  gallery(at("for-proposed"), proposed, found.for_proposed);
  refresh();
  const decision = state.decisions[number];
  at("class").value = decision && decision.action === "change" ? decision.label : proposed;
  const now = decision ? `, ${outcome(decision)}` : "";
  at("told").textContent = `${before}Suspect ${number + 1} of ${total}: labelled ${label}, probably ${proposed}, ${at("sure").textContent}${now}.`;
  for (const ahead of [number + 1, number + 2]) if (ahead < total) card(ahead).catch(() => {});
}

// One thing after another: what is pressed while a card comes was not meant for it.
async function alone(work) {
  if (busy) return;
  busy = true;
  at("card").setAttribute("aria-busy", "true");
  try {
    await work();
    at("problem").hidden = true;
  } catch (error) {
    at("problem").textContent = error.message;
    at("problem").hidden = false;
  }
  at("card").setAttribute("aria-busy", "false");
  busy = false;
}

function following(number) {
  const order = [...Array(total).keys()].map((step) => (number + 1 + step) % total);
  return order.find((each) => !state.decisions[each]);
}

const decide = (action, label) => alone(async () => {
  const { path } = await card(current);
  state = await send("decide", { number: current, action, label });
  const told = `${path} ${outcome(state.decisions[current])}. `;
  const next = following(current);
  await show(next === undefined ? current : next, told);
  if (next === undefined) at("end").focus();
});

const undo = () => alone(async () => {
  if (!state.can_undo) return;
  const found = await send("undo");
  state = found;
  await show(found.undone, "Undone. ");
});

const move = (step) => alone(() => show((current + step + total) % total));

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", () => decide(button.dataset.action, at("to").textContent));
}
at("other").addEventListener("click", () => decide("change", at("class").value));
at("back").addEventListener("click", () => move(-1));
at("forward").addEventListener("click", () => move(1));
at("undo").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  const key = event.key.toLowerCase();
  const field = event.target.matches("select, input:not([type=checkbox])");
  if (event.repeat || event.altKey || field) return;
  if ((event.ctrlKey || event.metaKey) && key === "z") { event.preventDefault(); undo(); return; }
  if (event.ctrlKey || event.metaKey || !at("keys").checked) return;
  if (KEYS[key]) decide(KEYS[key], at("to").textContent);
  else if (key === "z") undo();
  else if (key === "arrowleft") move(-1);
  else if (key === "arrowright") move(1);
  else return;
  event.preventDefault();
});

busy = false;
alone(async () => {
  state = await send("state");
  const first = following(-1);
  await show(first === undefined ? 0 : first);
});
