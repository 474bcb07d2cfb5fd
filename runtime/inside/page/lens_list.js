// What each layer predicts after the chosen token, and the rank and probability of the final answer there.

const AT_ONCE = 13; // rows per frame; a model deeper than GPT-2 small takes several frames

function makeLensList(lens) {
  const table = document.getElementById("lens-list");
  const choices = lens.top[0][0].length;
  const rows = lens.top.map((_, layer) => listRow(layer, lens.top.length - 1, choices));
  const names = ["layer", ...Array.from({ length: choices }, (_, i) => ordinal(i + 1)), "final answer"];
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  head.lastChild.colSpan = 2;
  table.append(make("thead", {}, head), make("tbody", {}, ...rows));
  const title = document.getElementById("lens-list-title");
  let [shown, pending] = [-1, 0];

  function showFrom(first, token) {
    rows.slice(first, first + AT_ONCE).forEach((row, i) => showLayer(row, lens, first + i, token));
    const next = first + AT_ONCE;
    if (next < rows.length) pending = requestAnimationFrame(() => showFrom(next, token));
  }

  return {
    show(tokens, token) {
      if (token === shown) return;
      shown = token;
      const answer = lens.answers[token];
      const place = `${quoted(tokens[token])} (${token})`;
      title.textContent = `After ${place}: the final answer is ${quoted(lens.texts[answer])}`;
      cancelAnimationFrame(pending);
      showFrom(0, token);
    },
    repaint() {
      shown = -1;
    },
  };
}

function ordinal(number) {
  return `${number}${{ 1: "st", 2: "nd", 3: "rd" }[number] ?? "th"}`;
}

function layerName(layer, last) {
  return { 0: "0 embedding", [last]: `${last} output` }[layer] ?? `${layer}`;
}

function listRow(layer, last, choices) {
  const cells = Array.from({ length: choices }, () =>
    make("td", { className: "guess" }, ...["token-text", "number"].map((className) => make("span", { className }))),
  );
  const answer = ["number", "number"].map((className) => make("td", { className }));
  return make("tr", {}, make("th", { scope: "row" }, layerName(layer, last)), ...cells, ...answer);
}

function showLayer(row, lens, layer, token) {
  const ids = lens.top[layer][token];
  const chances = lens.probabilities[layer][token];
  ids.forEach((id, i) => {
    const cell = row.cells[i + 1];
    spell(cell.firstChild, lens.texts[id]);
    cell.title = spelled(lens.texts[id]);
    cell.lastChild.textContent = percent(chances[i]);
    cell.classList.toggle("answer", id === lens.answers[token]);
    shade(cell, levelOf(chances[i] / WHOLE));
  });
  row.cells[ids.length + 1].textContent = `rank ${lens.ranks[layer][token].toLocaleString("en")}`;
  row.cells[ids.length + 2].textContent = percent(lens.answerProbabilities[layer][token]);
}
