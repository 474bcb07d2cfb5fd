// All layers by all positions: the likeliest token of each, coloured by its probability or the final answer's rank.

function makeLensTable(data, { pin }) {
  const { lens, tokens } = data;
  const table = document.getElementById("lens-table");
  const scroller = document.getElementById("lens-scroller");
  const reading = document.getElementById("lens-reading");
  const rows = lens.top.map((_, layer) => tableRow(lens, layer));
  const heads = tokens.map((token, position) =>
    make("th", { scope: "col" }, spell(make("span", { className: "token-text" }), token),
      make("span", { className: "number" }, `${position}`)),
  );
  const head = make("tr", {}, make("th", { scope: "col" }, "layer"), ...heads);
  table.append(make("thead", {}, head), make("tbody", {}, ...rows));
  const band = make("div", { className: "band" });
  scroller.append(band);

  table.addEventListener("pointerover", (event) => {
    const cell = event.target.closest("td");
    reading.textContent = cell ? lensReading(data, cell.parentNode.sectionRowIndex, cell.cellIndex - 1) : "";
  });
  table.addEventListener("click", (event) => {
    const cell = event.target.closest("td, thead th");
    if (cell?.cellIndex) pin(cell.cellIndex - 1);
  });

  let [side, step, view, scrolled] = [0, 0, 0, 0];
  scroller.addEventListener("scroll", () => (scrolled = scroller.scrollLeft)); // reading it later would force a layout
  return {
    measure() {
      [side, step] = [table.rows[0].cells[0], heads[0]].map((cell) => cell.getBoundingClientRect().width);
      view = scroller.clientWidth;
      Object.assign(band.style, { width: `${step}px`, height: `${table.offsetHeight}px` });
    },
    colour(byRank) {
      rows.forEach((row, layer) => colourLayer(row, lens, layer, byRank ? data.vocabulary : 0));
    },
    show(token) {
      const left = token * step;
      band.style.transform = `translateX(${side + left}px)`;
      const room = view - side - step;
      if (left < scrolled || left > scrolled + room) scroller.scrollLeft = left - room / 2;
    },
  };
}

function tableRow(lens, layer) {
  const cells = lens.top[layer].map((ids, position) =>
    spell(make("td", { className: ids[0] === lens.answers[position] ? "answer" : "" }), lens.texts[ids[0]]),
  );
  return make("tr", {}, make("th", { scope: "row" }, layerName(layer, lens.top.length - 1)), ...cells);
}

/** Colour by rank within a vocabulary, or by probability if none is given. */
function colourLayer(row, lens, layer, vocabulary) {
  lens.ranks[layer].forEach((rank, position) => {
    const level = vocabulary ? levelOfRank(rank, vocabulary) : levelOf(lens.probabilities[layer][position][0] / WHOLE);
    shade(row.cells[position + 1], level);
  });
}

function lensReading({ lens, tokens }, layer, position) {
  const found = quoted(lens.texts[lens.top[layer][position][0]]);
  const answer = quoted(lens.texts[lens.answers[position]]);
  return (
    `Layer ${layer}, after ${quoted(tokens[position])} (${position}): ${found} ` +
    `${percent(lens.probabilities[layer][position][0])}; the final answer ${answer} has ` +
    `${percent(lens.answerProbabilities[layer][position])}, rank ${lens.ranks[layer][position].toLocaleString("en")}`
  );
}
