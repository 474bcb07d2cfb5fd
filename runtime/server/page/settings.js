// The settings of a completion, from their fields; the browser checks the ranges, which are the server's.

function makeSettings(limits) {
  const form = document.getElementById("ask");
  const { tokens, temperature, topP, seed } = form.elements;
  tokens.max = limits.maxTokens;
  tokens.value = Math.min(tokens.value, limits.maxTokens);

  return {
    /** Without a seed, one is drawn here, so that it can be told and used again. */
    read() {
      const asked = { max_tokens: Number(tokens.value), temperature: Number(temperature.value) };
      if (asked.temperature === 0) return asked;
      return { ...asked, top_p: Number(topP.value), seed: seed.value === "" ? drawSeed() : Number(seed.value) };
    },
  };
}

function drawSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}
