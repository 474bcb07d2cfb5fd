// A stream as OpenAI's API sends it: events of one line of JSON each, then [DONE].

const BETWEEN = /\r?\n\r?\n/;

/** The JSON of each event. Chunks of the network end anywhere, within a character too. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the answer broke off before its end");
    const events = (held + value).split(BETWEEN);
    held = events.pop();
    for (const event of events) {
      const data = dataOf(event);
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice("data:".length).trimStart()).join("\n");
}
