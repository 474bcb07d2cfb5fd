// Opens the page that looks inside a text, in a tab of its own.

/** The tab opens at once, as browsers let only a click open one. Returns how many tokens the text has. */
async function lookInside(text, ask, most) {
  const tab = open("", "_blank");
  if (!tab) throw new Error("the browser opens no tab; let this page open windows");
  tab.opener = null;
  say(tab.document, "Looking inside…");
  try {
    const { tokens } = await (await ask("tokenize", { prompt: text })).json();
    const page = await (await ask("inside", { prompt: tokens.slice(-most) })).blob();
    tab.location = URL.createObjectURL(page); // kept, so that the tab can be loaded again
    return tokens.length;
  } catch (error) {
    tab.close();
    throw error;
  }
}

function say(page, words) {
  page.title = page.body.textContent = words;
  page.documentElement.style.colorScheme = "light dark";
}
