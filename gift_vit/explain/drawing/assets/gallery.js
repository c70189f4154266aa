"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [gridHeight, gridWidth] = data.grid, [height, width] = data.size;
const bytes = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));
const tables = Object.fromEntries(Object.entries(data.tables).map(([name, table]) => [name, bytes(table)]));
const element = id => document.getElementById(id);
const state = { layer: data.layer, cluster: data.cluster, image: 0, response: "post", colours: data.colours, thresholded: true };

// bilinear upsampling with half-pixel centres and clamped edges: for every pixel two patches and the weight of the second
function taps(patches, pixels) {
  return Array.from({ length: pixels }, (_, pixel) => {
    const place = Math.min(Math.max((pixel + 0.5) * patches / pixels - 0.5, 0), patches - 1), low = Math.floor(place);
    return [low, Math.min(low + 1, patches - 1), place - low];
  });
}
const rowTaps = taps(gridHeight, height), columnTaps = taps(gridWidth, width);

// a map at every pixel, scaled to 0..1 over its own pixels; a constant one is 0
function normalised(grid) {
  const map = new Float32Array(height * width);
  let low = Infinity, high = -Infinity, index = 0;
  for (const [top, bottom, down] of rowTaps) {
    for (const [left, right, along] of columnTaps) {
      const upper = grid[top * gridWidth + left] * (1 - along) + grid[top * gridWidth + right] * along;
      const lower = grid[bottom * gridWidth + left] * (1 - along) + grid[bottom * gridWidth + right] * along;
      const value = upper * (1 - down) + lower * down;
      map[index++] = value;
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return high > low ? map.map(value => (value - low) / (high - low)) : map.fill(0);
}

function minMax(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  const span = Math.max(high - low, 1e-8);
  return values.map(value => (value - low) / span);
}

// as the paper's figures: the colour of zero lies over the rest
function paintJet(pixels, map) {
  const painted = new Float32Array(map.length * 3);
  map.forEach((value, i) => {
    const entry = 3 * Math.floor(255 * value);
    for (let c = 0; c < 3; c++) painted[3 * i + c] = tables.jet[entry + c] / 255;
  });
  const mixed = minMax(painted).map((value, i) => data.alpha * value + (1 - data.alpha) * pixels[4 * Math.floor(i / 3) + i % 3] / 255);
  return minMax(mixed).map(value => 255 * value);
}

// grey where the map is zero, tinted elsewhere
function paintTint(pixels, map) {
  const low = state.thresholded ? data.threshold : 0, table = tables[state.colours], result = new Float32Array(map.length * 3);
  map.forEach((value, i) => {
    const grey = 0.299 * pixels[4 * i] + 0.587 * pixels[4 * i + 1] + 0.114 * pixels[4 * i + 2];
    const entry = 3 * Math.min(255, Math.floor(256 * (value - low) / (1 - low)));
    const tinted = value > 0 || !state.thresholded;
    for (let c = 0; c < 3; c++) result[3 * i + c] = tinted ? data.alpha * table[entry + c] + (1 - data.alpha) * grey : grey;
  });
  return result;
}

function draw(canvas, image, layer, cluster) {
  const cells = gridHeight * gridWidth, start = (layer * data.clusters.length + cluster) * cells;
  let map = normalised(image.maps[state.response].subarray(start, start + cells));
  if (state.thresholded) map = map.map(value => value > data.threshold ? value : 0);
  const colours = state.colours === "jet" ? paintJet(image.pixels, map) : paintTint(image.pixels, map);
  const context = canvas.getContext("2d"), picture = context.createImageData(width, height);
  for (let i = 0; i < map.length; i++) {
    for (let c = 0; c < 3; c++) picture.data[4 * i + c] = Math.round(colours[3 * i + c]);
    picture.data[4 * i + 3] = 255;
  }
  context.putImageData(picture, 0, 0);
}

function newCanvas(label) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  return canvas;
}

function drawStrips() {
  const focus = data.images[state.image];
  element("clusters").childNodes.forEach((button, index) => draw(button.firstChild, focus, state.layer, index));
  element("layers").childNodes.forEach((button, index) => draw(button.firstChild, focus, index, state.cluster));
}

// looked: what is pointed at, shown for as long as it is
function drawPictures(looked = {}) {
  const { layer, cluster } = { ...state, ...looked };
  for (const image of data.images) draw(image.canvas, image, layer, cluster);
  const when = state.response === "post" ? "after" : "before";
  element("status").textContent = `${data.layers[layer]}, cluster ${data.clusters[cluster]}, ${when} the update`;
  for (const [name, index] of [["cluster", cluster], ["layer", layer]]) {
    element(`${name}s`).childNodes.forEach((button, own) => {
      button.setAttribute("aria-checked", own === state[name]);
      button.tabIndex = own === state[name] ? 0 : -1;
      button.classList.toggle("looked", own === index && own !== state[name]);
    });
  }
}

function drawBar() {
  const jet = state.colours === "jet", low = state.thresholded && !jet ? data.threshold : 0;
  const context = element("bar").getContext("2d"), picture = context.createImageData(256, 1);
  for (let i = 0; i < 256; i++) {
    const entry = jet && state.thresholded && i / 255 <= data.threshold ? 0 : i;
    picture.data.set([...tables[state.colours].subarray(3 * entry, 3 * entry + 3), 255], 4 * i);
  }
  context.putImageData(picture, 0, 0);
  element("low").textContent = low;
}

function update(changes) {
  Object.assign(state, changes);
  for (const name of ["layer", "response", "colours"]) element(name).value = state[name];
  element("thresholded").checked = state.thresholded;
  data.images.forEach((image, index) => image.button.setAttribute("aria-pressed", index === state.image));
  drawBar();
  drawStrips();
  drawPictures();
  for (const strip of document.querySelectorAll(".strip")) {
    const chosen = strip.querySelector("[aria-checked=true]");
    strip.scrollLeft = chosen.offsetLeft - strip.offsetLeft - (strip.clientWidth - chosen.clientWidth) / 2;
  }
}

function buildStrip(name, labels) {
  labels.forEach((label, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "radio");
    button.append(newCanvas(""), String(label));
    button.setAttribute("aria-label", `${name} ${label}`);
    button.addEventListener("click", () => update({ [name]: index }));
    button.addEventListener("pointerenter", () => drawPictures({ [name]: index }));
    button.addEventListener("pointerleave", () => drawPictures());
    element(`${name}s`).append(button);
  });
}

function buildPicture(image, index) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  image.canvas = newCanvas(image.caption);
  image.button = document.createElement("button");
  image.button.type = "button";
  image.button.append(image.canvas);
  image.button.addEventListener("click", () => update({ image: index }));
  image.button.addEventListener("pointerenter", () => image.canvas.getContext("2d").drawImage(image.bare, 0, 0));
  image.button.addEventListener("pointerleave", () => drawPictures());
  caption.textContent = image.caption;
  caption.classList.toggle("wrong", image.wrong);
  figure.append(image.button, caption);
  element("pictures").append(figure);
}

async function readImage(image) {
  image.bare = new Image();
  image.bare.src = image.source;
  await image.bare.decode();
  const context = newCanvas("").getContext("2d", { willReadFrequently: true });
  context.drawImage(image.bare, 0, 0);
  image.pixels = context.getImageData(0, 0, width, height).data;
  image.maps = { post: bytes(image.post), pre: bytes(image.pre) };
}

const turned = (name, step, count) => ({ [name]: (state[name] + step + count) % count });
const other = (names, name) => names[(names.indexOf(name) + 1) % names.length];
const KEYS = {
  ArrowLeft: () => turned("cluster", -1, data.clusters.length),
  ArrowRight: () => turned("cluster", 1, data.clusters.length),
  ArrowUp: () => turned("layer", -1, data.layers.length),
  ArrowDown: () => turned("layer", 1, data.layers.length),
  p: () => ({ response: other(["post", "pre"], state.response) }),
  t: () => ({ thresholded: !state.thresholded }),
  c: () => ({ colours: other(Object.keys(tables), state.colours) }),
};

document.addEventListener("keydown", event => {
  const key = KEYS[event.key];
  if (!key || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select")) return;
  event.preventDefault();
  update(key());
  if (event.target.matches(".strip button")) event.target.parentNode.querySelector("[aria-checked=true]").focus();
});

(async () => {
  await Promise.all(data.images.map(readImage));
  data.layers.forEach((name, index) => element("layer").add(new Option(name, index)));
  buildStrip("cluster", data.clusters);
  buildStrip("layer", data.layers);
  data.images.forEach(buildPicture);
  for (const name of ["response", "colours"]) element(name).addEventListener("change", event => update({ [name]: event.target.value }));
  element("layer").addEventListener("change", event => update({ layer: Number(event.target.value) }));
  element("thresholded").addEventListener("change", event => update({ thresholded: event.target.checked }));
  update({});
  document.body.dataset.ready = "";
})();
