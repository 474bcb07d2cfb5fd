// A head's map as pixels.

/** The map, `size` pixels wide, at most its length; a pixel shows its strongest weight, so that no line is lost. */
function picture(map, length, size) {
  const strongest = new Uint16Array(size * size);
  const binOf = Uint16Array.from({ length }, (_, place) => Math.floor((place * size) / length));
  for (let query = 0, i = 0; query < length; query++) {
    const row = binOf[query] * size;
    for (let key = 0; key <= query; key++, i++) {
      const pixel = row + binOf[key];
      if (map[i] > strongest[pixel]) strongest[pixel] = map[i];
    }
  }
  return coloured(strongest, size);
}

/** Nothing is drawn above the diagonal: those keys are masked. */
function coloured(weights, size) {
  const image = new ImageData(size, size);
  const pixels = new Uint32Array(image.data.buffer);
  for (let row = 0; row < size; row++)
    for (let i = row * size; i <= row * size + row; i++) pixels[i] = colours.pixels[LEVEL_OF_WEIGHT[weights[i]]];
  return image;
}

function put(canvas, image) {
  canvas.width = image.width;
  canvas.height = image.height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}
