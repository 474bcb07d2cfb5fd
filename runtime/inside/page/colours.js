// One colour scale for weights and probabilities: 256 levels of the theme's ramp (page.css), by square root.

const LEVELS = 256;

function levelOf(share) {
  return Math.round(Math.sqrt(share) * (LEVELS - 1));
}

/** Rank 1 is the strongest, the vocabulary's last rank the weakest, on a logarithmic scale. */
function levelOfRank(rank, vocabulary) {
  return Math.round((1 - Math.log(rank) / Math.log(vocabulary)) * (LEVELS - 1));
}

const LEVEL_OF_WEIGHT = Uint8Array.from({ length: WHOLE + 1 }, (_, weight) => levelOf(weight / WHOLE));

const colours = { fills: [], inks: [], pixels: new Uint32Array(LEVELS), faint: "" };

function readColours() {
  const style = getComputedStyle(document.documentElement);
  const stops = style.getPropertyValue("--ramp").split(",").map(rgbOf);
  const shades = Array.from({ length: LEVELS }, (_, level) => between(stops, level / (LEVELS - 1)));
  colours.fills = shades.map((shade) => `rgb(${shade.join(" ")})`);
  colours.inks = shades.map((shade) => (luminance(shade) > 0.179 ? "#000" : "#fff")); // where both are equally legible
  colours.pixels = Uint32Array.from(shades, ([red, green, blue]) => red | (green << 8) | (blue << 16) | (255 << 24));
  colours.faint = style.getPropertyValue("--faint");
}

function rgbOf(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.trim().slice(start, start + 2), 16));
}

function between(stops, place) {
  const first = Math.min(Math.floor(place * (stops.length - 1)), stops.length - 2);
  const rest = place * (stops.length - 1) - first;
  return stops[first].map((channel, i) => Math.round(channel + rest * (stops[first + 1][i] - channel)));
}

/** WCAG's relative luminance. */
function luminance(shade) {
  const [red, green, blue] = shade.map((channel) => {
    const share = channel / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function shade(element, level) {
  element.style.backgroundColor = colours.fills[level];
  element.style.color = colours.inks[level];
}

/** Call `draw` now and whenever the theme changes, also for printing, which is always light. */
function whenColoursChange(draw) {
  for (const theme of ["screen and (prefers-color-scheme: dark)", "(forced-colors: active)"])
    matchMedia(theme).addEventListener("change", draw);
  draw();
}
