"use strict";
// Sends dropped pictures to the server, one after the other, and shows its answers, newest first.
// All text is set as text: neither a file's nor a class's name can become markup.
const MOST_SHOWN = 30;
const drop = document.getElementById("drop");
const choose = document.getElementById("choose");
const answers = document.getElementById("answers");
const limit = Number(drop.dataset.limit);
let queue = Promise.resolve();

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function bar(share, tone) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("aria-hidden", "true");
  for (const [kind, width] of [["track", 1], [`fill-${tone}`, share]]) {
    const rect = document.createElementNS(space, "rect");
    rect.setAttribute("class", kind);
    rect.setAttribute("width", `${100 * width}%`);
    rect.setAttribute("height", "100%");
    svg.append(rect);
  }
  return svg;
}

const percent = (share) => `${(100 * share).toFixed(1)}%`;

function answerList(found) {
  const list = element("dl", undefined, "answers");
  for (const [rank, answer] of found.answers.entries()) {
    list.append(element("dt", answer.label, "name"));
    const row = element("dd");
    const spread = found.samples > 1 ? ` ± ${(100 * answer.std).toFixed(1)}` : "";
    row.append(bar(answer.probability, rank ? 9 : 0), element("span", percent(answer.probability) + spread));
    list.append(row);
  }
  return list;
}

function measures(figures) {
  const list = element("dl", undefined, "measures");
  for (const figure of figures) {
    list.append(element("dt", figure.name), element("dd", figure.value, "value"), element("dd", figure.meaning));
  }
  return list;
}

function fill(card, found) {
  if (found.image) {
    const image = element("img");
    image.src = found.image;
    image.alt = `the picture, and beside it what the answer ${found.answers[0].label} rests on`;
    card.append(image);
  } else card.classList.add("bare");
  const side = element("div");
  side.append(element("p", found.answers[0].label, "first name"));
  if (found.abstain) side.append(element("p", "Not sure enough: leave this picture to a person.", "warning"));
  if (found.unlike) side.append(element("p", "Unlike the training data: the answer may mean nothing.", "warning"));
  side.append(answerList(found), measures(found.figures));
  card.append(side);
}

async function ask(file) {
  if (file.size > limit) throw new Error(`larger than ${limit / 1e6} MB`);
  const headers = { "Content-Type": "application/octet-stream" };
  const response = await fetch("predict", { method: "POST", headers, body: file });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error);
  return found;
}

function add(file) {
  const card = element("section", undefined, "answer");
  const waiting = element("p", "…", "note");
  card.append(element("h2", file.name || "pasted picture", "name"), waiting);
  answers.prepend(card);
  while (answers.children.length > MOST_SHOWN) answers.lastElementChild.remove();
  queue = queue.then(async () => {
    try {
      const found = await ask(file);
      waiting.remove();
      fill(card, found);
    } catch (error) {
      waiting.remove();
      card.append(element("p", error.message, "warning"));
    }
    card.dataset.done = "yes";
  });
}

const addAll = (files) => { for (const file of files) add(file); };

choose.addEventListener("change", () => { addAll(choose.files); choose.value = ""; });
document.addEventListener("paste", (event) => addAll(event.clipboardData.files));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  addAll(event.dataTransfer.files);
});
