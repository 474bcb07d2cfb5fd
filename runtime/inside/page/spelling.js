// Tokens with invisible characters made visible. The characters themselves stay in the page, so that they can be found
// and copied; the style draws their signs.

const UNSEEN = /[\p{C}\p{Z}]/u;
const SPACED = /^ [^\p{C}\p{Z}]+$/u; // as most tokens are
const SIGNS = { " ": "·", "\n": "↵", "\t": "⇥" };

function signOf(character) {
  return SIGNS[character] ?? `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

function unseen(character) {
  const element = document.createElement("span");
  element.className = character === " " ? "sign space" : character in SIGNS ? "sign" : "sign code";
  element.dataset.sign = signOf(character);
  element.textContent = character;
  return element;
}

function spell(element, token) {
  if (SPACED.test(token) && SPACED.test(element.textContent)) element.lastChild.data = token.slice(1);
  else element.replaceChildren(...partsOf(token));
  return element;
}

function partsOf(token) {
  const parts = token.split(/([\p{C}\p{Z}])/u).filter(Boolean);
  return parts.map((part) => (UNSEEN.test(part) ? unseen(part) : part));
}

/** A token with signs, for labels and plain sentences. */
function spelled(token) {
  return Array.from(token, (character) => (UNSEEN.test(character) ? signOf(character) : character)).join("");
}

function quoted(token) {
  return `“${spelled(token)}”`;
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}
