"use strict";

// A layer's maps are base64 of a zlib stream: the lower triangles, head by head and row by row, first the low bytes of
// all weights, then the high bytes. A weight is in hundredths of a percent.

const WHOLE = 10000;

function triangle(length) {
  return (length * (length + 1)) / 2;
}

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

async function unpackLayer(packed) {
  const stream = new Blob([bytesOf(packed)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer());
  const weights = new Uint16Array(planes.length / 2);
  for (let i = 0; i < weights.length; i++) weights[i] = planes[i] | (planes[weights.length + i] << 8);
  return weights;
}

/** The weight of one key in a head's triangle; keys after the query are masked. */
function weightOf(map, query, key) {
  return map && key <= query ? map[triangle(query) + key] : 0;
}

function percent(hundredths) {
  return `${(hundredths / 100).toFixed(2)}\u00a0%`;
}
