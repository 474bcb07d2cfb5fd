// The text: the prompt as it was, and pieces that are pointed at, focused and chosen.

const BLANK = /^[\p{C}\p{Z}]*$/u;
const WORD = /^ [^\p{C}\p{Z}]/u;

function makeSheet({ visit, leave, enter }) {
  const [sheet, prompt, written] = ["sheet", "before", "written"].map((id) => document.getElementById(id));
  let pieces = [];
  let reached = 0; // the piece that Tab goes to

  function put(piece) {
    if (!piece.element) {
      piece.gap = new Text();
      piece.element = make("span", { className: "piece", tabIndex: pieces.length ? -1 : 0 });
      written.append(piece.gap, piece.element);
      pieces.push(piece);
    }
    draw(piece);
  }

  function reach(position) {
    if (!pieces[position]) return;
    if (pieces[reached]) pieces[reached].element.tabIndex = -1;
    reached = position;
    pieces[reached].element.tabIndex = 0;
  }

  const pieceAt = (event) => pieces.find((piece) => piece.element === event.target);
  written.addEventListener("pointermove", (event) => {
    const moved = event.movementX || event.movementY; // not the text under a pointer that rests
    if (event.pointerType !== "touch" && moved && pieceAt(event)) visit(pieceAt(event));
  });
  written.addEventListener("pointerleave", leave);
  written.addEventListener("focusout", leave);
  written.addEventListener("focusin", (event) => {
    reach(pieces.indexOf(pieceAt(event)));
    if (event.target.matches(":focus-visible")) visit(pieceAt(event));
  });
  written.addEventListener("click", (event) => pieceAt(event) && enter(pieceAt(event)));
  written.addEventListener("keydown", (event) => {
    const at = pieces.indexOf(pieceAt(event));
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: pieces.length - 1 }[event.key];
    const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (next !== undefined) pieces[next]?.element.focus();
    else if (step) pieces[inNextLine(pieces.map((piece) => piece.element), at, step)]?.element.focus();
    else if (event.key === "Enter" || event.key === " ") enter(pieces[at]);
    else return;
    event.preventDefault();
  });

  return {
    put(changed) {
      changed.forEach(put);
    },
    /** The prompt, and pieces after it. */
    show(text, kept = []) {
      prompt.textContent = text;
      pieces = [...kept];
      written.replaceChildren(...pieces.flatMap(({ gap, element }) => [gap, element]));
      reach(Math.min(reached, pieces.length - 1));
      if (!pieces.length) reached = 0;
      sheet.hidden = false;
    },
    get prompt() {
      return prompt.textContent;
    },
    get pieces() {
      return [...pieces];
    },
    get text() {
      return prompt.textContent + pieces.map((piece) => piece.text).join("");
    },
  };
}

/** The space before a word has no shade. What has no ink of its own has a sign, which is no part of the text. */
function draw({ gap, element, text, token, probability }) {
  gap.data = WORD.test(text) ? " " : "";
  element.textContent = text.slice(gap.length);
  if (BLANK.test(text) && !/^ +$/.test(text)) element.dataset.sign = spelled(text || token);
  else delete element.dataset.sign;
  shade(element, probability);
  element.role = "button";
  element.ariaHasPopup = "dialog";
  element.ariaLabel = `${spelled(text || token)}, ${percent(probability)}`;
}
