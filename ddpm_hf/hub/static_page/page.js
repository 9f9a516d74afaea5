// The page: it opens the model, draws the first pictures, and then what a person asks for.

import { Easel } from "./easel.js";
import { Engine } from "./engine.js";
import { Pictures } from "./pictures.js";
import { Results } from "./results.js";
import { Settings } from "./settings.js";

const NAMES = { sample: "Sample", interpolate: "Interpolate", inpaint: "Inpaint" };
// A module with one instruction of 128 bits: a browser without these cannot run the network.
const HEAD = [0, 97, 115, 109, 1, 0, 0, 0]; // "\0asm", version 1
const TYPE = [1, 5, 1, 96, 0, 1, 123]; // a function that returns 128 bits
const BODY = [3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]; // i32.const 0, i8x16.splat, i8x16.popcnt

const part = (id) => document.getElementById(id);
const tabs = Object.keys(NAMES).map((tool) => part(`tab-${tool}`));
const engine = new Engine();
let tool = "sample";
let settings, pictures, easel, results;

function say(text, progress = 0) {
  part("status").textContent = text;
  part("progress").value = progress;
}

function complain(error) {
  part("error").textContent = error.message;
  say("");
}

function choose(chosen) {
  tool = chosen;
  for (const tab of tabs) {
    const isChosen = tab.getAttribute("aria-controls") === tool;
    tab.setAttribute("aria-selected", isChosen);
    tab.tabIndex = isChosen ? 0 : -1;
    part(tab.getAttribute("aria-controls")).hidden = !isChosen;
  }
  settings.choose(tool);
  label();
}

function label() {
  part("draw").textContent = engine.busy ? "Stop" : NAMES[tool];
  part("new-picture").disabled = part("draw").disabled || engine.busy;
}

// Draw the pictures of a job, and hand each frame to `show`. Return whether all steps were taken.
async function draw(job, show) {
  const steps = Number(job.steps);
  let taken = -1; // the noise comes first
  say(`Drawing in ${steps} steps ...`);
  const begin = performance.now();
  const drawing = engine.draw(job, (frame) => {
    show(frame);
    part("progress").value = ++taken / steps;
  });
  label();
  try {
    await drawing;
    const seconds = ((performance.now() - begin) / 1000).toFixed(1);
    say(taken === steps ? `Done in ${seconds} s.` : `Stopped after ${Math.max(taken, 0)} of ${steps} steps.`);
  } finally {
    part("progress").value = 0;
    label();
  }
  return taken === steps;
}

async function drawResults() {
  part("error").textContent = "";
  const shown = results[tool];
  const job = settings.job(tool);
  if (tool === "inpaint") Object.assign(job, { x0: easel.array, known: easel.known() });
  shown.begin(settings.captions(job));
  let areAll = false;
  try {
    areAll = await draw(job, (frame) => shown.add(frame));
  } finally {
    shown.end(areAll);
  }
}

// Draw a picture for the easel: the first of the seed.
async function drawForEasel() {
  part("error").textContent = "";
  let last;
  if (await draw(settings.job("sample", 1), (frame) => (last = frame.noisy))) easel.put(last);
}

function repaint(array) {
  easel.put(array);
  choose("inpaint");
  part("tab-inpaint").focus();
  part("tab-inpaint").scrollIntoView({ block: "nearest" });
}

async function readFile(file) {
  part("error").textContent = "";
  const { array, note } = await pictures.read(file);
  easel.put(array);
  part("note").textContent = note;
}

function prepare(about) {
  const [channels, height, width] = about.sample_shape;
  document.title = part("title").textContent = about.title;
  const kind = `${channels === 1 ? "grey" : "colour"} pictures of ${width} x ${height} pixels`;
  part("subtitle").textContent = `A diffusion model of ${kind}. It draws in your browser.`;
  if (about.model) {
    const link = Object.assign(document.createElement("a"), { href: `https://huggingface.co/${about.model}` });
    link.textContent = about.model;
    part("origin").append("The model is ", link, ".");
  }
  [settings, pictures] = [new Settings(about), new Pictures(about.sample_shape)];
  part("brush").max = Math.ceil(Math.min(height, width) / 2);
  part("brush").value = Math.ceil(Math.min(height, width) / 6);
  part("brush").dispatchEvent(new Event("input"));
  easel = new Easel(part("easel"), pictures, part("brush"));
  results = Object.fromEntries(
    Object.entries({ sample: "sample", interpolate: "frame", inpaint: "painting" }).map(([each, name]) => [
      each,
      new Results(part(each), name, pictures, repaint),
    ]),
  );
  part("fields").hidden = false;
  choose("sample");
}

function connect() {
  tabs.forEach((tab, i) => {
    tab.onclick = () => choose(tab.getAttribute("aria-controls"));
    tab.onkeydown = (event) => {
      const move = { ArrowLeft: tabs.length - 1, ArrowRight: 1 }[event.key];
      if (!move) return;
      const next = tabs[(i + move) % tabs.length];
      next.focus();
      next.click();
    };
  });
  part("settings").onsubmit = (event) => {
    event.preventDefault();
    if (engine.busy) engine.stop();
    else drawResults().catch(complain);
  };
  part("new-picture").onclick = () => drawForEasel().catch(complain);
  part("clear").onclick = () => easel.clear();
  part("file").onchange = ({ target }) => target.files[0] && readFile(target.files[0]).catch(complain);
}

async function open() {
  if (!WebAssembly.validate(Uint8Array.from([...HEAD, ...TYPE, ...BODY]))) {
    throw new Error("This browser lacks SIMD for WebAssembly; use a current Chrome, Edge, Firefox or Safari.");
  }
  const answer = await fetch(new URL("./sampler.json", import.meta.url));
  if (!answer.ok) throw new Error(`sampler.json is missing (status ${answer.status}).`);
  const about = await answer.json();
  prepare(about);
  connect();
  const bytes = Object.values(about.bytes).reduce((sum, each) => sum + each);
  say(`Loading the model, ${Math.ceil(bytes / 1e6)} MB ...`);
  await engine.open(about, (progress) => (part("progress").value = progress));
  part("draw").disabled = false;
  await drawResults();
  if (!easel.array) easel.put(results.sample.arrayOf(0));
}

open().catch(complain);
