// The large map of the chosen head: queries down, keys to the right; the pointer or arrow keys read out a cell.

const ROOM = { named: 84, numbered: 44 }; // pixels beside the plot for its axis
const TOP = 7; // half a line, for the first name
const LEAST_NAMED = 13; // pixels that a cell must have for its token to be written beside it
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500];

function makeHead(data, { point, pin }) {
  const [box, plot, band, cell] = ["map", "plot", "band", "cell"].map((id) => document.getElementById(id));
  const length = data.tokens.length;
  let at = null;
  let side = 0;

  function moveTo(query, key) {
    at = key >= 0 && key <= query && query < length ? { query, key } : null;
    cell.hidden = !at;
    if (at) place(cell, [at.key, at.query, 1, 1], length);
    point(at);
  }

  plot.addEventListener("pointermove", (event) => {
    const { left, top } = plot.getBoundingClientRect();
    moveTo(Math.floor(((event.clientY - top) * length) / side), Math.floor(((event.clientX - left) * length) / side));
  });
  plot.addEventListener("pointerleave", () => moveTo(-1, -1));
  plot.addEventListener("click", () => at && pin(at.query));
  box.addEventListener("blur", () => moveTo(-1, -1));
  box.addEventListener("keydown", (event) => {
    const { query, key } = at ?? { query: length - 1, key: length - 1 };
    const next = { ArrowUp: [Math.max(query - 1, key), key], ArrowDown: [Math.min(query + 1, length - 1), key],
      ArrowLeft: [query, Math.max(key - 1, 0)], ArrowRight: [query, Math.min(key + 1, query)], Home: [query, 0],
      End: [query, query] }[event.key];
    if (next) moveTo(...next);
    else if (event.key === "Enter" || event.key === " ") pin(query);
    else return;
    event.preventDefault();
  });

  return {
    measure() {
      side = drawAxes(data.tokens, box, plot);
    },
    draw(map) {
      const size = Math.min(length, Math.max(1, Math.round(side * devicePixelRatio)));
      if (map) put(document.getElementById("map-weights"), picture(map, length, size));
    },
    show(token, ahead) {
      band.hidden = false;
      place(band, ahead ? [token, token, 1, length - token] : [0, token, token + 1, 1], length);
    },
  };
}

/** Put a box over cells of the plot: [first column, first row, columns, rows]. */
function place(element, cells, length) {
  const [left, top, width, height] = cells.map((count) => `${(100 * count) / length}%`);
  Object.assign(element.style, { left, top, width, height });
}

/** Draw ticks and names beside the plot; return the plot's side in pixels. */
function drawAxes(tokens, box, plot) {
  const size = box.clientWidth;
  const named = (size - ROOM.named) / tokens.length >= LEAST_NAMED;
  const room = named ? ROOM.named : ROOM.numbered;
  const side = size - room - TOP;
  Object.assign(plot.style, { left: `${room}px`, top: `${TOP}px`, width: `${side}px`, height: `${side}px` });
  const canvas = document.getElementById("map-labels");
  canvas.width = canvas.height = Math.round(size * devicePixelRatio);
  const pen = canvas.getContext("2d");
  pen.scale(devicePixelRatio, devicePixelRatio);
  pen.translate(0, TOP);
  pen.fillStyle = colours.faint;
  pen.textBaseline = "middle";
  const step = STEPS.find((each) => (each * side) / tokens.length >= (named ? LEAST_NAMED : 26)) ?? tokens.length;
  for (let i = 0; i < tokens.length; i += step) {
    const label = named ? spelled(tokens[i]) : `${i}`;
    drawLabels(pen, label, { middle: ((i + 0.5) * side) / tokens.length, room, side, turned: named });
  }
  drawTitles(pen, room, side);
  return side;
}

function drawLabels(pen, label, { middle, room, side, turned }) {
  pen.font = "11px ui-monospace, monospace";
  const text = shortened(pen, label, room - 24);
  pen.textAlign = "right";
  pen.fillText(text, room - 5, middle);
  pen.save();
  pen.translate(room + middle, side + (turned ? 5 : 10));
  if (turned) pen.rotate(-Math.PI / 2);
  else pen.textAlign = "center";
  pen.fillText(text, 0, 0);
  pen.restore();
}

function drawTitles(pen, room, side) {
  pen.font = "12px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.fillText("key: the token looked at →", room + side / 2, side + room - 8);
  pen.translate(8, side / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("← query: the token that looks", 0, 0);
}

function shortened(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let kept = Array.from(text);
  while (kept.length && pen.measureText(`${kept.join("")}…`).width > width) kept = kept.slice(0, -1);
  return `${kept.join("")}…`;
}
