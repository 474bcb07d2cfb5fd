// The text, token by token: one token is chosen, the others are shaded by the attention weight between it and them.

const STRONGEST = 10;

function makeText(data, { visit, leave, pin }) {
  const list = document.getElementById("tokens");
  const options = data.tokens.map(optionOf);
  const levels = new Int16Array(options.length).fill(-1);
  for (const option of options) list.append(...(option.classList.contains("word") ? [make("wbr"), option] : [option]));
  const rows = Array.from({ length: Math.min(STRONGEST, options.length) }, weightRow);
  document.querySelector("#strongest tbody").append(...rows);
  let shown = options[0];

  const visited = (event) => {
    const option = event.target.closest("[role=option]");
    if (option) visit(Number(option.dataset.position));
  };
  list.addEventListener("pointerover", visited);
  list.addEventListener("focusin", visited);
  list.addEventListener("pointerleave", leave);
  list.addEventListener("focusout", leave);
  list.addEventListener("click", (event) => {
    const option = event.target.closest("[role=option]");
    if (option) pin(Number(option.dataset.position));
  });
  list.addEventListener("keydown", (event) => {
    const position = options.indexOf(document.activeElement);
    const next = { ArrowLeft: position - 1, ArrowRight: position + 1, Home: 0, End: options.length - 1 }[event.key];
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (next !== undefined) options[next]?.focus();
    else if (step) options[inNextLine(options, position, step)]?.focus();
    else if (event.key === "Enter" || event.key === " ") pin(position);
    else return;
    event.preventDefault();
  });

  return {
    show({ token, pinned, weights, ahead }) {
      shown.classList.remove("shown", "pinned");
      shown.setAttribute("aria-selected", false);
      shown.tabIndex = -1;
      shown = options[token];
      shown.classList.add("shown");
      shown.classList.toggle("pinned", pinned);
      shown.setAttribute("aria-selected", pinned);
      shown.tabIndex = 0;
      shadeOptions(options, levels, weights);
      showStrongest(rows, data.tokens, strongest(weights, token, ahead));
      const title = document.getElementById("strongest-title");
      title.textContent = `${quoted(data.tokens[token])} (${token}) ${ahead ? "is looked at by" : "looks at"}`;
    },
    repaint() {
      levels.fill(-1);
    },
  };
}

function optionOf(token, position) {
  const option = spell(make("span", { role: "option", className: "token", tabIndex: -1 }), token);
  option.classList.toggle("word", /^ \S/.test(token)); // a line ends before its space, not after
  option.dataset.position = position;
  option.setAttribute("aria-label", `${spelled(token)}, position ${position}`);
  option.setAttribute("aria-selected", false);
  return option;
}

/** The nearest token in the line above (step -1) or below (1), if there is such a line. */
function inNextLine(options, position, step) {
  const places = options.map((option) => option.getClientRects()[0]);
  const below = (one, other) => (places[one].top - places[other].top) * step > 1;
  const beyond = [...options.keys()].filter((other) => below(other, position));
  const line = beyond.filter((other) => !beyond.some((nearer) => below(other, nearer)));
  const aside = (other) => Math.abs(places[other].left - places[position].left);
  return line.sort((one, other) => aside(one) - aside(other))[0];
}

function shadeOptions(options, levels, weights) {
  options.forEach((option, position) => {
    const level = LEVEL_OF_WEIGHT[weights[position]];
    if (levels[position] === level) return;
    levels[position] = level;
    shade(option, level);
  });
}

/** Positions and weights of the strongest tokens, strongest first, among those that can attend or be attended to. */
function strongest(weights, token, ahead) {
  const [from, to] = ahead ? [token, weights.length] : [0, token + 1];
  const all = Array.from({ length: to - from }, (_, i) => ({ position: from + i, weight: weights[from + i] }));
  return all.sort((one, other) => other.weight - one.weight || one.position - other.position).slice(0, STRONGEST);
}

function weightRow() {
  const [token, position, weight] = ["token-text", "number", "number"].map((className) => make("td", { className }));
  return make("tr", {}, token, position, weight);
}

function showStrongest(rows, tokens, found) {
  rows.forEach((row, i) => {
    row.hidden = i >= found.length;
    if (row.hidden) return;
    const [token, position, weight] = row.cells;
    spell(token, tokens[found[i].position]);
    position.textContent = found[i].position;
    weight.textContent = percent(found[i].weight);
    shade(weight, LEVEL_OF_WEIGHT[found[i].weight]);
  });
}
