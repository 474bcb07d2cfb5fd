// Pieces of a text. A token writes one, but where several tokens write one character, they write one piece together.

const BYTE = /\\x([89a-f][0-9a-f])/; // how a byte is spelled that is no character by itself
const CONTINUES = /^\\x[89ab]/; // UTF-8's later bytes

/** Turns the events of one completion into pieces. */
function makeReader() {
  const [characters, pieces, starts] = [[], [], []];
  let missing = 0; // bytes of the last character that are yet to come

  function takeToken(token, probability, top, start) {
    if (missing && CONTINUES.test(token)) addToken(pieces.at(-1), token, probability);
    else {
      pieces.push(pieceOf(token, probability, choicesOf(top), missing > 0));
      starts.push(start);
    }
    missing = missingAfter(token, missing);
  }

  return {
    /** The pieces that are new or have changed. */
    take({ text, logprobs }) {
      const first = Math.max(pieces.length - 1, 0);
      characters.push(...text);
      const { tokens, token_logprobs, top_logprobs, text_offset } = logprobs;
      tokens.forEach((token, i) => takeToken(token, Math.exp(token_logprobs[i]), top_logprobs[i], text_offset[i]));
      for (let i = first; i < pieces.length; i++)
        pieces[i].text = characters.slice(starts[i], starts[i + 1]).join("");
      return pieces.slice(first);
    },
  };
}

/** `torn` says that the character before it lacks bytes, so that no text leads here. */
function pieceOf(token, probability, choices, torn) {
  return { text: "", token, probability, choices, torn, gap: null, element: null };
}

/** Its first token's choices stay: in the midst of a character there is no text to go on from. */
function addToken(piece, token, probability) {
  const own = piece.choices.find((choice) => choice.token === piece.token);
  piece.token += token;
  piece.probability *= probability;
  Object.assign(own, { token: piece.token, probability: piece.probability });
}

/** The likeliest first. The object's own order is not that: keys such as "7" would come first. */
function choicesOf(top) {
  const choices = Object.entries(top).map(([token, logprob]) => ({ token, probability: Math.exp(logprob) }));
  return choices.sort((one, other) => other.probability - one.probability);
}

/** How many bytes the last character lacks after a token, if it lacked `missing` before. */
function missingAfter(token, missing) {
  for (const part of token.split(/(\\x[89a-f][0-9a-f])/).filter(Boolean)) {
    const byte = BYTE.test(part) ? parseInt(part.slice(2), 16) : 0;
    if (byte < 0x80) missing = 0;
    else if (byte < 0xc0) missing = Math.max(missing - 1, 0);
    else missing = byte < 0xe0 ? 1 : byte < 0xf0 ? 2 : 3;
  }
  return missing;
}

/** The text that a choice writes in a piece's place; null if that is no text. */
function textOf(piece, choice) {
  if (piece.torn) return null;
  if (choice.token === piece.token) return piece.text || textOfToken(choice.token);
  return textOfToken(choice.token);
}

function textOfToken(token) {
  return BYTE.test(token) ? null : token;
}
