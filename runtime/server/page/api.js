// Requests to the server that sent this page. Paths are relative, so that it may be behind a proxy's prefix.

/** An answer that is a success; otherwise an Error in the server's own words, with its status. */
async function post(path, body, { key, signal }) {
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const request = { method: "POST", headers, body: JSON.stringify(body), signal, credentials: "same-origin" };
  const answer = await fetch(path, request).catch((error) => {
    throw signal?.aborted ? error : new Error(`the server does not answer: ${error.message}`);
  });
  if (!answer.ok) throw await refusalOf(answer);
  return answer;
}

async function refusalOf(answer) {
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `the server answers ${answer.status} ${answer.statusText}`;
  return Object.assign(new Error(message), { status: answer.status });
}
