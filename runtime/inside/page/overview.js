// All layers by heads as thumbnails, one of them chosen. They share one canvas beneath the cells of a grid.

const THUMBNAIL = 64;
const GAP = 4;

function makeOverview(data, choose) {
  const grid = document.getElementById("overview");
  const cells = data.layers.map((layer) => Array.from({ length: data.heads }, (_, head) => cellOf(layer, head)));
  const canvas = document.getElementById("thumbnails");
  canvas.width = data.heads * (THUMBNAIL + GAP);
  canvas.height = cells.length * (THUMBNAIL + GAP);
  grid.style.setProperty("--heads", data.heads);
  grid.style.setProperty("--layers", cells.length);
  const rows = cells.map((row, i) => make("div", { role: "row" }, sideOf(data.layers[i]), ...row));
  grid.append(headRow(data.heads), ...rows);
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (cell) go(...placeOf(cell));
  });
  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest("[role=gridcell]");
    if (cell && follow(event.key, ...placeOf(cell))) event.preventDefault();
  });

  function placeOf(cell) {
    const row = cells.findIndex((each) => each.includes(cell));
    return [row, cells[row].indexOf(cell)];
  }

  function follow(key, row, head) {
    const next = { ArrowUp: [row - 1, head], ArrowDown: [row + 1, head], ArrowLeft: [row, head - 1],
      ArrowRight: [row, head + 1], Home: [row, 0], End: [row, data.heads - 1] }[key];
    if (next && cells[next[0]]?.[next[1]]) go(...next);
    return Boolean(next);
  }

  function go(row, head) {
    choose(row, head);
    cells[row][head].focus();
  }

  let chosen = cells[0][0];
  return {
    draw(row, maps) {
      const images = cells[row].map((_, head) => thumbnail(mapOf(maps, head, data), data.tokens.length));
      images.forEach((image, head) => putThumbnail(canvas, image, row, head));
    },
    select(row, head) {
      mark(chosen, false);
      mark((chosen = cells[row][head]), true);
    },
  };
}

function mapOf(maps, head, data) {
  const size = triangle(data.tokens.length);
  return maps?.subarray(head * size, (head + 1) * size);
}

function thumbnail(map, length) {
  return picture(map, length, Math.min(length, THUMBNAIL));
}

const scratch = document.createElement("canvas");

function putThumbnail(canvas, image, row, head) {
  put(scratch, image);
  const pen = canvas.getContext("2d");
  const [left, top] = [head, row].map((place) => place * (THUMBNAIL + GAP) + GAP / 2);
  pen.imageSmoothingEnabled = false;
  pen.clearRect(left, top, THUMBNAIL, THUMBNAIL);
  pen.drawImage(scratch, left, top, THUMBNAIL, THUMBNAIL);
}

function mark(cell, chosen) {
  cell.setAttribute("aria-selected", chosen);
  cell.tabIndex = chosen ? 0 : -1;
}

function cellOf(layer, head) {
  const name = `layer ${layer}, head ${head}`;
  return make("div", { role: "gridcell", tabIndex: -1, title: name, ariaLabel: name, ariaSelected: false });
}

function headRow(heads) {
  const numbers = Array.from({ length: heads }, (_, head) => make("span", { role: "columnheader" }, `${head}`));
  return make("div", { role: "row" }, make("span", { role: "columnheader", ariaLabel: "layer" }), ...numbers);
}

function sideOf(layer) {
  return make("span", { role: "rowheader" }, `${layer}`);
}
