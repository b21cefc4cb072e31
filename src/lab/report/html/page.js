"use strict";
const rows = [...document.querySelectorAll("#rows > tbody")];
const form = document.getElementById("filters");
const said = form.querySelector("output");
// What a row shows; what is behind it is too much to search at each key.
const words = rows.map(row => [row.rows[0].textContent, row.querySelector("summary").textContent].join(" ").toLowerCase());
function filter() {
  const wanted = Object.fromEntries(new FormData(form));
  const text = wanted.text.toLowerCase();
  let shown = 0;
  rows.forEach((row, place) => {
    const keys = ["scenario", "fs", "kernel", "verdict", "score"];
    const fits = keys.every(key => wanted[key] === "" || row.dataset[key] === wanted[key]) && words[place].includes(text);
    row.hidden = !fits;
    shown += fits;
  });
  said.textContent = `${shown} of ${rows.length} rows`;
}
// What is in `noscript` is text until its row is opened.
function fill(details) {
  const kept = details.querySelector(":scope > noscript");
  if (kept) kept.outerHTML = `<div>${kept.textContent}</div>`;
}
document.getElementById("rows").addEventListener("toggle", event => { if (event.target.open) fill(event.target); }, true);
form.addEventListener("input", filter);
form.addEventListener("reset", () => setTimeout(filter));
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
filter();
