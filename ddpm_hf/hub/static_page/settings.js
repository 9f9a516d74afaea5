// The settings beside the pictures: what they offer for a model, and what a person asks for.

import { MOST_SEED, labelOf } from "./random.js";

const RANDOM = "random";
const EACH_IN_TURN = "turn";
const SMALL = 64 * 64; // pixels of a picture that is drawn quickly

const field = (id) => document.getElementById(id);

const COUNTS = { sample: "count", interpolate: "frames", inpaint: "paintings" };

export class Settings {
  constructor(about) {
    this.about = about;
    const names = about.class_names ?? Array.from({ length: about.classes }, (_, i) => `${i}`);
    this.names = names.map((name) => name.replaceAll("_", " "));
    const [, height, width] = about.sample_shape;
    if (height * width > SMALL) field("count").value = 4; // each takes long
    for (const part of document.querySelectorAll("[data-if]")) {
      const wanted = { classes: names.length > 0, guidance: about.class_names !== null && !about.student };
      part.hidden = !wanted[part.dataset.if];
    }
    const random = about.class_frequencies || !about.class_names ? "random" : "any";
    field("class").append(new Option(random, RANDOM), new Option("each in turn", EACH_IN_TURN));
    this.names.forEach((name, number) => field("class").append(new Option(name, number)));
    for (const steps of Object.keys(about.tables)) {
      field("steps").append(new Option(steps, steps, false, steps === `${about.steps_at_first}`));
    }
    if (about.student) field("steps-help").textContent = "Of denoising, which the model learned for.";
    field("steps").disabled = Object.keys(about.tables).length === 1;
    for (const output of document.querySelectorAll("output")) {
      const input = field(output.htmlFor.value);
      const show = () => (output.value = input.value);
      input.addEventListener("input", show);
      show();
    }
    for (const id of ["seed", "second-seed"]) {
      field(`random-${id}`).onclick = () => (field(id).value = Math.floor(Math.random() * 10 ** 6));
    }
  }

  // Show the settings of one tool.
  choose(tool) {
    const random = this.isOpen(tool) ? "Random: what suits the picture." : "Random: as often as in training.";
    field("class-help").textContent = this.about.class_frequencies ? random : "What the pictures show.";
    for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== tool;
  }

  // Return what a person asks of a tool, as a job for the worker. `count` can name another number of pictures.
  job(tool, count = Number(field(COUNTS[tool]).value)) {
    const seed = this.seed("seed");
    const numbers = Array.from({ length: count }, (_, i) => this.label(tool, seed, tool === "interpolate" ? 0 : i));
    return {
      seed,
      count,
      steps: field("steps").value,
      labels: this.names.length ? numbers : null,
      guidance: field("guidance").closest("[hidden]") ? 1 : Number(field("guidance").value),
      ...(tool === "interpolate" && { seeds: [seed, this.seed("second-seed")] }),
      ...(tool === "inpaint" && { resamplings: Number(field("resamplings").value) }),
    };
  }

  // Return the words below each picture of a job.
  captions(job) {
    return (job.labels ?? Array(job.count).fill(-1)).map((label) => this.names[label] ?? "");
  }

  // Return whether random pictures have no class. Then the known pixels of an inpainting decide what it shows.
  isOpen(tool) {
    const { class_frequencies: frequencies, class_names: names, student } = this.about;
    return names && !student && (tool === "inpaint" || !frequencies); // a student learned to draw classes
  }

  // Return the number of the class of a picture. The number after the last class stands for none.
  label(tool, seed, picture) {
    const [asked, { class_frequencies: frequencies, classes }] = [field("class").value, this.about];
    if (asked === EACH_IN_TURN) return picture % classes;
    if (asked !== RANDOM) return Number(asked);
    return this.isOpen(tool) ? classes : labelOf(seed, picture, frequencies ?? Array(classes).fill(1));
  }

  seed(id) {
    const [text, seed] = [field(id).value.trim(), Number(field(id).value)];
    if (text && Number.isInteger(seed) && seed >= 0 && seed <= MOST_SEED) return seed;
    field(id).focus();
    throw new Error(`The seed is ${text || "empty or no number"}; expected a whole number from 0 to ${MOST_SEED}.`);
  }
}
