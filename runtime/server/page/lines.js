// Lines of a text, as it is wrapped on the screen.

const SAME = 2; // pixels that tops of one line may differ by

/** The place in `elements` of the nearest one in the line above (step -1) or below (1), if there is such a line. */
function inNextLine(elements, from, step) {
  const { left, top } = elements[from].getBoundingClientRect();
  let [line, nearest, found] = [null, Infinity, undefined];
  for (let i = from + step; elements[i]; i += step) {
    const place = elements[i].getBoundingClientRect();
    if (Math.abs(place.top - top) <= SAME) continue;
    line ??= place.top;
    if (Math.abs(place.top - line) > SAME) break;
    const aside = Math.abs(place.left - left);
    if (aside < nearest) [nearest, found] = [aside, i];
  }
  return found;
}
