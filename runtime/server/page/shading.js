// Probabilities as shades and as figures. The shades are the style's; the scale is their square root.

const LEVELS = 8;

function shade(element, probability) {
  element.dataset.level = Math.round(Math.sqrt(probability) * (LEVELS - 1));
}

function percent(probability) {
  return `${(100 * probability).toFixed(2)}\u00a0%`;
}
