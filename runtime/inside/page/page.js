// The state of the page. Every event changes it here, and the parts draw what they are given.

const data = JSON.parse(document.getElementById("contents").textContent);
const maps = [];
const state = { row: 0, head: 0, token: data.tokens.length - 1, pinned: false, ahead: false, byRank: false };

const overview = makeOverview(data, (row, head) => choose({ row, head }));
const head = makeHead(data, { point: readMap, pin });
const text = makeText(data, { visit, leave: () => readText(null), pin });
const lensList = makeLensList(data.lens);
const lensTable = makeLensTable(data, { pin });
const [layerSelect, headSelect] = ["layer", "head"].map((id) => document.getElementById(id));

function choose(change) {
  Object.assign(state, change);
  showHead();
}

/** Show the hovered or focused token; once a token is pinned, read out the weight between the two instead. */
function visit(token) {
  if (state.pinned) readText(token);
  else if (token !== state.token) {
    state.token = token;
    showToken();
  }
}

function pin(token) {
  state.pinned = !(state.pinned && token === state.token);
  state.token = token;
  showToken();
}

function map() {
  return mapOf(maps[state.row], state.head, data);
}

function showHead() {
  overview.select(state.row, state.head);
  layerSelect.value = state.row;
  headSelect.value = state.head;
  const name = `Layer ${data.layers[state.row]}, head ${state.head}`;
  document.getElementById("head-title").textContent = name;
  document.getElementById("map").setAttribute("aria-label", name);
  head.draw(map());
  showToken();
}

function showToken() {
  const { token, pinned, ahead } = state;
  head.show(token, ahead);
  text.show({ token, pinned, ahead, weights: weightsOf(map(), token, ahead) });
  lensList.show(data.tokens, token);
  readText(null);
  lensTable.show(token);
}

/** The attention weight between each token and the chosen one. */
function weightsOf(chosen, token, ahead) {
  return data.tokens.map((_, other) => (ahead ? weightOf(chosen, other, token) : weightOf(chosen, token, other)));
}

function named(token) {
  return `${quoted(data.tokens[token])} (${token})`;
}

function pairReading(query, key) {
  return key > query
    ? `${named(query)} cannot look ahead to ${named(key)}`
    : `${named(query)} looks at ${named(key)}: ${percent(weightOf(map(), query, key))}`;
}

function readMap(at) {
  const hint = "Point at a cell, or use arrow keys; click to pin its query.";
  document.getElementById("map-reading").textContent = at ? pairReading(at.query, at.key) : hint;
}

function readText(other) {
  const [query, key] = state.ahead ? [other, state.token] : [state.token, other];
  const pinned = "Pinned: point at another token for its weight; Esc unpins.";
  const hint = state.pinned ? pinned : "Point at a token, or click to pin it.";
  document.getElementById("text-reading").textContent = other === null ? hint : pairReading(query, key);
}

function addChoices() {
  layerSelect.append(...data.layers.map((layer, row) => new Option(layer, row)));
  headSelect.append(...Array.from({ length: data.heads }, (_, number) => new Option(number, number)));
  layerSelect.addEventListener("change", () => choose({ row: Number(layerSelect.value) }));
  headSelect.addEventListener("change", () => choose({ head: Number(headSelect.value) }));
  document.getElementById("direction").addEventListener("change", (event) => {
    choose({ ahead: event.target.value === "ahead" });
  });
  document.getElementById("colouring").addEventListener("change", (event) => {
    state.byRank = event.target.value === "rank";
    document.getElementById("ranks").hidden = !state.byRank;
    lensTable.colour(state.byRank);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && state.pinned) pin(state.token);
  });
}

/** Let screen readers speak readings for keyboard users, but not for a pointer that passes over everything. */
function speakToKeys() {
  const readings = document.querySelectorAll("[aria-live]");
  const speak = (live) => readings.forEach((reading) => (reading.ariaLive = live));
  document.addEventListener("keydown", () => speak("polite"), true);
  document.addEventListener("pointermove", () => speak("off"), true);
}

function count(number, name) {
  return `${number} ${name}${number === 1 ? "" : "s"}`;
}

function introduce() {
  const sizes = [[data.tokens.length, "token"], [data.layers.length, "layer"], [data.heads, "head"]];
  document.getElementById("size").textContent = sizes.map((size) => count(...size)).join(" · ");
  document.getElementById("last-rank").textContent = data.vocabulary.toLocaleString("en");
  for (const tick of document.querySelectorAll("[data-share]")) {
    tick.style.left = `${100 * Math.sqrt(tick.dataset.share)}%`;
  }
}

function repaint() {
  readColours();
  text.repaint();
  lensList.repaint();
  lensTable.colour(state.byRank);
  maps.forEach((_, row) => overview.draw(row, maps[row]));
  head.measure();
  showHead();
}

function measure() {
  head.measure();
  head.draw(map());
  lensTable.measure();
  lensTable.show(state.token);
}

async function unpackAll() {
  for (const [row, packed] of data.maps.entries()) {
    maps[row] = await unpackLayer(packed);
    overview.draw(row, maps[row]);
    if (row === state.row) showHead();
  }
  document.documentElement.dataset.ready = "true";
}

introduce();
addChoices();
speakToKeys();
readMap(null);
whenColoursChange(repaint);
new ResizeObserver(measure).observe(document.querySelector("main"));
unpackAll().catch((error) => {
  const notice = document.getElementById("failure");
  notice.hidden = false;
  notice.textContent = `The attention maps cannot be unpacked: ${error.message}`;
});
