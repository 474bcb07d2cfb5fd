// What could have come instead of a piece: shown while it is pointed at or focused, entered by a click or a key.

const REST = 90; // milliseconds that a pointer rests before something opens
const LINGER = 250; // that it may take from the piece to its choices
const APART = 4; // pixels between the two

function makeChoices({ choose }) {
  const [box, rows] = ["choices", "rows"].map((id) => document.getElementById(id));
  let [shown, entered, timer] = [null, false, 0];

  function soon(act, milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(act, milliseconds);
  }

  function show(piece) {
    clearTimeout(timer);
    if (shown === piece && !box.hidden) return;
    hide();
    shown = piece;
    piece.element.ariaExpanded = "true";
    box.ariaLabel = `Instead of ${quoted(piece.text || piece.token)}`;
    rows.replaceChildren(...piece.choices.map((choice) => rowOf(piece, choice)));
    box.hidden = false;
    placeBeside(box, piece.element);
  }

  function hide() {
    clearTimeout(timer);
    if (!shown) return;
    shown.element.ariaExpanded = "false";
    box.hidden = true;
    [shown, entered] = [null, false];
  }

  /** Close, with the focus where it came from. */
  function leave() {
    const [piece, inside] = [shown, box.contains(document.activeElement)];
    hide();
    if (inside) piece.element.focus();
    hide(); // what the focus has opened again
  }

  const buttons = () => [...rows.querySelectorAll("button:not(:disabled)")];
  box.addEventListener("pointerenter", () => clearTimeout(timer));
  box.addEventListener("pointerleave", () => entered || soon(hide, LINGER));
  box.addEventListener("focusout", (event) => box.contains(event.relatedTarget) || hide());
  box.addEventListener("click", (event) => {
    const row = event.target.closest("button");
    if (row && !row.disabled) choose(shown, shown.choices[[...rows.children].indexOf(row.parentElement)]);
  });
  box.addEventListener("keydown", (event) => {
    const all = buttons();
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
    else if (event.key === "Home" || event.key === "End") all.at(event.key === "Home" ? 0 : -1).focus();
    else return;
    event.preventDefault();
  });
  document.addEventListener("pointerdown", (event) => {
    if (!box.contains(event.target) && !event.target.closest(".piece")) hide();
  });
  addEventListener("resize", hide);

  return {
    hide,
    leave,
    get open() {
      return Boolean(shown);
    },
    visit(piece) {
      if (entered) return;
      if (piece.element === document.activeElement) show(piece);
      else soon(() => show(piece), REST);
    },
    leaveSoon() {
      if (!entered) soon(hide, LINGER);
    },
    enter(piece) {
      show(piece);
      entered = true;
      buttons()[0]?.focus();
    },
  };
}

/** A choice that writes no text, as it is a part of a character, cannot be gone on from. */
function rowOf(piece, choice) {
  const own = choice.token === piece.token;
  const token = make("span", { className: "token" }, spelled(own ? piece.text || choice.token : choice.token));
  const share = make("span", { className: "share" }, percent(choice.probability));
  shade(share, choice.probability);
  const row = make("button", { type: "button", disabled: textOf(piece, choice) === null }, token, share);
  row.classList.toggle("own", own);
  if (own) row.ariaCurrent = "true";
  if (row.disabled) row.title = "a part of a character, which no text can end with";
  return make("li", {}, row);
}

/** Below the element, or above it where there is more room. */
function placeBeside(box, element) {
  const place = [...element.getClientRects()].at(-1);
  const { offsetWidth: width, offsetHeight: height } = box;
  const room = document.documentElement.clientWidth - width - APART;
  const left = Math.max(Math.min(place.left, room), APART);
  const fits = place.bottom + APART + height <= innerHeight || place.top < height + APART;
  const top = fits ? place.bottom + APART : place.top - height - APART;
  Object.assign(box.style, { left: `${left + scrollX}px`, top: `${top + scrollY}px` });
}
