// The state of the page: what was asked for, what is under way, and what was there before.

const limits = JSON.parse(document.getElementById("limits").textContent);
const [form, prompt, generateButton, stopButton, backButton, insideButton, keyRow, key, count, status, failure] = [
  "ask", "prompt", "generate", "stop", "back", "look-inside", "key-row", "key", "count", "status", "failure",
].map((id) => document.getElementById(id));
const settings = makeSettings(limits);
const choices = makeChoices({ choose: goOn });
const sheet = makeSheet({ visit: choices.visit, leave: choices.leaveSoon, enter: choices.enter });
const past = [];
let run = null; // aborts the completion under way
let follows = true; // whether the window stays at the end of a text that grows

function ask(path, body, signal) {
  return post(path, body, { key: key.value, signal });
}

/** Go on from a text with what the settings say. */
async function generate(text) {
  run?.abort();
  const mine = (run = new AbortController());
  const asked = settings.read();
  const progress = { began: performance.now(), tokens: 0, reason: null };
  begin();
  try {
    const body = { prompt: text, stream: true, logprobs: limits.choices, ...asked };
    await read(await ask("v1/completions", body, mine.signal), progress);
    if (run === mine) finish(summary(progress, asked));
  } catch (error) {
    if (run !== mine) return;
    if (mine.signal.aborted) finish(`Stopped after ${counted(progress.tokens)}`);
    else fail(error);
  } finally {
    mine.abort(); // a stream that cannot be read holds no slot
  }
}

async function read(answer, progress) {
  const reader = makeReader();
  for await (const event of eventsOf(answer.body)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    sheet.put(reader.take(choice));
    progress.tokens += choice.logprobs.tokens.length;
    progress.reason = choice.finish_reason;
    count.textContent = counted(progress.tokens);
    if (follows && !choices.open) requestAnimationFrame(() => scrollTo(0, document.documentElement.scrollHeight));
  }
}

function begin() {
  document.getElementById("invitation").hidden = true;
  follows = true;
  failure.hidden = true;
  count.textContent = "";
  status.textContent = "Generating…";
  swap(generateButton, stopButton);
  offer();
  document.body.classList.add("busy");
}

function finish(words) {
  run = null;
  count.textContent = "";
  status.textContent = words;
  swap(stopButton, generateButton);
  offer();
  document.body.classList.remove("busy");
}

/** One button takes another's place, and the focus if it had it. */
function swap(from, to) {
  const focused = document.activeElement === from;
  [from.hidden, to.hidden] = [true, false];
  if (focused) to.focus();
}

function offer() {
  backButton.hidden = !past.length;
  insideButton.hidden = Boolean(run) || !sheet.pieces.length;
}

function fail(error) {
  finish("");
  tell(error);
}

function tell(error) {
  failure.textContent = error.message;
  failure.hidden = false;
  if (error.status !== 401) return;
  keyRow.hidden = false;
  key.focus();
}

function summary({ began, tokens, reason }, { seed }) {
  const seconds = (performance.now() - began) / 1000;
  const end = { stop: "the text has ended", length: "max tokens reached" }[reason];
  const speed = `${counted(tokens)} in ${seconds.toFixed(1)} s`;
  return [speed, end, seed === undefined ? "greedy" : `seed ${seed}`].filter(Boolean).join(" · ");
}

function counted(tokens) {
  return `${tokens.toLocaleString("en")} token${tokens === 1 ? "" : "s"}`;
}

function remember() {
  if (sheet.pieces.length) past.push({ asked: prompt.value, before: sheet.prompt, pieces: sheet.pieces });
}

/** Write a choice in a piece's place, and go on from there. */
function goOn(piece, choice) {
  const text = textOf(piece, choice);
  const kept = sheet.pieces.slice(0, sheet.pieces.indexOf(piece));
  const chosen = { ...piece, ...choice, text, element: null };
  choices.hide();
  remember();
  sheet.show(sheet.prompt, kept);
  sheet.put([chosen]);
  chosen.element.focus({ preventScroll: true });
  choices.hide();
  prompt.value = sheet.text;
  generate(sheet.text);
}

function goBack() {
  const { asked, before, pieces } = past.pop();
  run?.abort();
  choices.hide();
  prompt.value = asked;
  sheet.show(before, pieces);
  finish("");
  if (!past.length) prompt.focus();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  choices.hide();
  remember();
  sheet.show(prompt.value);
  generate(prompt.value);
});
form.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  form.requestSubmit();
});
stopButton.addEventListener("click", () => run?.abort());
backButton.addEventListener("click", goBack);
insideButton.addEventListener("click", async () => {
  failure.hidden = true;
  try {
    const tokens = await lookInside(sheet.text, ask, limits.inside);
    if (tokens > limits.inside) status.textContent = `Inside are the last ${limits.inside} of ${counted(tokens)}`;
  } catch (error) {
    tell(error);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (choices.open) choices.leave();
  else run?.abort();
});
addEventListener("pagehide", () => run?.abort()); // a browser that keeps the page to go back to would read on
addEventListener("scroll", () => {
  follows = scrollY + innerHeight >= document.documentElement.scrollHeight - 40;
});
